"""The models of `models.py` in Keras, on the same data with the channels last."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import models
import numpy as np
from keras import layers, ops

import autocompress as ac

Arrays = tuple[Any, Any]
MOMENTUM = 0.8
"""Of batch norms: the models are trained for fewer steps than Keras' default needs."""


def channels_last(arrays: Any) -> Arrays:
    """Images (N, 8, 8, 1) and classes."""
    images, classes = arrays
    return np.moveaxis(images.numpy(), 1, -1), classes.numpy()


@cache
def digits() -> dict[str, Arrays]:
    """As `models.digits`."""
    return {name: channels_last(arrays) for name, arrays in models.digits().items()}


@cache
def diabetes() -> dict[str, Arrays]:
    """As `models.diabetes`."""
    return {name: (inputs.numpy(), targets.numpy()) for name, (inputs, targets) in models.diabetes().items()}


def image() -> Any:
    return keras.Input((8, 8, 1), name="image")


def conv(filters: int, size: int, name: str, strides: int = 1, **options: Any) -> layers.Layer:
    return layers.Conv2D(filters, size, strides, padding="same", name=name, **options)


def norm(value: Any, name: str) -> Any:
    return layers.BatchNormalization(momentum=MOMENTUM, name=name)(value)


def classified(value: Any, name: str = "fc") -> Any:
    return layers.Dense(10, name=name)(layers.GlobalAveragePooling2D(name="pool")(value))


def conv_net() -> keras.Model:
    x = image()
    y = ops.relu(norm(conv(16, 3, "conv1", use_bias=False)(x), "bn1"))
    y = ops.relu(norm(conv(24, 3, "conv2", 2)(y), "bn2"))
    return disturbed(keras.Model(x, classified(y)))


def resnet_net(width: int = 16) -> keras.Model:
    def block(x: Any, outputs: int, strides: int, name: str) -> Any:
        y = ops.relu(norm(conv(outputs, 3, f"{name}_conv1", strides, use_bias=False)(x), f"{name}_bn1"))
        y = norm(conv(outputs, 3, f"{name}_conv2", use_bias=False)(y), f"{name}_bn2")
        if x.shape[-1] != outputs:
            x = norm(conv(outputs, 1, f"{name}_shortcut", strides, use_bias=False)(x), f"{name}_bn3")
        return ops.relu(layers.Add(name=f"{name}_add")([y, x]))

    x = image()
    y = ops.relu(norm(conv(width, 3, "stem", use_bias=False)(x), "bn"))
    return keras.Model(x, classified(block(block(y, width, 1, "block1"), 2 * width, 2, "block2")))


def flatten_net() -> keras.Model:
    x = image()
    y = layers.Flatten(name="flatten")(layers.ReLU(name="relu")(conv(8, 3, "conv", 2)(x)))
    return keras.Model(x, layers.Dense(10, name="fc")(y))


def mlp() -> keras.Model:
    parts = [layers.Flatten(), layers.Dense(32, "relu", name="fc1"), layers.Dense(24, "relu", name="fc2")]
    return keras.Sequential([keras.Input((8, 8, 1)), *parts, layers.Dense(10, name="fc3")])


def sequential() -> keras.Model:
    parts = [conv(16, 3, "conv", 2), layers.BatchNormalization(name="bn"), layers.ReLU(), layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 1)), *parts, layers.Dense(10, name="fc")])


def separable_net() -> keras.Model:
    x = image()
    y = layers.ReLU()(norm(conv(16, 3, "stem", use_bias=False)(x), "bn0"))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = layers.ReLU()(norm(y, "bn1"))
    return disturbed(keras.Model(x, classified(layers.ReLU()(norm(conv(24, 1, "pointwise", use_bias=False)(y), "bn2")))))


def grouped_net() -> keras.Model:
    x = image()
    y = layers.ReLU()(norm(conv(16, 3, "stem", use_bias=False)(x), "bn0"))
    y = norm(conv(32, 3, "grouped", groups=4, use_bias=False)(y), "bn1")
    return disturbed(keras.Model(x, classified(layers.ReLU()(y))))


def transposed_net() -> keras.Model:
    x = image()
    y = conv(16, 3, "conv", 2, activation="relu")(x)
    y = layers.ReLU()(norm(layers.Conv2DTranspose(8, 2, 2, name="up")(y), "bn"))
    return disturbed(keras.Model(x, classified(conv(16, 3, "last", activation="relu")(y))))


def conv1d_net() -> keras.Model:
    x = image()
    y = layers.Permute((2, 1))(layers.Reshape((8, 8))(x))
    y = layers.ReLU()(norm(layers.Conv1D(24, 3, padding="same", name="conv1")(y), "bn1"))
    y = layers.Conv1D(32, 3, 2, padding="same", activation="relu", name="conv2")(y)
    return keras.Model(x, layers.Dense(10, name="fc")(layers.GlobalAveragePooling1D()(y)))


def squeeze_excite_net() -> keras.Model:
    x = image()
    y = layers.ReLU()(norm(conv(16, 3, "conv", use_bias=False)(x), "bn"))
    scale = layers.Reshape((1, 1, 16))(layers.GlobalAveragePooling2D()(y))
    scale = conv(16, 1, "excite", activation="sigmoid")(conv(8, 1, "squeeze", activation="relu")(scale))
    return keras.Model(x, classified(layers.Multiply()([y, scale])))


def shared_net() -> keras.Model:
    x, shared = image(), layers.Dense(16, "relu", name="shared")
    y = layers.Dense(16, "relu", name="first")(layers.Flatten()(x))
    return keras.Model(x, layers.Dense(10, name="last")(shared(shared(y))))


def two_inputs() -> keras.Model:
    upper, lower = (keras.Input((4, 8, 1), name=name) for name in ("upper", "lower"))
    means = layers.GlobalAveragePooling2D()(conv(16, 3, "upper_conv", activation="relu")(upper))
    peaks = layers.GlobalMaxPooling2D()(conv(16, 3, "lower_conv", activation="relu")(lower))
    return keras.Model([upper, lower], layers.Dense(10, name="fc")(layers.Concatenate()([means, peaks])))


def two_outputs(as_dict: bool = False) -> keras.Model:
    x = image()
    y = layers.GlobalAveragePooling2D()(conv(16, 3, "conv", 2, activation="relu")(x))
    classes, shade = layers.Dense(10, name="classes")(y), layers.Dense(1, name="shade")(y)
    return keras.Model(x, {"classes": classes, "shade": shade} if as_dict else [classes, shade])


def regressor() -> keras.Model:
    x = keras.Input((10,), name="measurements")
    y = layers.Dense(32, "relu", name="fc2")(layers.Dense(32, "relu", name="fc1")(x))
    return keras.Model(x, layers.Dense(1, name="out")(y))


def disturbed(model: keras.Model) -> keras.Model:
    """Scales from -1.5 to 1.5 and statistics as if trained; every second scale is negative."""
    generator = np.random.default_rng(0)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for norm in norms:
        size = norm.gamma.shape[0]
        norm.gamma.assign(np.where(np.arange(size) % 2, -1, 1) * generator.uniform(0.5, 1.5, size))
        norm.beta.assign(0.3 * generator.standard_normal(size))
        norm.momentum = 0.0
    model(digits()["train"][0][:64], training=True)
    for norm in norms:
        norm.momentum = MOMENTUM
    return model


def attention_net() -> keras.Model:
    """Rows of the image look at each other; whole heads may go."""
    x = image()
    y = layers.Dense(32, name="embed")(layers.Reshape((8, 8))(x))
    y = layers.LayerNormalization(name="norm")(y + layers.MultiHeadAttention(4, 8, name="attention")(y, y))
    y = layers.GlobalAveragePooling1D()(layers.Dense(48, activation="relu", name="expand")(y))
    return keras.Model(x, layers.Dense(10, name="fc")(y))


CLASSIFIERS = {
    "conv": conv_net,
    "resnet": resnet_net,
    "flatten": flatten_net,
    "mlp": mlp,
    "sequential": sequential,
    "separable": separable_net,
    "grouped": grouped_net,
    "transposed": transposed_net,
    "conv1d": conv1d_net,
    "squeeze-excite": squeeze_excite_net,
    "shared": shared_net,
}
"""Models of images (N, 8, 8, 1) with one output (N, 10), which are logits."""


def build(name: str, seed: int = 0) -> keras.Model:
    """An untrained classifier, the same at every call, compiled with its loss alone."""
    return seeded(CLASSIFIERS[name], seed=seed)


def seeded(make: Any, *arguments: Any, seed: int = 0) -> keras.Model:
    """An untrained model of any kind, the same at every call."""
    keras.utils.set_random_seed(seed)
    return make(*arguments)


def cross_entropy() -> Any:
    """Of classes and logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trained(model: keras.Model, inputs: Any, targets: Any, epochs: int = 3) -> keras.Model:
    """The model, compiled and trained for a few seconds."""
    keras.utils.set_random_seed(0)
    loss = "mse" if targets.dtype.kind == "f" else cross_entropy()
    rate = keras.optimizers.schedules.CosineDecay(1e-2, epochs * -(-len(inputs) // 64))
    model.compile(keras.optimizers.AdamW(rate), loss, jit_compile=False)
    model.fit(inputs, targets, 64, epochs, verbose=0)
    return model


def digits_task(model: keras.Model, **options: Any) -> ac.Task:
    """A task on the digits; anything in `options` wins."""
    defaults: dict[str, Any] = {"epochs": 1, "name": "digits", "loss": cross_entropy(), **digits()}
    return ac.Task(model, **{**defaults, **options})


def small_task(model: keras.Model, **options: Any) -> ac.Task:
    """The same with 64 samples to train on and 32 to validate, for tests that do not look at accuracy."""
    parts = digits()
    few = {"train": tuple(a[:64] for a in parts["train"]), "valid": tuple(a[:32] for a in parts["valid"]), "test": None}
    return digits_task(model, **{**few, **options})


def halves(arrays: Arrays, named: bool = False) -> Arrays:
    """Images as two inputs, the upper and the lower half."""
    images, classes = arrays
    upper, lower = images[:, :4], images[:, 4:]
    return ({"upper": upper, "lower": lower} if named else (upper, lower)), classes


@cache
def resnet_weights() -> list[Any]:
    """Weights of the residual net at about 95 % of the digits; it is trained once."""
    weights: list[Any] = trained(seeded(resnet_net), *digits()["train"], epochs=4).get_weights()
    return weights


def resnet() -> keras.Model:
    """A fresh copy of the trained residual net."""
    model = resnet_net()
    model.set_weights(resnet_weights())
    return model
