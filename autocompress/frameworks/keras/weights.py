"""A kernel as it will be deployed, while it trains: some of it zero, the rest on a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from autocompress import grids
from autocompress.frameworks.keras.kernels import KernelAxes
from autocompress.frameworks.keras.straight import differentiated, read, straight_through
from autocompress.frameworks.schedule import BINARY_WEIGHTS_FROM, MASKS, mask_level
from autocompress.policy import LayerPolicy

LEARNED_BITS = (4, 3, 2)
"""Weight widths whose step is learned. Wider grids follow their channel's largest weight."""
SMALLEST_FACTOR = 0.01
PACKAGE = "autocompress"
"""Under which Keras finds the layers of the simulation again."""


@keras.saving.register_keras_serializable(PACKAGE)
class SimulatedWeight(keras.layers.Layer):
    """What a kernel will be once deployed, with a straight-through gradient.

    Its variables:
        mask: 0 where a weight is zero. While training it grows; see `set_progress`.
        level: how far it has grown, of MASKS.
        clip: the step as a fraction of the channel's largest weight; of a learned step, the step that it starts from.
        factor: the learned step over that which it starts from.
        shared_scale: 1 bit has one scale for the whole layer (DoReFa-Net) and not one per output channel (XNOR-Net).
        waiting: 1 bit is not binary yet.
    """

    built: bool

    def __init__(self, policy: LayerPolicy | Mapping[str, Any], axes: KernelAxes | Sequence[Any], **options: Any) -> None:
        super().__init__(**options)
        self.policy = policy if isinstance(policy, LayerPolicy) else LayerPolicy(**policy)
        self.axes = axes if isinstance(axes, KernelAxes) else KernelAxes(*map(_tuples, axes))
        self.bits = self.policy.weights if isinstance(self.policy.weights, int) else None
        self.is_learned = self.bits in LEARNED_BITS
        self.build()

    def build(self, _: Any = None) -> None:
        """Make the variables. Their shapes follow from the axes alone."""
        if self.built:
            return
        if self.policy.sparsity:
            self.mask = self._variable("mask", self.axes.shape, "float32")
            self.level = self._variable("level", (), "int32")
        if self.bits is not None:
            self.clip = self._variable("clip", self.axes.step_shape, "float32")
        if self.is_learned:
            self.factor = self._variable("factor", self.axes.step_shape, "float32", trainable=True)
        if self.bits == 1:
            self.shared_scale = self._variable("shared_scale", (), "bool")
            self.waiting = self._variable("waiting", (), "bool")
        self.built = True

    def start(self, kernel: NDArray[Any]) -> None:
        """Choose mask and steps for a kernel."""
        if self.policy.sparsity:
            self.mask.assign(self._mask_of(kernel, self.policy.sparsity))
            self.level.assign(MASKS)
            kernel = kernel * keras.ops.convert_to_numpy(self.mask)
        if self.bits is None:
            return
        rows = self.axes.rows(kernel)
        step = grids.steps(rows, self.bits)
        if not self.is_learned:
            reach = np.maximum(np.abs(rows).max(tuple(range(1, rows.ndim)), keepdims=True), grids.TINY)
            step = (step / reach).astype(np.float32)
        self.clip.assign(step.reshape(self.axes.step_shape))
        if self.is_learned:
            self.factor.assign(np.ones(self.axes.step_shape, np.float32))

    def call(self, kernel: Any) -> Any:
        """The kernel as it will be deployed."""
        kept = self._kept(kernel)
        if self.bits is None:
            return kept
        if self.is_learned:
            return _on_learned_grid(kept, self._clamped_factor(), self._constants()[0], grids.largest_code(self.bits))
        quantized = straight_through(self._quantized, kept, *self._constants())
        return ops.where(self.waiting, kept, quantized) if self.bits == 1 else quantized

    def codes(self, kernel: Any) -> NDArray[np.int8]:
        """The codes of a kernel, as (outputs, inputs, …)."""
        kept = self._kept(read(kernel))
        constants = self._constants()
        codes = self._codes(kept, self._step(kept, constants[0]), *constants[1:])
        return self.axes.rows(ops.convert_to_numpy(codes)).astype(np.int8)

    @property
    def follows_training(self) -> bool:
        """True where `set_progress` changes something."""
        return self.bits == 1 or bool(self.policy.sparsity)

    def set_progress(self, kernel: Any, fraction: float) -> None:
        """Where a training is that began at 0 and ends at 1: the mask grows, and one bit waits for the activations."""
        if self.bits == 1:
            self.waiting.assign(fraction < BINARY_WEIGHTS_FROM)
        if self.policy.sparsity:
            level = mask_level(fraction)
            if level != int(ops.convert_to_numpy(self.level)):
                self.level.assign(level)
                kept = ops.convert_to_numpy(self._kept(read(kernel)))
                self.mask.assign(self._mask_of(kept, self.policy.sparsity * level / MASKS))

    def get_config(self) -> dict[str, Any]:
        """What makes it again."""
        axes = [self.axes.shape, self.axes.outputs, self.axes.inputs, self.axes.is_transposed]
        return {**super().get_config(), "policy": self.policy.to_dict(), "axes": axes}

    def compute_output_shape(self, shape: Any) -> Any:
        """That of the kernel."""
        return shape

    def _variable(self, name: str, shape: Sequence[int], dtype: str, trainable: bool = False) -> Any:
        start = "ones" if trainable else "zeros"
        return self.add_weight(name=name, shape=shape, initializer=start, dtype=dtype, trainable=trainable, autocast=False)

    def _kept(self, kernel: Any) -> Any:
        return kernel * ops.cast(self.mask, kernel.dtype) if self.policy.sparsity else kernel

    def _clamped_factor(self) -> Any:
        return ops.maximum(read(self.factor), SMALLEST_FACTOR)

    def _constants(self) -> list[Any]:
        """What a step and the codes depend on beside the kernel: `clip` or `shared_scale`, and of one bit the mask."""
        used = [self.shared_scale if self.bits == 1 else self.clip]
        if self.bits == 1 and self.policy.sparsity:
            used.append(self.mask)
        return [ops.cast(variable, "float32") for variable in used]

    def _quantized(self, kept: Any, scale: Any, *mask: Any) -> Any:
        """Codes times steps."""
        step = self._step(kept, scale)
        return self._codes(kept, step, *mask) * step

    def _step(self, kept: Any, scale: Any) -> Any:
        """One step per output channel: learned, of one bit the mean magnitude, else a fraction of the largest."""
        if self.is_learned:
            return self._clamped_factor() * scale
        if self.bits == 1:
            everything = tuple(range(len(self.axes.shape)))
            return ops.where(scale > 0, _mean_magnitude(kept, everything), _mean_magnitude(kept, self.axes.others))
        return ops.max(ops.abs(kept), self.axes.others, keepdims=True) * scale + grids.TINY

    def _codes(self, kept: Any, step: Any, *mask: Any) -> Any:
        assert self.bits is not None
        if self.bits == 1:
            signs = ops.where(kept < 0, -1.0, 1.0)
            return signs * mask[0] if mask else signs
        limit = grids.largest_code(self.bits)
        return ops.clip(ops.round(kept / step), -limit, limit)

    def _mask_of(self, kernel: NDArray[Any], sparsity: float) -> NDArray[np.float32]:
        mask = grids.mask(self.axes.rows(kernel), sparsity, self.policy.block)
        return self.axes.kernel(mask).astype(np.float32)


def _on_learned_grid(kept: Any, factor: Any, start: Any, limit: int) -> Any:
    """Codes times a step that learns: Esser et al., Learned Step Size Quantization (2020), equations 1 to 5.

    What learns is the step's factor over its start. Its gradient is divided by the start, so that plain SGD moves the step as
    in the paper, and an optimizer that divides by the gradient's size (Adam) moves it by a fraction of itself.
    """
    shared = tuple(axis for axis, size in enumerate(start.shape) if size == 1)
    balance = math.sqrt(math.prod(kept.shape) / math.prod(start.shape) * limit)

    @differentiated
    def quantized(kept: Any, factor: Any, start: Any) -> Any:
        step = factor * start
        scaled = kept / step
        codes = ops.clip(ops.round(scaled), -limit, limit)

        def gradients(gradient: Any) -> Any:
            inside = ops.cast(ops.abs(scaled) <= limit, gradient.dtype)
            towards = ops.sum(gradient * (codes - inside * scaled), shared, keepdims=True)
            return gradient * inside, towards / balance / start, ops.zeros_like(start)

        return codes * step, gradients

    return quantized(kept, factor, start)


def _mean_magnitude(kept: Any, axes: tuple[int, ...]) -> Any:
    count = ops.sum(ops.cast(kept != 0, kept.dtype), axes, keepdims=True)
    return ops.sum(ops.abs(kept), axes, keepdims=True) / ops.maximum(count, 1) + grids.TINY


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
