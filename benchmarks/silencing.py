"""What a pruned module must compute, found from its weights alone.

Which channels a layer lost is read off the weights: all weights of a perturbed layer differ from each other, so each one that is
left says where it stood. Whoever pruned the module is not asked. The original must then give the same outputs as the pruned one
if the lost input channels of each layer are zeroed on their way in. Layers are convolutions, linear layers and the `Conv1D` of
transformers, a linear layer whose weight lies the other way round.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Convolution = nn.modules.conv._ConvNd
Channels = dict[str, torch.Tensor]
"""Layer name → channel numbers of the original."""
Outputs = list[torch.Tensor]


def perturbed(model: nn.Module, seed: int = 1) -> nn.Module:
    """A copy in which every block matters and all weights of a layer differ: no zero-initialised norm, no layer scale of 1e-6."""
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: torch.Size) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(_distinct(parameter.shape, generator))
            else:
                parameter.copy_(uniform(parameter.shape) + (-0.5 if name.endswith("bias") else 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(uniform(buffer.shape) - 0.5)
            elif name.endswith("running_var"):
                buffer.copy_(uniform(buffer.shape) + 0.5)
    return model


def _distinct(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Evenly spaced values in random order, with the variance of 1 / fan-in. Up to 2^24 of them differ in float32."""
    count = shape.numel()
    values = (torch.randperm(count, generator=generator).double() + 0.5) / count * 2 - 1
    return (values * (3 * shape[0] / count) ** 0.5).float().reshape(shape)


def lost_channels(original: nn.Module, pruned: nn.Module) -> tuple[Channels, Channels]:
    """The input and the output channels that each layer lost; layers that lost none are left out.

    Raises:
        ValueError: a weight of the pruned module is none of the original's.
    """
    inputs: Channels = {}
    outputs: Channels = {}
    for name, module in original.named_modules():
        if not (isinstance(module, Convolution | nn.Linear) or _is_turned(module)):
            continue
        before, after = _as_matrix(module), _as_matrix(pruned.get_submodule(name))
        if before.shape == after.shape:
            continue
        groups = getattr(module, "groups", 1)
        try:
            output, column = _places(before, after)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        group = output // (before.shape[0] // groups)
        inputs[name] = _others(groups * before.shape[1], group * before.shape[1] + column)
        outputs[name] = _others(before.shape[0], output)
    return _not_empty(inputs), _not_empty(outputs)


def _not_empty(lost: Channels) -> Channels:
    return {name: channels for name, channels in lost.items() if len(channels)}


def _is_turned(module: nn.Module) -> bool:
    """True for the linear layer of transformers whose weight is (input, output)."""
    return type(module).__name__ == "Conv1D"


def _as_matrix(module: Any) -> torch.Tensor:
    """The first weight of each kernel, as (output, input within its group)."""
    weight = module.weight.detach()
    if _is_turned(module):
        return weight.T
    weight = weight.reshape(*weight.shape[:2], -1)[:, :, 0]
    if getattr(module, "transposed", False):
        if module.groups > 1:
            raise ValueError("grouped transposed convolutions are not known to this check")
        weight = weight.T
    return weight


def _places(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column at which each value of `after` stood."""
    values, order = before.contiguous().reshape(-1).sort()
    wanted = after.reshape(-1).contiguous()
    found = torch.searchsorted(values, wanted).clamp(max=len(values) - 1)
    if not torch.equal(values[found], wanted):
        raise ValueError("the pruned weights are not the original's")
    return order[found] // before.shape[1], order[found] % before.shape[1]


def _others(count: int, kept: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(count, dtype=torch.bool)
    mask[kept] = False
    return mask.nonzero().flatten()


def other_channels(model: nn.Module, lost: Channels, seed: int = 2) -> Channels:
    """For each layer as many channels as it lost, from those that it kept."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for name, channels in lost.items():
        kept = _others(_inputs(model.get_submodule(name)), channels)
        chosen[name] = kept[torch.randperm(len(kept), generator=generator)[: len(channels)]]
    return chosen


def silenced_outputs(model: nn.Module, lost: Channels, run: Callable[[nn.Module], Outputs]) -> Outputs:
    """What `run` gives for the module with these input channels of its layers zeroed.

    Layers whose weights are used without calling them get zeros in those weights.
    """
    with torch.no_grad(), _zeroing(model, lost) as called:
        outputs = run(model)
    if called == lost.keys():
        return outputs
    model = copy.deepcopy(model)
    with torch.no_grad(), _zeroing(model, lost):
        for name in lost.keys() - called:
            _as_matrix(model.get_submodule(name))[:, lost[name]] = 0
        return run(model)


@contextmanager
def _zeroing(model: nn.Module, lost: Channels) -> Iterator[set[str]]:
    """Zero input channels of layers while the context lasts. Gives the names of the layers that were called."""
    called: set[str] = set()
    hooks = [model.get_submodule(name).register_forward_pre_hook(_hook(name, lost[name], called)) for name in lost]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _hook(name: str, channels: torch.Tensor, called: set[str]) -> Any:
    def zero(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        called.add(name)
        if _inputs(module) == getattr(module, "groups", 1) > 1:  # depthwise: it passes on what others read
            return inputs
        axis = -1 - len(getattr(module, "kernel_size", ()))
        return (inputs[0].index_fill(axis, channels, 0), *inputs[1:])

    return zero


def _inputs(module: Any) -> int:
    if _is_turned(module):
        return int(module.weight.shape[0])
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)


def difference(actual: Outputs, expected: Outputs) -> float:
    """The largest difference of outputs, relative to each one's range; infinite if shapes differ, NaN if a value is."""
    if [tensor.shape for tensor in actual] != [tensor.shape for tensor in expected]:
        return float("inf")
    found = [_relative(a.double(), e.double()) for a, e in zip(actual, expected, strict=True)]
    return float(torch.tensor(found).max())  # keeps a NaN


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    span = float(expected.max() - expected.min())
    return float((actual - expected).abs().max()) / max(span, 1e-12)
