"""Layers of the elastic model: a kernel and an input that follow whichever policy is in force.

A policy is a handful of variables, so that one compiled step serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from autocompress import grids
from autocompress.frameworks.keras.inputs import SimulatedInput, range_of_8_bits
from autocompress.frameworks.keras.kernels import KernelAxes
from autocompress.frameworks.keras.straight import differentiated, read
from autocompress.frameworks.keras.weights import LEARNED_BITS, SMALLEST_FACTOR, SimulatedWeight
from autocompress.policy import FLOAT, Bits, LayerPolicy

WIDTHS = (8, 7, 4, 3, 2)
"""Weight widths that the elastic model knows. Each has a step of its own, so that no width has to live with another's."""
Lost = Mapping[int, NDArray[np.int64]]
"""Axis → the indices that a policy removes."""


class ElasticWeight(keras.layers.Layer):
    """A kernel of which a policy silences inputs, sets some to zero and puts the rest on a grid.

    Its variables:
        reads: 1 for the input channels that are kept, broadcast against the kernel.
        mask: 0 where a weight is zero.
        chosen: 1 for the width that is in force; nothing for float.
        clip, factor: of each width; see `SimulatedWeight`.
    """

    bits = None
    """It has no grid for good."""

    def __init__(self, kernel: NDArray[Any], axes: KernelAxes, **options: Any) -> None:
        super().__init__(**options)
        self.axes = axes
        grown = [SimulatedWeight(LayerPolicy(bits), axes) for bits in WIDTHS]
        for weight in grown:
            weight.start(kernel)
        steps = (len(WIDTHS), *axes.step_shape)
        options = {"dtype": "float32", "autocast": False}
        read_shape = tuple(size if axis in axes.inputs else 1 for axis, size in enumerate(axes.shape))
        self.reads = self.add_weight(name="reads", shape=read_shape, initializer="ones", trainable=False, **options)
        self.mask = self.add_weight(name="mask", shape=axes.shape, initializer="ones", trainable=False, **options)
        self.chosen = self.add_weight(name="chosen", shape=(len(WIDTHS),), initializer="zeros", trainable=False, **options)
        self.clip = self.add_weight(name="clip", shape=steps, initializer="zeros", trainable=False, **options)
        self.factor = self.add_weight(name="factor", shape=steps, initializer="ones", **options)
        self.clip.assign(np.stack([ops.convert_to_numpy(weight.clip) for weight in grown]))
        self.width: Bits = FLOAT
        self.is_silent = self.is_sparse = False
        self.built = True

    def call(self, kernel: Any) -> Any:
        """The kernel under the policy."""
        kept = kernel * read(self.reads) * read(self.mask)
        chosen = read(self.chosen)
        clip, factor = self._in_force(chosen, self.clip), ops.maximum(self._in_force(chosen, self.factor), SMALLEST_FACTOR)
        limit, is_learned = (ops.sum(chosen * ops.convert_to_tensor(row, "float32")) for row in _TRAITS)
        reach = ops.stop_gradient(ops.max(ops.abs(kept), self.axes.others, keepdims=True))
        quantized = _on_grid(self.axes)(kept, factor, clip, reach, limit, is_learned)
        return ops.where(ops.sum(chosen) > 0, quantized, kept)

    def set_progress(self, kernel: Any, fraction: float) -> None:
        """Nothing: every policy is in force as a whole from the first step on."""

    def obey(self, layer: LayerPolicy, silent: Lost) -> None:
        """Follow a policy, but for its zeros; `silent` are the input channels that are read no more, by axis."""
        if layer.weights != self.width:
            self.width = layer.weights
            self.chosen.assign(np.array([bits == layer.weights for bits in WIDTHS], np.float32))
        if silent or self.is_silent:
            self.is_silent = bool(silent)
            self.reads.assign(_kept(self.reads.shape, silent))

    def obey_zeros(self, kernel: Any, layer: LayerPolicy, lost: Lost) -> None:
        """Follow the zeros of a policy, of which a kernel loses some channels, by axis."""
        self.is_sparse = layer.sparsity > 0
        dense = np.ones(self.axes.shape, np.float32)
        self.mask.assign(self._zeros(ops.convert_to_numpy(kernel), layer, lost) if self.is_sparse else dense)

    def refresh(self) -> None:
        """Look at the variables again, after they were loaded."""
        chosen = ops.convert_to_numpy(self.chosen)
        self.width = WIDTHS[int(chosen.argmax())] if chosen.any() else FLOAT
        self.is_silent, self.is_sparse = (bool((ops.convert_to_numpy(flags) == 0).any()) for flags in (self.reads, self.mask))

    def steps(self, bits: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """`clip` and `factor` of a width."""
        place = WIDTHS.index(bits)
        return ops.convert_to_numpy(self.clip)[place], ops.convert_to_numpy(self.factor)[place]

    def compute_output_shape(self, shape: Any) -> Any:
        """That of the kernel."""
        return shape

    @property
    def channel_axes(self) -> list[tuple[Any, dict[int, int]]]:
        """Its variables, each with axis → the axis of the kernel whose channels lie along it."""
        channels = (*self.axes.outputs, *self.axes.inputs)
        of_steps = {axis + 1: axis for axis in self.axes.outputs}
        reads, mask = ({axis: axis for axis in axes} for axes in (self.axes.inputs, channels))
        return [(self.reads, reads), (self.mask, mask), (self.clip, of_steps), (self.factor, of_steps)]

    def _in_force(self, chosen: Any, steps: Any) -> Any:
        return ops.sum(ops.reshape(chosen, (-1, *[1] * len(self.axes.shape))) * read(steps), 0)

    def _zeros(self, kernel: NDArray[Any], layer: LayerPolicy, lost: Lost) -> NDArray[np.float32]:
        """The zeros that the kernel would get once it has lost its channels, and those of its silenced inputs."""
        left = np.ix_(*(np.setdiff1d(np.arange(size), lost.get(axis, ())) for axis, size in enumerate(self.axes.shape)))
        mask = np.zeros(self.axes.shape, np.float32)
        part = kernel[left]
        if part.size:
            axes = KernelAxes(part.shape, self.axes.outputs, self.axes.inputs, self.axes.is_transposed)
            mask[left] = axes.kernel(grids.mask(axes.rows(part), layer.sparsity, layer.block))
        return mask


_TRAITS = ([float(grids.largest_code(bits)) for bits in WIDTHS], [float(bits in LEARNED_BITS) for bits in WIDTHS])
"""Of each width: its largest code, and 1 where its step is learned."""


class ElasticInput(SimulatedInput):
    """An input of 8 bits that a policy may leave in float. Silenced channels do not count in its range.

    A range belongs to one policy, so it is forgotten with each; while training it is that of the batch.

    Its variables beside those of the base:
        masks: axis, counted from the end → 1 for the channels that are read.
        quantizes: 0 where the policy leaves the input as it is.

    Args:
        channels: axis, counted from the end → how many channels it has.
    """

    def __init__(self, channels: Mapping[int, int], **options: Any) -> None:
        super().__init__(**options)
        self._tracker.unlock()  # the base is built already
        shapes = {axis: (size, *[1] * (-axis - 1)) for axis, size in channels.items()}
        self.masks = {str(axis): self._flag(f"mask{-axis}", shape, "ones") for axis, shape in shapes.items()}
        self.quantizes = self._flag("quantizes", (), "zeros")
        self._tracker.lock()
        self.is_float, self.is_silent = True, False

    def call(self, value: Any, training: bool = False) -> Any:
        """The value on its grid, or as it is."""
        return ops.cond(read(self.quantizes) > 0, lambda: self._quantized(value, training), lambda: value)

    def _quantized(self, value: Any, training: bool) -> Any:
        if not training:
            return super().call(value)
        return self.on_grid(value, *map(ops.stop_gradient, self.range_of(value)))

    def range_of(self, value: Any) -> tuple[Any, Any]:
        """That of the channels that are read. Each channel's own range is taken first: that is one pass over the data less."""
        kept = [0, *(len(value.shape) + int(axis) for axis in self.masks)]
        others = [axis for axis in range(len(value.shape)) if axis not in kept]
        ends = (reduce(value, others, keepdims=True) if others else value for reduce in (ops.min, ops.max))
        low, high = (self._silenced(end) for end in ends)
        return range_of_8_bits(low, high)

    def _silenced(self, value: Any) -> Any:
        for mask in self.masks.values():
            value = value * ops.cast(mask, value.dtype)
        return value

    def obey(self, layer: LayerPolicy, silent: Lost) -> None:
        """Follow a policy; `silent` are the channels that are read no more, by axis from the end."""
        if self.is_seen:
            self.forget()
        if self.is_float != (layer.activations == FLOAT):
            self.is_float = not self.is_float
            self.quantizes.assign(float(not self.is_float))
        if silent or self.is_silent:
            self.is_silent = bool(silent)
            for axis, mask in self.masks.items():
                mask.assign(_kept(mask.shape, {0: silent.get(int(axis), np.zeros(0, np.int64))}))

    def refresh(self) -> None:
        """Look at the variables again, after they were loaded."""
        super().refresh()
        self.is_float = not float(ops.convert_to_numpy(self.quantizes))
        self.is_silent = any((ops.convert_to_numpy(mask) == 0).any() for mask in self.masks.values())

    def _flag(self, name: str, shape: tuple[int, ...], start: str) -> Any:
        return self.add_weight(name=name, shape=shape, initializer=start, dtype="float32", trainable=False, autocast=False)


def _kept(shape: tuple[int, ...], lost: Lost) -> NDArray[np.float32]:
    """1 for what is not lost along any axis."""
    kept = np.ones(shape, np.float32)
    for axis, indices in lost.items():
        np.moveaxis(kept, axis, 0)[indices] = 0
    return kept


def _on_grid(axes: KernelAxes) -> Any:
    """Codes times steps of any width: learned ones (see `weights._on_learned_grid`), or such as follow the largest weight."""
    shared = tuple(axis for axis, size in enumerate(axes.step_shape) if size == 1)
    weights_of_step = math.prod(axes.shape) / math.prod(axes.step_shape)

    @differentiated
    def quantized(kept: Any, factor: Any, clip: Any, reach: Any, limit: Any, is_learned: Any) -> Any:
        step = ops.where(is_learned > 0, factor * clip, reach * clip) + grids.TINY
        scaled = kept / step
        codes = ops.clip(ops.round(scaled), -limit, limit)

        def gradients(gradient: Any) -> Any:
            inside = ops.cast(ops.logical_or(ops.abs(scaled) <= limit, is_learned < 1), gradient.dtype)
            towards = ops.sum(gradient * (codes - inside * scaled), shared, keepdims=True)
            balance = ops.sqrt(weights_of_step * ops.maximum(limit, 1)) * ops.maximum(clip, grids.TINY)
            learned = is_learned * towards / balance
            return gradient * inside, learned, *map(ops.zeros_like, (clip, reach, limit, is_learned))

        return codes * step, gradients

    return quantized
