"""One-dimensional networks: as images of a height of one they compute the same, and every layer gets an integer kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import keras_models as models
import numpy as np
import pytest
from keras import layers, ops

import autocompress as ac
from autocompress.device import Target
from autocompress.frameworks.keras.framework import KerasFramework
from autocompress.frameworks.keras.graph import functional, heavy_layers, layers_by_name, rebuild
from autocompress.frameworks.keras.one_dimensional import as_images
from autocompress.target.executed import kernels
from autocompress.target.precision import heavy_nodes, place_precision
from autocompress.target.runtime import compile_model

SEQUENCES = np.random.default_rng(0).normal(size=(3, 24, 6)).astype(np.float32)


def chain(*stack: layers.Layer) -> Callable[[], keras.Model]:
    return lambda: keras.Sequential([keras.Input((24, 6)), *stack])


def dilated_and_grouped() -> keras.Model:
    x = keras.Input((24, 6))
    y = layers.Conv1D(8, 3, dilation_rate=2, padding="causal", activation="tanh", name="causal")(x)
    y = layers.Conv1D(8, 3, 2, padding="same", groups=2, name="grouped")(layers.BatchNormalization()(y))
    return keras.Model(x, layers.Concatenate()([ops.relu(y), y * 2.0]))


def nested() -> keras.Model:
    """A nested model that is called with images and with sequences, and a shared layer."""
    inner = keras.Sequential([keras.Input((None, 6)), layers.Conv1D(6, 3, padding="same"), layers.ReLU()], name="inner")
    shared, x = layers.Conv1D(6, 3, padding="same", name="shared"), keras.Input((None, 6))
    y = layers.Add()([shared(shared(x)), inner(x)])
    y = inner(layers.LayerNormalization()(layers.SpatialDropout1D(0.5)(inner(y))))
    return keras.Model(x, {"sequence": y, "mean": layers.GlobalAveragePooling1D(keepdims=True)(y)})


def masked() -> keras.Model:
    x = keras.Input((24, 6))
    y = layers.Masking(0.5)(layers.Conv1D(8, 3, padding="same")(x))
    return keras.Model(x, layers.GlobalAveragePooling1D()(y))


def shared_norm() -> keras.Model:
    """A norm that is called with an image first, and then with a sequence."""
    norm, x = layers.BatchNormalization(name="norm"), keras.Input((24, 6))
    y = norm(layers.Conv1D(6, 3, padding="same", name="first")(x))
    return keras.Model(x, layers.Add()([y, norm(layers.LayerNormalization()(x))]))


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "dilated and grouped": dilated_and_grouped,
    "nested": nested,
    "masked": masked,
    "shared norm": shared_norm,
    "separable": chain(layers.SeparableConv1D(8, 3, 2, depth_multiplier=2), layers.PReLU(), layers.Dense(4)),
    "depthwise": chain(layers.DepthwiseConv1D(3, 3, padding="same", depth_multiplier=2), layers.MaxPooling1D(2)),
    "transposed": chain(layers.Conv1DTranspose(5, 3, 2, padding="same", output_padding=0), layers.Cropping1D((1, 2))),
    "resized": chain(layers.ZeroPadding1D((2, 1)), layers.Conv1D(4, 3), layers.UpSampling1D(3), layers.AveragePooling1D(2, 1)),
    "global": chain(layers.Conv1D(4, 3), layers.Activation("relu"), layers.GlobalMaxPooling1D()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_a_height_of_one_give_the_same(name: str) -> None:
    model = functional(models.seeded(NETWORKS[name]), (SEQUENCES,))
    plain = rebuild(model, lambda name, layer: None)
    turned, _ = as_images(plain, {})
    assert list(heavy_layers(turned)) == list(heavy_layers(plain))
    assert not any("1D" in type(layer).__name__ for layer in layers_by_name(turned).values()) or name == "masked"
    actual, expected = (keras.tree.flatten(one(SEQUENCES, training=False)) for one in (turned, model))
    assert [output.shape for output in actual] == [output.shape for output in expected]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_network_without_sequences_is_left_as_it_is() -> None:
    model = models.build("conv")
    assert as_images(model, {})[0] is model


def test_every_layer_gets_an_integer_kernel_and_codes_of_its_shape() -> None:
    stack = [layers.Conv1D(16, 3, activation="relu"), layers.BatchNormalization(), layers.Conv1D(16, 3, dilation_rate=2)]
    stack += [layers.ReLU(), layers.DepthwiseConv1D(3, activation="relu"), layers.SeparableConv1D(24, 3, activation="relu")]
    model = models.seeded(chain(*stack, layers.GlobalAveragePooling1D(), layers.Dense(10)))
    data: Any = (SEQUENCES, np.zeros(3, np.int64))
    task, framework = ac.Task(model, train=data, valid=data, loss=models.cross_entropy()), KerasFramework()
    policy = ac.Policy({}, {layer.name: ac.LayerPolicy(8, 8) for layer in framework.inspect(task).layers})
    converted = framework.to_openvino(task, framework.compress(task, policy, "l2"), 1)
    assert {grid.codes.ndim for name, grid in converted.grids.items() if not name.startswith("dense")} == {4}
    assert set(heavy_nodes(converted.model)) == set(converted.grids) == set(policy.layers)
    compiled = compile_model(place_precision(converted, policy, [(SEQUENCES[:1],)]), Target())
    assert all(kernel.is_integer for kernel in kernels(compiled, policy.layers).values())
    assert np.isfinite(compiled((SEQUENCES[:1],))[0]).all()
