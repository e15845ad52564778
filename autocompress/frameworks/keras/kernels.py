"""The order of a kernel's axes: Keras has the output channels last, the graph and the grids have them first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.keras.layers import DEPTHWISE, TRANSPOSED


@dataclass(frozen=True)
class KernelAxes:
    """Which axes of a layer's kernel are its channels; all others are spatial.

    Attributes:
        shape: of the kernel.
        outputs: axes of the output channels; a depthwise kernel has two, its channels and their multiples.
        inputs: axes of the input channels; a depthwise kernel has none.
        is_transposed: the graph has the inputs first.
    """

    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    is_transposed: bool = False

    @property
    def others(self) -> tuple[int, ...]:
        """All axes but the outputs."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.outputs)

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Of one number per output channel, to broadcast against the kernel."""
        return tuple(size if axis in self.outputs else 1 for axis, size in enumerate(self.shape))

    def rows(self, kernel: NDArray[Any]) -> NDArray[Any]:
        """The kernel as (outputs, inputs, …)."""
        turned = kernel.transpose(self._order)
        channels = [math.prod(self.shape[axis] for axis in axes) for axes in (self.outputs, self.inputs)]
        return turned.reshape(*channels, *turned.shape[len(self.outputs) + len(self.inputs) :])

    def kernel(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `rows`."""
        return rows.reshape([self.shape[axis] for axis in self._order]).transpose(np.argsort(self._order))

    @property
    def _order(self) -> tuple[int, ...]:
        channels = (*self.outputs, *self.inputs)
        return channels + tuple(axis for axis in range(len(self.shape)) if axis not in channels)


def kernel_of(layer: keras.layers.Layer) -> Any:
    """The variable that is a layer's weight."""
    return layer.kernel


def kernel_axes(layer: keras.layers.Layer) -> KernelAxes:
    """The axes of a built layer's kernel."""
    shape = tuple(int(size) for size in kernel_of(layer).shape)
    last = len(shape) - 1
    if isinstance(layer, DEPTHWISE):
        return KernelAxes(shape, (last - 1, last), ())
    if isinstance(layer, TRANSPOSED):
        return KernelAxes(shape, (last - 1,), (last,), is_transposed=True)
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum_axes(layer.equation, shape)
    return KernelAxes(shape, (last,), (last - 1,))


def _einsum_axes(equation: str, shape: tuple[int, ...]) -> KernelAxes:
    """A kernel's letters that are summed over are its inputs, the others its outputs."""
    operands, result = equation.replace(" ", "").split("->")
    letters = operands.split(",")[1]
    kept = tuple(axis for axis, letter in enumerate(letters) if letter in result)
    return KernelAxes(shape, kept, tuple(axis for axis in range(len(shape)) if axis not in kept))
