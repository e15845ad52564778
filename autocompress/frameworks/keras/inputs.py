"""A layer's input as it will be deployed, while it trains: on a grid of few levels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from autocompress import grids
from autocompress.frameworks.keras.straight import differentiated, is_tensorflow_on_a_cpu, read
from autocompress.frameworks.keras.weights import PACKAGE, SMALLEST_FACTOR

RANGE_MOMENTUM = 0.05
"""Smallest weight of a new batch in the average of an input's range; the first batches are averaged alike."""
SMALLEST_RANGE = 1e-6
LLOYD_STEPS = 8
"""Of the search for the upper one of two levels; it has settled to a percent by then."""
LEARNED_BITS = (4,)
"""Activation widths whose range is learned. Others are averaged."""


@keras.saving.register_keras_serializable(PACKAGE)
class SimulatedInput(keras.layers.Layer):
    """An input on a grid that holds zero.

    8 bits take their range as NNCF does, which will place the deployed quantizer: the largest magnitude of a sample, averaged
    over samples; up, and as far down where there are negative values. 4 bits clip a batch's range where that lowers the squared
    error, and one bit has the levels 0 and `high`, with the `high` of least squared error. The ranges of the batches are averaged
    while training, and stand still in evaluation mode. A learned range starts from the average over the calibration, and is
    observed no more.

    Whether a batch was seen is known to Python beside the variables: a compiled graph holds the one case or the other.

    Attributes:
        is_calibrating: observe every batch, in whatever mode, and let it pass. The model then has to run eagerly.
        together: so many batches are one while it is calibrating.
        is_seen: True once a batch was seen; before that, values pass.

    Its variables are the averaged range `low`, `high`, the number of `batches` and the learned `factor` over that range.
    """

    built: bool

    def __init__(self, bits: int = 8, is_seen: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.bits, self.largest_code, self.is_learned = bits, 2**bits - 1, bits in LEARNED_BITS
        self.is_seen, self.is_calibrating, self.together = is_seen, False, 1
        self.supports_masking = True
        self.build()

    def build(self, _: Any = None) -> None:
        """Make the variables, which are scalars whatever the input is."""
        if self.built:
            return
        for name, dtype in (("low", "float32"), ("high", "float32"), ("batches", "int32")):
            setattr(self, name, self.add_weight(name=name, shape=(), initializer="zeros", dtype=dtype, trainable=False))
        if self.is_learned:
            self.factor = self.add_weight(name="factor", shape=(), initializer="ones", dtype="float32", autocast=False)
        self.built = True

    def call(self, value: Any, training: bool = False) -> Any:
        """The value on its grid; the gradient passes where it is in range."""
        if self.is_calibrating:
            self._observe(self._range_of_batches(value))
            self.is_seen = True
            return value
        if not self.is_seen:
            return value
        if training and not self.is_learned:
            self._observe(self.range_of(value))
        return self.on_grid(value, read(self.low), read(self.high))

    def range_of(self, value: Any) -> tuple[Any, Any]:
        """The lowest and the highest value of a batch, as the class describes it."""
        return _range_of(value, self.bits)

    def _range_of_batches(self, value: Any) -> tuple[Any, Any]:
        """The average range of the batches that a value brings together; a constant brings none.

        With 8 bits it is an average over samples, of whatever batch.
        """
        if self.bits == 8 or self.together == 1 or value.shape[0] % self.together:
            return self.range_of(value)
        found = [self.range_of(part) for part in ops.split(value, self.together)]
        low, high = (sum(ends) / self.together for ends in zip(*found, strict=True))
        return low, high

    def on_grid(self, value: Any, low: Any, high: Any) -> Any:
        """The value on the grid of a range."""
        if self.bits == 8 and _has_own_operation(value):
            return _on_256_levels(value, _lowest_of_8_bits(low, high), high)
        step, zero = self._step_and_zero(low, high)
        lowest, highest = -zero, self.largest_code - zero
        if not self.is_learned:
            return _on_levels(value, step, lowest, highest)
        return _on_learned_levels(value, read(self.factor), step, lowest, highest)

    def forget(self) -> None:
        """Be as if no batch had been seen, unless the range was learned."""
        if not self.is_learned or float(ops.convert_to_numpy(self.factor)) == 1.0:
            self.batches.assign(0)
            self.is_seen = False

    def refresh(self) -> None:
        """Look at the variables again, after they were loaded."""
        self.is_seen = int(ops.convert_to_numpy(self.batches)) > 0

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest value of the grid, which holds zero; None before any batch was seen."""
        if not self.is_seen:
            return None
        numbers = self._step_and_zero(read(self.low), read(self.high))
        step, zero = (float(ops.convert_to_numpy(number)) for number in numbers)
        return -zero * step, (self.largest_code - zero) * step

    def get_config(self) -> dict[str, Any]:
        """What makes it again."""
        return {**super().get_config(), "bits": self.bits, "is_seen": self.is_seen}

    def compute_output_shape(self, shape: Any) -> Any:
        """That of the input."""
        return shape

    def _step_and_zero(self, low: Any, high: Any) -> tuple[Any, Any]:
        """The step of a range, and how many levels lie below zero."""
        if self.bits == 8:
            low = _lowest_of_8_bits(low, high)
        step = (high - low) / self.largest_code
        factor = ops.maximum(read(self.factor), SMALLEST_FACTOR) if self.is_learned else 1.0
        return step * factor, ops.round(-low / step)

    def _observe(self, found: tuple[Any, Any]) -> None:
        count = self.together if self.is_calibrating else 1
        self.batches.assign_add(count)
        weight = ops.maximum(count / ops.cast(self.batches, "float32"), RANGE_MOMENTUM)
        for average, new in zip((self.low, self.high), found, strict=True):
            average.assign(average + weight * (ops.stop_gradient(ops.cast(new, "float32")) - average))


def _range_of(value: Any, bits: int) -> tuple[Any, Any]:
    if bits == 1:
        return 0.0, _upper_level(value)
    if bits == 8:
        return range_of_8_bits(value, value)
    return _clipped(ops.convert_to_numpy(value), 2**bits - 1)


def range_of_8_bits(lowest: Any, highest: Any) -> tuple[Any, Any]:
    """The range of a batch, from its values or from the lowest and highest of parts of each sample."""
    axes = tuple(range(1, len(lowest.shape)))
    low, high = ops.min(lowest, axes), ops.max(highest, axes)
    return ops.minimum(ops.mean(low), 0), ops.maximum(ops.mean(ops.maximum(high, -low)), SMALLEST_RANGE)


def _lowest_of_8_bits(low: Any, high: Any) -> Any:
    """As far below zero as above, and a step, where there are negative values."""
    return ops.where(low < 0, high * (-128 / 127), low)


def _clipped(value: NDArray[Any], largest_code: int) -> tuple[float, float]:
    """The part of a range whose grid has the least squared error."""
    low, high = min(float(value.min()), 0.0), max(float(value.max()), SMALLEST_RANGE)
    errors = []
    for clip in grids.CLIPS:
        step = (high - low) * clip / largest_code
        zero = round(-low * clip / step)
        codes = np.clip(np.round(value / step), -zero, largest_code - zero)
        errors.append(float(np.square(codes * step - value).mean()))
    best = grids.CLIPS[int(np.argmin(errors))]
    return low * best, high * best


def _upper_level(value: Any) -> Any:
    """The upper one of two levels, the lower of which is 0: the mean of the values nearer to it than to 0 (Lloyd's algorithm)."""
    high = ops.maximum(ops.max(value), SMALLEST_RANGE)
    for _ in range(LLOYD_STEPS):
        above = ops.cast(value > high / 2, value.dtype)
        high = ops.maximum(ops.sum(value * above) / ops.maximum(ops.sum(above), 1), SMALLEST_RANGE)
    return high


def _has_own_operation(value: Any) -> bool:
    return keras.backend.standardize_dtype(value.dtype) == "float32" and is_tensorflow_on_a_cpu()


def _on_256_levels(value: Any, low: Any, high: Any) -> Any:
    """What `_on_levels` does by TensorFlow's own operation: in one pass, and traced in a fraction of the time.

    Ties go up, and no gradient passes where a value is outside of the range by less than half a step.
    """
    import tensorflow as tf

    return tf.quantization.fake_quant_with_min_max_vars(value, low, high, num_bits=8)


@differentiated
def _on_levels(value: Any, step: Any, lowest: Any, highest: Any) -> Any:
    """The nearest level, with a gradient of 1 inside the range."""
    codes = ops.clip(ops.round(value * (1 / step)), lowest, highest)

    def gradients(gradient: Any) -> Any:
        return _pass_inside(gradient, value, step, lowest, highest), *map(ops.zeros_like, (step, lowest, highest))

    return codes * step, gradients


@differentiated
def _on_learned_levels(value: Any, factor: Any, step: Any, lowest: Any, highest: Any) -> Any:
    """The same with a step that learns; see `_on_learned_grid` in weights.py."""
    scaled = value / step
    codes = ops.clip(ops.round(scaled), lowest, highest)

    def gradients(gradient: Any) -> Any:
        passed = _pass_inside(gradient, value, step, lowest, highest)
        # inside the range the step's gradient is (code - scaled), outside it is the code
        towards = ops.sum(gradient * codes) - ops.sum(passed * scaled)
        balance = ops.sqrt(ops.cast(ops.size(value[0]), "float32") * (highest - lowest))
        learned = towards / balance * ops.maximum(factor, SMALLEST_FACTOR) / step
        return passed, learned, *map(ops.zeros_like, (step, lowest, highest))

    return codes * step, gradients


def _pass_inside(gradient: Any, value: Any, step: Any, lowest: Any, highest: Any) -> Any:
    """The gradient where a value rounds to a level in range, else 0."""
    inside = ops.logical_and(value >= (lowest - 0.5) * step, value <= (highest + 0.5) * step)
    return gradient * ops.cast(inside, gradient.dtype)
