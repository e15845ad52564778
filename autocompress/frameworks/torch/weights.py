"""A weight as it will be deployed, while it trains: some of it zero, the rest on a grid."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from autocompress import grids
from autocompress.frameworks.schedule import BINARY_WEIGHTS_FROM, MASKS, mask_level
from autocompress.policy import LayerPolicy

LEARNED_BITS = (4, 3, 2)
"""Weight widths whose step is learned. Wider grids follow their channel's largest weight."""
SMALLEST_FACTOR = 0.01


class SimulatedWeight(nn.Module):
    """What a weight will be once deployed, with a straight-through gradient.

    Attributes:
        mask: 0 where a weight is zero; None for a dense layer. While training it grows; see `set_progress`.
        level: how far it has grown, of MASKS.
        clip: the step as a fraction of the channel's largest weight; of a learned step, the step that it starts from.
        factor: the learned step over that which it starts from; None where the step follows the weight.
        shared_scale: 1 bit has one scale for the whole layer (DoReFa-Net) and not one per output channel (XNOR-Net).
    """

    clip: torch.Tensor
    mask: torch.Tensor | None
    level: torch.Tensor | None
    shared_scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, policy: LayerPolicy, axis: int, input_axis: int = 1) -> None:
        super().__init__()
        self.policy, self.axis, self.input_axis = policy, axis, input_axis
        self.bits = policy.weights if isinstance(policy.weights, int) else None
        self.others = tuple(i for i in range(weight.ndim) if i != axis)
        self.is_waiting = False
        self.register_buffer("mask", self._mask_of(weight, policy.sparsity) if policy.sparsity else None)
        self.register_buffer("level", torch.tensor(MASKS, device=weight.device) if policy.sparsity else None)
        kept = self._kept(weight.detach())
        is_learned = self.bits in LEARNED_BITS
        self.register_buffer("clip", self._clip(kept, absolute=is_learned))
        self.factor = nn.Parameter(torch.ones_like(self.clip)) if is_learned else None
        self.register_buffer("shared_scale", torch.zeros((), dtype=torch.bool, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it will be deployed."""
        kept = self._kept(weight)
        if self.bits is None or self.is_waiting:
            return kept
        if self.factor is not None:
            return cast(torch.Tensor, _OnLearnedGrid.apply(kept, self._factor, self.clip, grids.largest_code(self.bits)))
        return cast(torch.Tensor, _OnGrid.apply(kept, self))

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """The codes of a weight."""
        kept = self._kept(weight.detach())
        return self._codes(kept, self.step(kept)).to(torch.int8)

    def step(self, kept: torch.Tensor) -> torch.Tensor:
        """One step per output channel: learned, of one bit the mean magnitude, else a fraction of the largest."""
        if self.factor is not None:
            return self._factor.detach() * self.clip
        if self.bits == 1:
            axes = tuple(range(kept.ndim)) if self.shared_scale else self.others
            count = (kept != 0).sum(axes, keepdim=True).clamp(min=1)
            scale = kept.abs().sum(axes, keepdim=True) / count + grids.TINY
            return scale.expand(self.clip.shape)
        return kept.abs().amax(self.others, keepdim=True) * self.clip + grids.TINY

    def set_progress(self, weight: torch.Tensor, fraction: float) -> None:
        """Where a training is that began at 0 and ends at 1: the mask grows, and one bit waits for the activations."""
        self.is_waiting = self.bits == 1 and fraction < BINARY_WEIGHTS_FROM
        if self.mask is None or self.level is None:
            return
        level = mask_level(fraction)
        if level != int(self.level):
            self.level.fill_(level)
            self.mask.copy_(self._mask_of(self._kept(weight), self.policy.sparsity * level / MASKS))

    def quantize(self, kept: torch.Tensor) -> torch.Tensor:
        """Codes times steps."""
        step = self.step(kept)
        return self._codes(kept, step).mul_(step)

    @property
    def _factor(self) -> torch.Tensor:
        assert self.factor is not None
        return self.factor.clamp(min=SMALLEST_FACTOR)

    def _kept(self, weight: torch.Tensor) -> torch.Tensor:
        return weight if self.mask is None else weight * self.mask

    def _codes(self, kept: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        assert self.bits is not None
        if self.bits == 1:
            signs = torch.where(kept < 0, -1.0, 1.0)
            return signs if self.mask is None else signs * self.mask
        limit = grids.largest_code(self.bits)
        return kept.div(step).round_().clamp_(-limit, limit)

    def _mask_of(self, weight: torch.Tensor, sparsity: float) -> torch.Tensor:
        values = weight.detach().cpu().numpy()
        return torch.from_numpy(grids.mask(values, sparsity, self.policy.block, self.input_axis)).to(weight.device)

    def _clip(self, kept: torch.Tensor, *, absolute: bool) -> torch.Tensor:
        """The step that has the least squared error, as it is or as a fraction of each channel's largest weight."""
        if self.bits is None:
            return torch.ones((), device=kept.device)
        values = kept.cpu().numpy()
        step = grids.steps(values, self.bits, self.axis)
        reach = np.maximum(np.abs(values).max(self.others, keepdims=True), grids.TINY)
        return torch.from_numpy(step if absolute else (step / reach).astype(np.float32)).to(kept.device)


class _OnGrid(torch.autograd.Function):
    """Codes times steps, with the gradient of the weight itself (Bengio et al. 2013, straight through)."""

    @staticmethod
    def forward(_: Any, kept: torch.Tensor, simulation: SimulatedWeight) -> torch.Tensor:
        return simulation.quantize(kept)

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> Any:
        return gradient, None


class _OnLearnedGrid(torch.autograd.Function):
    """The same with a step that learns: Esser et al., Learned Step Size Quantization (2020), equations 1 to 5.

    What learns is the step's factor over its start. Its gradient is divided by the start, so that plain SGD moves the step as
    in the paper, and an optimizer that divides by the gradient's size (Adam) moves it by a fraction of itself.
    """

    @staticmethod
    def forward(ctx: Any, kept: torch.Tensor, factor: torch.Tensor, start: torch.Tensor, limit: int) -> torch.Tensor:
        step = factor * start
        scaled = kept / step
        codes = scaled.round().clamp_(-limit, limit)
        ctx.save_for_backward(scaled, codes, start)
        ctx.limit = limit
        return codes * step

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        scaled, codes, start = ctx.saved_tensors
        inside = scaled.abs() <= ctx.limit
        towards = (gradient * torch.where(inside, codes - scaled, codes)).sum_to_size(start.shape)
        balance = math.sqrt(scaled.numel() / start.numel() * ctx.limit)
        return gradient * inside, towards / balance / start, None, None
