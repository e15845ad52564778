"""A layer's input as it will be deployed, while it trains: on a grid of few levels."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn

from autocompress import grids

RANGE_MOMENTUM = 0.05
"""Smallest weight of a new batch in the average of an input's range; the first batches are averaged alike."""
SMALLEST_RANGE = 1e-6
LLOYD_STEPS = 8
"""Of the search for the upper one of two levels; it has settled to a percent by then."""
LEARNED_BITS = (4,)
"""Activation widths whose range is learned. Others are averaged."""
SMALLEST_FACTOR = 0.01


class SimulatedInput(nn.Module):
    """An input on a grid that holds zero.

    8 bits take their range as NNCF does, which will place the deployed quantizer: the largest magnitude of a sample, averaged
    over samples; up, and as far down where there are negative values. 4 bits clip a batch's range where that lowers the squared
    error, and one bit has the levels 0 and `high`, with the `high` of least squared error. The ranges of the batches are averaged
    while training, and stand still in evaluation mode. A learned range starts from the average over the calibration, and is
    observed no more.

    Attributes:
        low, high: the averaged range; not a number before any batch was seen.
        batches: how many were seen.
        is_learned: the range follows the factor, not the batches.
        factor: the learned range over that average; None where it is not learned.
        is_calibrating: observe every batch, in whatever mode, and let it pass.
    """

    low: torch.Tensor
    high: torch.Tensor
    batches: torch.Tensor

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        self.bits, self.largest_code = bits, 2**bits - 1
        self.is_calibrating = False
        self.register_buffer("low", torch.tensor(float("nan")))
        self.register_buffer("high", torch.tensor(float("nan")))
        self.register_buffer("batches", torch.tensor(0))
        self.is_learned = bits in LEARNED_BITS
        self.factor = nn.Parameter(torch.tensor(1.0)) if self.is_learned else None

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The value on its grid; the gradient passes where it is in range."""
        if torch.is_autocast_enabled(value.device.type):
            value = value.float()  # bfloat16 does not tell 256 levels apart
        if self.is_calibrating or (self.training and (self.factor is None or not self.is_seen)):
            self._observe(value.detach())
        if self.is_calibrating or not self.is_seen:
            return value
        step, zero = self._step_and_zero()
        if self.factor is None:
            return cast(torch.Tensor, _OnLevels.apply(value, step, -zero, self.largest_code - zero))
        return cast(torch.Tensor, _OnLearnedLevels.apply(value, self.factor, step, -zero, self.largest_code - zero))

    def forget(self) -> None:
        """Be as if no batch had been seen, unless the range was learned."""
        if self.factor is None or float(self.factor.detach()) == 1.0:
            self.batches.zero_()

    @property
    def is_seen(self) -> bool:
        """True once a batch was seen."""
        return bool(self.batches)

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest value of the grid, which holds zero; None before any batch was seen."""
        if not self.is_seen:
            return None
        step, zero = self._step_and_zero()
        return -zero * step, (self.largest_code - zero) * step

    def _step_and_zero(self) -> tuple[float, int]:
        low, high = float(self.low), float(self.high)
        if self.bits == 8 and low < 0:
            low = -high * 128 / 127
        step = (high - low) / self.largest_code
        factor = 1.0 if self.factor is None else max(float(self.factor.detach()), SMALLEST_FACTOR)
        return step * factor, round(-low / step)

    def _observe(self, value: torch.Tensor) -> None:
        low, high = self._range_of(value)
        self.batches += 1
        weight = max(1 / int(self.batches), RANGE_MOMENTUM)
        for average, new in ((self.low, low), (self.high, high)):
            average.copy_(new if weight == 1 else average + weight * (new - average))

    def _range_of(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.bits == 1:
            return torch.zeros_like(self.low), _upper_level(value)
        if self.bits == 8:
            axes = tuple(range(1, value.ndim))
            low, high = value.amin(axes), value.amax(axes)
            return low.mean().clamp(max=0), torch.maximum(high, -low).mean().clamp(min=SMALLEST_RANGE)
        low, high = torch.aminmax(value)
        return _clipped(value, low.clamp(max=0), high.clamp(min=SMALLEST_RANGE), self.largest_code)


def _clipped(value: torch.Tensor, low: torch.Tensor, high: torch.Tensor, largest_code: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The fraction of a range whose grid has the least squared error."""
    errors = []
    for clip in grids.CLIPS:
        step = float(high - low) * clip / largest_code
        zero = round(float(-low) * clip / step)
        errors.append(float((_on_levels(value, step, -zero, largest_code - zero) - value).square().mean()))
    best = grids.CLIPS[errors.index(min(errors))]
    return low * best, high * best


def _upper_level(value: torch.Tensor) -> torch.Tensor:
    """The upper one of two levels, the lower of which is 0: the mean of the values nearer to it than to 0 (Lloyd's algorithm)."""
    high = value.amax().clamp(min=SMALLEST_RANGE)
    for _ in range(LLOYD_STEPS):
        above = value > high / 2
        high = torch.where(above, value, 0).sum().div(above.sum().clamp(min=1)).clamp(min=SMALLEST_RANGE)
    return high


def _on_levels(value: torch.Tensor, step: float, lowest: int, highest: int) -> torch.Tensor:
    """The nearest level. Four passes in place take a quarter of the time of `torch.fake_quantize_per_tensor_affine`."""
    return value.mul(1 / step).round_().clamp_(lowest, highest).mul_(step)


def _pass_inside(gradient: torch.Tensor, value: torch.Tensor, step: float, lowest: int, highest: int) -> torch.Tensor:
    """The gradient where a value rounds to a level in range, else 0, in one pass."""
    low, high = (lowest - 0.5) * step, (highest + 0.5) * step
    return cast(torch.Tensor, torch.ops.aten.hardtanh_backward(gradient, value, low, high))


class _OnLevels(torch.autograd.Function):
    """The nearest level, with a gradient of 1 inside the range."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, step: float, lowest: int, highest: int) -> torch.Tensor:
        ctx.save_for_backward(value)
        ctx.grid = step, lowest, highest
        return _on_levels(value, step, lowest, highest)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (value,) = ctx.saved_tensors
        return _pass_inside(gradient, value, *ctx.grid), None, None, None


class _OnLearnedLevels(torch.autograd.Function):
    """The same with a step that learns; see `_OnLearnedGrid` in weights.py."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: torch.Tensor, step: float, lowest: int, highest: int) -> torch.Tensor:
        ctx.save_for_backward(value, factor)
        ctx.grid = step, lowest, highest
        return _on_levels(value, step, lowest, highest)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        value, factor = ctx.saved_tensors
        step, lowest, highest = ctx.grid
        scaled = value / step
        codes = scaled.round().clamp_(lowest, highest)
        passed = _pass_inside(gradient, value, step, lowest, highest)
        # inside the range the step's gradient is (code - scaled), outside it is the code
        towards = (gradient * codes).sum() - (passed * scaled).sum()
        balance = math.sqrt(value[0].numel() * (highest - lowest))
        return passed, (towards / balance * factor.clamp(min=SMALLEST_FACTOR) / step).reshape(()), None, None, None
