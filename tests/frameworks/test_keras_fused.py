"""Batch norms by TensorFlow's own operation are those of Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from autocompress.frameworks.keras.fused import fused_norms

SHAPES = {"dense": (6,), "sequence": (5, 6), "image": (4, 5, 6)}


def norm_of(shape: tuple[int, ...], **options: Any) -> keras.Model:
    """A model of one batch norm with statistics and weights of its own."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.BatchNormalization(momentum=0.8, epsilon=1e-5, **options)(inputs))
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in model.get_weights()])
    return model


def after_a_step(model: keras.Model, value: Any, training: bool) -> list[Any]:
    """Outputs, gradients and the statistics that the step leaves."""
    with tf.GradientTape() as tape:
        tape.watch(value)
        output = model(value, training=training)
        loss = tf.reduce_sum(output**3)
    gradients = tape.gradient(loss, [value, *(variable.value for variable in model.trainable_variables)])
    return [output, *gradients, *(variable.numpy() for variable in model.non_trainable_variables)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"trainable": False}], ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_fused_batch_norm_computes_and_learns_what_keras_does(kind: str, options: dict[str, bool], training: bool) -> None:
    shape = SHAPES[kind]
    value = tf.constant(np.random.default_rng(1).normal(2, 3, (8, *shape)), tf.float32)
    expected = after_a_step(norm_of(shape, **options), value, training)
    model = norm_of(shape, **options)
    with fused_norms(model):
        assert "call" in vars(model.layers[-1])
        found = after_a_step(model, value, training)
    assert "call" not in vars(model.layers[-1])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-3)


@pytest.mark.parametrize("options", [{"renorm": True}, {"axis": 1}], ids=str)
def test_other_batch_norms_stay_keras_own(options: dict[str, Any]) -> None:
    model = norm_of((4, 5, 6), **options)
    with fused_norms(model):
        assert "call" not in vars(model.layers[-1])


def test_values_that_are_masked_do_not_count() -> None:
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, layers.BatchNormalization()(layers.Masking()(inputs)))
    value = np.random.default_rng(0).normal(2, 3, (8, 5, 6)).astype(np.float32)
    value[:, 3:] = 0
    with fused_norms(model):
        model(value, training=True)
    np.testing.assert_allclose(model.layers[-1].moving_mean, 0.01 * value[:, :3].mean((0, 1)), rtol=1e-4)


def test_whole_numbers_are_normalized_too() -> None:
    inputs = keras.Input((4, 5, 6), dtype="int32")
    model = keras.Model(inputs, layers.BatchNormalization()(inputs=inputs))
    value = np.arange(240).reshape(2, 4, 5, 6)
    expected = model(value, training=False)
    with fused_norms(model):
        np.testing.assert_allclose(model(value, training=False), expected, rtol=1e-5)


class Unused(layers.Layer):
    """Holds a batch norm that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.built = True

    def call(self, value: Any) -> Any:
        """The value."""
        return value


def test_a_batch_norm_that_was_never_built_is_left_alone() -> None:
    inputs = keras.Input((6,))
    with fused_norms(keras.Model(inputs, Unused()(inputs))):
        pass


def test_replaced_calls_may_be_replaced_again() -> None:
    model = norm_of((6,))
    norm = model.layers[-1]
    with fused_norms(model):
        first = norm.call
        with fused_norms(model):
            assert norm.call is not first
        assert norm.call is first
