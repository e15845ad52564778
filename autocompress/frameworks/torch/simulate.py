"""One simulation of low bits and zeros while training: a transformed weight, a quantized input.

Each simulated layer gets a parametrization of its weight and a quantizer of its input. `settle` writes the transformed weights
into the plain module and takes everything else off again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from autocompress.frameworks.torch.calls import device_of
from autocompress.frameworks.torch.inputs import SimulatedInput
from autocompress.frameworks.torch.layers import HEAVY, TRANSPOSED
from autocompress.frameworks.torch.weights import SimulatedWeight
from autocompress.policy import FLOAT, Policy
from autocompress.target.precision import LayerGrid


def simulate(model: nn.Module, policy: Policy) -> None:
    """Attach the simulation of a policy's bits and zeros, in place."""
    for name, layer in policy.layers.items():
        module = model.get_submodule(name)
        if not isinstance(module, HEAVY):  # it vanished with its residual branch
            continue
        weight: Any = module.weight
        if layer.weights != FLOAT or layer.sparsity:
            outputs, inputs = (1, 0) if isinstance(module, TRANSPOSED) else (0, 1)
            parametrize.register_parametrization(module, "weight", SimulatedWeight(weight, layer, outputs, inputs))
    _simulate_inputs(model, policy)


def attach_input(layer: nn.Module, quantizer: SimulatedInput) -> None:
    """Let a quantizer have a layer's input first."""
    layer.add_module("simulated_input", quantizer.to(device_of(layer)))
    layer.register_forward_pre_hook(quantize_input)


def keep_plain_tensors(model: nn.Module) -> None:
    """Keep encoders from passing nested tensors in evaluation, on which no range is defined."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def set_progress(model: nn.Module, fraction: float) -> None:
    """Tell the simulation how much of the training is done, from 0 to 1; before and after it, everything is in force."""
    for _, weight, original in simulated_weights(model):
        weight.set_progress(original, fraction)


def share_binary_scales(model: nn.Module, shared: bool) -> None:
    """Give weights of one bit one scale per layer (DoReFa-Net) or per output channel (XNOR-Net)."""
    for _, weight, _ in simulated_weights(model):
        weight.shared_scale.fill_(shared)


def forget_ranges(model: nn.Module) -> None:
    """Let inputs be as if they had seen no batch, but for those whose range was learned."""
    for quantizer in simulated_inputs(model):
        quantizer.forget()


def has_coarse_inputs(model: nn.Module) -> bool:
    """True where an input has fewer than 8 bits."""
    return any(quantizer.bits < 8 for quantizer in simulated_inputs(model))


def has_unseen_inputs(model: nn.Module) -> bool:
    """True where an input's range was not observed yet."""
    return any(not quantizer.is_seen for quantizer in simulated_inputs(model))


def observes_in_training(model: nn.Module) -> bool:
    """True where a training observes all inputs: a user's `train` may keep a part in evaluation. The model is left training."""
    model.train()
    return all(quantizer.training for quantizer in simulated_inputs(model))


def input_ranges(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Layer name → lowest and highest value of its simulated input, for the inputs that have seen a batch."""
    found: dict[str, tuple[float, float]] = {}
    for name, module in model.named_modules():
        quantizer = getattr(module, "simulated_input", None)
        if isinstance(quantizer, SimulatedInput) and quantizer.bounds is not None:
            found[name] = quantizer.bounds
    return found


def settle(model: nn.Module) -> dict[str, LayerGrid]:
    """Turn a simulated model into a plain one, in place; the codes of its grids are returned by layer name."""
    set_progress(model, 1.0)
    found: dict[str, LayerGrid] = {}
    for name, weight, original in simulated_weights(model):
        if weight.bits is not None:
            found[name] = LayerGrid(weight.codes(original).cpu().numpy(), weight.bits, weight.axis)
    for module in list(model.modules()):
        if "simulated_input" in dict(module.named_children()):
            module._forward_pre_hooks = type(module._forward_pre_hooks)(
                (key, hook) for key, hook in module._forward_pre_hooks.items() if hook is not quantize_input
            )
            del module.simulated_input
        if parametrize.is_parametrized(module, "weight"):
            _leave_parametrized(module)
    return found


def simulated_weights(model: nn.Module) -> Iterator[tuple[str, SimulatedWeight, torch.Tensor]]:
    """Layer name, its simulation, and the weight that trains."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrized: Any = module.parametrizations["weight"]
            yield name, parametrized[0], parametrized.original


def quantize_input(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Before a layer's forward: its input on the grid of its quantizer."""
    return (module.simulated_input(inputs[0]), *inputs[1:])


def simulated_inputs(model: nn.Module) -> list[SimulatedInput]:
    """The quantizers of all inputs."""
    return [module for module in model.modules() if isinstance(module, SimulatedInput)]


def _simulate_inputs(model: nn.Module, policy: Policy) -> None:
    for name, layer in policy.layers.items():
        module = model.get_submodule(name)
        if isinstance(module, HEAVY) and isinstance(layer.activations, int):
            attach_input(module, SimulatedInput(layer.activations))
    keep_plain_tensors(model)


def _leave_parametrized(module: nn.Module) -> None:
    """Replace the parametrized weight by its value.

    `parametrize.remove_parametrizations` deletes the property from the module's class, which copies of a module share, so it
    would break the model that this one was copied from.
    """
    weight: Any = module.weight
    value = weight.detach().clone()
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.weight = nn.Parameter(value)
