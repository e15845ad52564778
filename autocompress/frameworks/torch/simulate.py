"""One simulation of low bits and zeros while training: a transformed weight, a quantized input.

Each simulated layer gets a parametrization of its weight (mask, then grid, with a straight-through gradient) and a quantizer of
its input. `settle` writes the transformed weights into the plain module and takes everything else off again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from autocompress import grids
from autocompress.frameworks.torch.layers import TRANSPOSED
from autocompress.policy import FLOAT, LayerPolicy, Policy
from autocompress.target.precision import LayerGrid

RANGE_MOMENTUM = 0.05
"""Weight of a new batch in the moving average of an input's range."""
SMALLEST_RANGE = 1e-6
LLOYD_STEPS = 8
"""Of the search for the upper one of two levels; it has settled to a percent by then."""


class SimulatedWeight(nn.Module):
    """What a weight will be once deployed: small ones zero, the rest on a grid.

    The mask and each channel's clip are chosen once, from the weight at hand; the step follows the weight while it trains.
    """

    clip: torch.Tensor
    mask: torch.Tensor

    def __init__(self, weight: torch.Tensor, policy: LayerPolicy, axis: int) -> None:
        super().__init__()
        self.bits = policy.weights if isinstance(policy.weights, int) else None
        self.axis = axis
        self.others = tuple(i for i in range(weight.ndim) if i != axis)
        values = weight.detach().cpu().numpy()
        mask = grids.largest_magnitudes(values, policy.sparsity)
        self.register_buffer("mask", torch.from_numpy(mask).to(weight.device))
        self.register_buffer("clip", self._clip(values * mask).to(weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it will be deployed, with the gradient of the weight where it is kept."""
        kept = weight * self.mask
        if self.bits is None:
            return kept
        with torch.no_grad():
            step = self.step(kept)
            codes = self._codes(kept, step)
        return kept + (codes * step - kept).detach()

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """The codes of a weight."""
        kept = (weight * self.mask).detach()
        return self._codes(kept, self.step(kept)).to(torch.int8)

    def step(self, kept: torch.Tensor) -> torch.Tensor:
        """One step per output channel: of one bit the mean magnitude, else a fraction of the largest."""
        if self.bits == 1:
            count = (kept != 0).sum(self.others, keepdim=True).clamp(min=1)
            return kept.abs().sum(self.others, keepdim=True) / count + grids.TINY
        return kept.abs().amax(self.others, keepdim=True) * self.clip + grids.TINY

    def _codes(self, kept: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        assert self.bits is not None
        if self.bits == 1:
            return torch.where(kept < 0, -1.0, 1.0) * self.mask
        limit = grids.largest_code(self.bits)
        return torch.clamp(torch.round(kept / step), -limit, limit)

    def _clip(self, weight: np.ndarray[Any, Any]) -> torch.Tensor:
        """The step as a fraction of each channel's largest weight."""
        if self.bits is None:
            return torch.ones(())
        reach = np.abs(weight).max(self.others, keepdims=True)
        return torch.from_numpy(grids.steps(weight, self.bits, self.axis) / np.maximum(reach, grids.TINY)).float()


class SimulatedInput(nn.Module):
    """An input on a grid. Its range is a moving average over training batches and stands still in evaluation mode.

    8 and 4 bits reach the smallest and the largest value of a batch. One bit has the levels 0 and `high`, with the `high` of
    least squared error.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.largest_code = 2**bits - 1
        self.register_buffer("low", torch.tensor(float("nan")))
        self.register_buffer("high", torch.tensor(float("nan")))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The value on its grid; the gradient passes where it is in range."""
        if self.training:
            self._observe(value.detach())
        if torch.isnan(self.low):
            return value
        step, zero = self._step_and_zero()
        return torch.fake_quantize_per_tensor_affine(value, step, zero, 0, self.largest_code)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest value of the grid, which holds zero; None before any batch was seen."""
        if torch.isnan(self.low):
            return None
        step, zero = self._step_and_zero()
        return float(-zero * step), float((self.largest_code - zero) * step)

    def _step_and_zero(self) -> tuple[torch.Tensor, torch.Tensor]:
        step = (self.high - self.low) / self.largest_code
        return step, torch.round(-self.low / step).to(torch.int32)

    def _observe(self, value: torch.Tensor) -> None:
        low, high = (torch.zeros_like(self.low), _upper_level(value)) if self.largest_code == 1 else _reach(value)
        weight = 1.0 if torch.isnan(self.low) else RANGE_MOMENTUM
        old_low, old_high = torch.nan_to_num(self.low), torch.nan_to_num(self.high)
        self.low.copy_(old_low + weight * (low - old_low))
        self.high.copy_(old_high + weight * (high - old_high))


def _reach(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return value.amin().clamp(max=0), value.amax().clamp(min=SMALLEST_RANGE)


def _upper_level(value: torch.Tensor) -> torch.Tensor:
    """The upper one of two levels, the lower of which is 0: the mean of the values nearer to it than to 0 (Lloyd's algorithm)."""
    high = value.amax().clamp(min=SMALLEST_RANGE)
    for _ in range(LLOYD_STEPS):
        above = value > high / 2
        high = torch.where(above, value, 0).sum().div(above.sum().clamp(min=1)).clamp(min=SMALLEST_RANGE)
    return high


def simulate(model: nn.Module, policy: Policy) -> None:
    """Attach the simulation of a policy's bits and zeros, in place."""
    for name, layer in policy.layers.items():
        module = model.get_submodule(name)
        weight: Any = module.weight
        if layer.weights != FLOAT or layer.sparsity:
            axis = 1 if isinstance(module, TRANSPOSED) else 0
            parametrize.register_parametrization(module, "weight", SimulatedWeight(weight, layer, axis))
        if isinstance(layer.activations, int):
            module.add_module("simulated_input", SimulatedInput(layer.activations).to(weight.device))
            module.register_forward_pre_hook(_quantize_input)


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
    found: dict[str, LayerGrid] = {}
    for name, module in list(model.named_modules()):
        if "simulated_input" in dict(module.named_children()):
            module._forward_pre_hooks = type(module._forward_pre_hooks)(
                (key, hook) for key, hook in module._forward_pre_hooks.items() if hook is not _quantize_input
            )
            del module.simulated_input
        if parametrize.is_parametrized(module, "weight"):
            weight = module.parametrizations["weight"]
            simulated = weight[0]
            if simulated.bits is not None:
                found[name] = LayerGrid(simulated.codes(weight.original).cpu().numpy(), simulated.bits, simulated.axis)
            _leave_parametrized(module)
    return found


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


def _quantize_input(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.simulated_input(inputs[0]), *inputs[1:])
