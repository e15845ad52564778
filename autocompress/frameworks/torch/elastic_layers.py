"""Layers of the elastic model: a weight and an input that follow whichever policy is in force."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress import grids
from autocompress.frameworks.torch.inputs import SimulatedInput
from autocompress.frameworks.torch.weights import SimulatedWeight
from autocompress.policy import FLOAT, Bits, LayerPolicy

NONE = np.zeros(0, np.int64)


class ElasticWeight(nn.Module):
    """A weight of which a policy silences inputs, sets some to zero and puts the rest on a grid.

    Attributes:
        widths: bits → the simulation of that grid.
        mask: 1 for what is kept, broadcast against the weight; None where all of it is.
        bits: the width that is in force, or float.
    """

    def __init__(self, weight: torch.Tensor, axis: int, input_axis: int, widths: Iterable[int]) -> None:
        super().__init__()
        self.axis, self.input_axis = axis, input_axis
        found = {str(bits): SimulatedWeight(weight, LayerPolicy(bits), axis, input_axis) for bits in widths}
        self.widths = nn.ModuleDict(found)
        self.mask: torch.Tensor | None = None
        self.bits: Bits = FLOAT

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight under the policy."""
        kept = weight if self.mask is None else weight * self.mask
        return kept if self.bits == FLOAT else cast(torch.Tensor, self.widths[str(self.bits)](kept))

    def set_progress(self, weight: torch.Tensor, fraction: float) -> None:
        """Nothing: every policy is in force as a whole from the first step on."""

    def obey(self, weight: torch.Tensor, layer: LayerPolicy, inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> None:
        """Follow a policy.

        Args:
            weight: what is trained.
            layer: what is done to it.
            inputs: the input channels that it loses.
            outputs: the output channels that it loses.
        """
        self.bits, self.mask = layer.weights, None
        if layer.sparsity:
            self.mask = self._zeros(weight, layer, inputs, outputs)
        elif len(inputs):
            shape = [-1 if a == self.input_axis else 1 for a in range(weight.ndim)]
            self.mask = _kept_mask(weight.shape[self.input_axis], inputs, weight.device).reshape(shape)

    def _zeros(
        self, weight: torch.Tensor, layer: LayerPolicy, inputs: NDArray[np.int64], outputs: NDArray[np.int64]
    ) -> torch.Tensor:
        """The zeros that the weight would get once it has lost its channels, and those of its silenced inputs."""
        values = weight.detach().cpu().numpy()
        kept = [np.arange(size) for size in values.shape]
        kept[self.input_axis] = np.setdiff1d(kept[self.input_axis], inputs)
        kept[self.axis] = np.setdiff1d(kept[self.axis], outputs)
        mask = np.zeros(values.shape, np.float32)
        if all(map(len, kept)):
            mask[np.ix_(*kept)] = grids.mask(values[np.ix_(*kept)], layer.sparsity, layer.block, self.input_axis)
        return torch.from_numpy(mask).to(weight.device)


class ElasticInput(SimulatedInput):
    """An input of 8 bits that a policy may leave in float. Silenced channels do not count in its range.

    A range belongs to one policy, so it is forgotten with each; while training it is that of the batch.

    Attributes:
        channels: how many a layer reads.
        shape: in which one number per channel is broadcast against the input.
        mask: 1 for the channels that are read; None where all are.
        is_float: the policy leaves the input as it is.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        linear = isinstance(layer, nn.Linear)
        self.channels = int(layer.in_features if linear else layer.in_channels)
        self.shape = [-1] if linear else [-1, *[1] * len(layer.kernel_size)]
        self.mask: torch.Tensor | None = None
        self.is_float = True

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The value on its grid, or as it is."""
        return value if self.is_float else super().forward(value)

    def obey(self, layer: LayerPolicy, lost: NDArray[np.int64]) -> None:
        """Follow a policy; `lost` are the channels that are not read any more."""
        self.forget()
        self.is_float = layer.activations == FLOAT
        self.mask = _kept_mask(self.channels, lost, self.low.device).reshape(self.shape) if len(lost) else None

    def _observe(self, value: torch.Tensor) -> None:
        super()._observe(value if self.mask is None else value * self.mask)


def _kept_mask(size: int, lost: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.ones(size, device=device).index_fill_(0, torch.from_numpy(lost).to(device), 0)
