"""Batch norms by TensorFlow's own operation, where a model is trained, or called with whole batches.

Keras computes them from means, squares and sums, each of which goes through all of the data and is kept for the gradient. On a
CPU that is a seventh of a ResNet-8's step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
from keras import ops

from autocompress.frameworks.keras.batches import batch_norms
from autocompress.frameworks.keras.calls import calls_replaced
from autocompress.frameworks.keras.straight import read


def fused_norms(*models: keras.Model) -> AbstractContextManager[None]:
    """Within it, the batch norms of some models are computed so where that gives the same."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    return calls_replaced([norm for model in models for norm in batch_norms(model) if _can_be_fused(norm)], _fused)


def _can_be_fused(norm: Any) -> bool:
    is_plain = type(norm) is keras.layers.BatchNormalization and not norm.renorm and not norm.synchronized
    if not is_plain or not norm.built:  # a user's layer may hold one that it never calls
        return False
    ndim = norm.input_spec.ndim
    return 2 <= ndim <= 4 and norm.axis in (-1, ndim - 1) and norm.compute_dtype == "float32"


def _fused(norm: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def called(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is not None:
            return original(inputs, training=training, mask=mask)
        learns = bool(training and norm.trainable)
        output, mean, variance = _normalized(norm, ops.cast(inputs, "float32"), learns)
        if learns:
            count = ops.cast(ops.size(inputs) // ops.shape(inputs)[-1], "float32")
            for moving, now in ((norm.moving_mean, mean), (norm.moving_variance, variance * (count - 1) / count)):
                moving.assign(read(moving) * norm.momentum + now * (1 - norm.momentum))
        return output

    return called


def _normalized(norm: Any, value: Any, learns: bool) -> tuple[Any, Any, Any]:
    """The output, and the mean and the unbiased variance of the batch."""
    import tensorflow as tf

    mean, variance = read(norm.moving_mean), read(norm.moving_variance)
    scale = read(norm.gamma) if norm.scale else ops.ones_like(mean)
    offset = read(norm.beta) if norm.center else ops.zeros_like(mean)
    added = list(range(1, 5 - len(value.shape)))
    image = ops.expand_dims(value, added) if added else value
    statistics = {"mean": tf.zeros(0), "variance": tf.zeros(0)} if learns else {"mean": mean, "variance": variance}
    found = tf.raw_ops.FusedBatchNormV3(
        x=image, scale=scale, offset=offset, **statistics, epsilon=norm.epsilon, is_training=learns
    )
    return ops.squeeze(found.y, added) if added else found.y, found.batch_mean, found.batch_variance
