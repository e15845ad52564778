"""Untrained Keras networks for the benchmarks: of each family of `keras.applications` the smallest variant, and others.

Applications have ten classes, no softmax, and the smallest images that they accept among 64, 96, …
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

SIDES = {"InceptionV3": 96, "InceptionResNetV2": 96, "Xception": 96}
SIDE = 64
APPLICATIONS: dict[str, dict[str, Any]] = {
    "ConvNeXtTiny": {},
    "DenseNet121": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "InceptionResNetV2": {},
    "InceptionV3": {},
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {},
    "MobileNetV3Large": {},
    "NASNetMobile": {},
    "ResNet50": {},
    "ResNet50V2": {},
    "VGG16": {},
    "Xception": {},
}


@dataclass(frozen=True)
class KerasNetwork:
    """One network.

    Attributes:
        name: of the architecture.
        family: "applications" or "own".
        make: gives the model, with random weights.
        inputs: gives random inputs for one sample, positional or by name.
    """

    name: str
    family: str
    make: Callable[[], keras.Model]
    inputs: Callable[[], Any]


def application(name: str) -> KerasNetwork:
    """An untrained network of `keras.applications`."""
    side = SIDES.get(name, SIDE)
    options = {"weights": None, "input_shape": (side, side, 3), "classes": 10, "classifier_activation": None}
    make = getattr(keras.applications, name)
    return KerasNetwork(name, "applications", lambda: make(**options, **APPLICATIONS[name]), lambda: (noise(side, side, 3),))


def noise(*shape: int) -> Any:
    """Floats for one sample."""
    return np.random.default_rng(5).normal(size=(1, *shape)).astype(np.float32)


def words(length: int = 16) -> Any:
    """Tokens of one sample."""
    return np.random.default_rng(5).integers(1, 100, (1, length)).astype(np.int32)


def convolution(value: Any, filters: int, size: int = 3, **options: Any) -> Any:
    """With norm and activation."""
    axis = 1 if options.get("data_format") == "channels_first" else -1
    value = layers.Conv2D(filters, size, padding="same", use_bias=False, **options)(value)
    return layers.ReLU()(layers.BatchNormalization(axis=axis)(value))


def sequential() -> keras.Model:
    """As most tutorials begin."""
    stack = [keras.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D()]
    stack += [layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(), layers.Dropout(0.5)]
    return keras.Sequential([*stack, layers.Dense(64, activation="relu"), layers.Dense(10)])


def nested() -> keras.Model:
    """Transfer learning: an application inside a model."""
    base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(64, 64, 3), alpha=0.35)
    base.trainable = False
    x = keras.Input((64, 64, 3))
    y = ops.mean(base(layers.Rescaling(1 / 127.5, -1)(x), training=False), axis=(1, 2))
    return keras.Model(x, layers.Dense(10)(layers.Dense(64, activation="relu")(y)))


class ResidualBlock(layers.Layer):
    """A block as users write them."""

    def __init__(self, filters: int, strides: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.first = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)
        self.norm1, self.norm2 = layers.BatchNormalization(), layers.BatchNormalization()
        self.second = layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.shortcut = layers.Conv2D(filters, 1, strides) if strides > 1 else layers.Identity()

    def call(self, x: Any, training: Any = None) -> Any:
        """Two convolutions beside a shortcut."""
        y = ops.relu(self.norm1(self.first(x), training=training))
        return ops.relu(self.norm2(self.second(y), training=training) + self.shortcut(x))


class Subclassed(keras.Model):
    """A model of such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layers.Conv2D(16, 3, padding="same")
        self.blocks = [ResidualBlock(16), ResidualBlock(32, 2), ResidualBlock(32)]
        self.head = layers.Dense(10)

    def call(self, x: Any, training: Any = None) -> Any:
        """Images to classes."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(ops.mean(x, axis=(1, 2)))


def subclassed() -> keras.Model:
    """Built by a call."""
    model = Subclassed()
    model(noise(32, 32, 3))
    return model


def encoder(value: Any, heads: int, width: int, hidden: int, **attention: Any) -> Any:
    """A transformer's block, pre-norm."""
    y = layers.LayerNormalization()(value)
    value = value + layers.MultiHeadAttention(heads, width // heads)(y, y, **attention)
    y = layers.LayerNormalization()(value)
    return value + layers.Dense(width)(layers.Dense(hidden, activation="gelu")(y))


def vision_transformer() -> keras.Model:
    """Patches and attention."""
    x = keras.Input((32, 32, 3))
    y = layers.Reshape((-1, 64))(layers.Conv2D(64, 8, 8)(x))
    for _ in range(3):
        y = encoder(y, 4, 64, 256)
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(y))))


def text_transformer() -> keras.Model:
    """Embeddings and causal attention."""
    x = keras.Input((16,), dtype="int32")
    y = layers.Embedding(100, 64)(x)
    for _ in range(2):
        y = encoder(y, 4, 64, 256, use_causal_mask=True)
    return keras.Model(x, layers.Dense(10)(y[:, -1]))


class HandMadeAttention(layers.Layer):
    """Heads split by hand from one matrix."""

    def __init__(self, heads: int, width: int, **options: Any) -> None:
        super().__init__(**options)
        self.heads, self.width = heads, width
        self.qkv, self.out = layers.Dense(3 * width), layers.Dense(width)

    def call(self, x: Any) -> Any:
        """softmax(q kᵀ) v."""
        length = x.shape[1]
        parts = ops.reshape(self.qkv(x), (-1, length, 3, self.heads, self.width // self.heads))
        q, k, v = ops.unstack(ops.transpose(parts, (2, 0, 3, 1, 4)), axis=0)
        weights = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) / self.width**0.5)
        return self.out(ops.reshape(ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3)), (-1, length, self.width)))


def hand_made_attention() -> keras.Model:
    """Two blocks of it."""
    x = keras.Input((16, 32))
    y = layers.Dense(64)(x)
    for _ in range(2):
        y = y + HandMadeAttention(4, 64)(layers.LayerNormalization()(y))
        y = y + layers.Dense(64)(layers.Dense(128, activation="relu")(layers.LayerNormalization()(y)))
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)))


def convolution_1d() -> keras.Model:
    """Sequences."""
    x = keras.Input((64, 4))
    y = layers.Conv1D(32, 5, padding="same", activation="relu")(x)
    y = layers.SeparableConv1D(48, 3, activation="relu")(layers.MaxPooling1D(2)(y))
    y = layers.Conv1D(64, 3, dilation_rate=2, activation="relu")(layers.BatchNormalization()(y))
    return keras.Model(x, layers.Dense(10)(layers.GlobalMaxPooling1D()(y)))


def convolution_3d() -> keras.Model:
    """Volumes."""
    x = keras.Input((16, 16, 16, 1))
    y = layers.Conv3D(16, 3, activation="relu")(x)
    y = layers.BatchNormalization()(layers.Conv3D(24, 3)(layers.MaxPooling3D(2)(y)))
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling3D()(layers.ReLU()(y))))


def channels_first() -> keras.Model:
    """A residual network with the channels first."""
    x = keras.Input((3, 32, 32))
    first = {"data_format": "channels_first"}
    y = convolution(x, 16, **first)
    z = convolution(convolution(y, 16, **first), 16, **first)
    y = convolution(layers.Add()([y, z]), 32, strides=2, **first)
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling2D(**first)(y)))


def autoencoder() -> keras.Model:
    """Skips that are put beside, and transposed convolutions."""
    x = keras.Input((32, 32, 3))
    one = convolution(x, 16)
    two = convolution(one, 32, strides=2)
    up = layers.Conv2DTranspose(16, 3, 2, padding="same", activation="relu")(convolution(two, 32))
    both = convolution(layers.Concatenate()([up, one]), 16)
    resized = layers.UpSampling2D(interpolation="bilinear")(layers.AveragePooling2D(2)(both))
    return keras.Model(x, layers.Conv2D(3, 1, activation="sigmoid")(layers.Concatenate()([both, resized])))


def gated() -> keras.Model:
    """Halves, scales and reductions by operations."""
    x = keras.Input((32, 32, 3))
    y = convolution(x, 16)
    value, gate = ops.split(layers.Conv2D(48, 1)(y), 2, axis=-1)
    y = value * ops.sigmoid(gate)
    scale = ops.mean(y, axis=(1, 2), keepdims=True)
    scale = layers.Conv2D(24, 1, activation="sigmoid")(layers.Conv2D(8, 1, activation="relu")(scale))
    y = ops.multiply(y, scale)
    y = ops.concatenate([ops.max(y, axis=(1, 2)), ops.mean(y, axis=(1, 2))], axis=-1)
    return keras.Model(x, layers.Dense(10)(y))


def mixer() -> keras.Model:
    """Dense layers over positions and over channels in turns."""
    x = keras.Input((32, 32, 3))
    y = layers.Reshape((64, 32))(layers.Conv2D(32, 4, 4)(x))
    for _ in range(2):
        z = layers.Permute((2, 1))(layers.LayerNormalization()(y))
        z = layers.Dense(64)(layers.Dense(48, activation="gelu")(z))
        y = layers.Add()([y, layers.Permute((2, 1))(z)])
        z = layers.Dense(128, activation="gelu")(layers.LayerNormalization()(y))
        y = layers.Add()([y, layers.Dense(32)(z)])
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)))


def named_inputs_and_outputs() -> keras.Model:
    """Dicts on both sides, and a layer that is shared."""
    left, right = keras.Input((24,), name="left"), keras.Input((24,), name="right")
    shared = keras.Sequential([keras.Input((24,)), layers.Dense(32, activation="relu"), layers.Dense(16)], name="tower")
    both = layers.Concatenate()([shared(left), shared(right)])
    hidden = layers.Dense(32, activation="relu")(both)
    outputs = {"classes": layers.Dense(10, name="classes")(hidden), "score": layers.Dense(1, name="score")(hidden)}
    return keras.Model({"left": left, "right": right}, outputs)


def grouped() -> keras.Model:
    """Grouped convolutions and a group normalization."""
    x = keras.Input((32, 32, 3))
    y = convolution(convolution(x, 32), 32, groups=8)
    y = layers.ReLU()(layers.GroupNormalization(8)(layers.Conv2D(64, 3, groups=4)(y)))
    return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling2D()(y)))


def recurrent() -> keras.Model:
    """What comes before and behind a recurrent layer."""
    x = keras.Input((32, 8))
    y = layers.Conv1D(24, 3, activation="relu")(layers.Conv1D(32, 3, activation="relu")(x))
    y = layers.Bidirectional(layers.LSTM(16))(y)
    return keras.Model(x, layers.Dense(10)(layers.Dense(32, activation="relu")(y)))


OWN: dict[str, tuple[Callable[[], keras.Model], Callable[[], Any]]] = {
    "sequential": (sequential, lambda: (noise(28, 28, 1),)),
    "nested": (nested, lambda: (noise(64, 64, 3),)),
    "subclassed": (subclassed, lambda: (noise(32, 32, 3),)),
    "vision_transformer": (vision_transformer, lambda: (noise(32, 32, 3),)),
    "text_transformer": (text_transformer, lambda: (words(),)),
    "hand_made_attention": (hand_made_attention, lambda: (noise(16, 32),)),
    "convolution_1d": (convolution_1d, lambda: (noise(64, 4),)),
    "convolution_3d": (convolution_3d, lambda: (noise(16, 16, 16, 1),)),
    "channels_first": (channels_first, lambda: (noise(3, 32, 32),)),
    "autoencoder": (autoencoder, lambda: (noise(32, 32, 3),)),
    "gated": (gated, lambda: (noise(32, 32, 3),)),
    "mixer": (mixer, lambda: (noise(32, 32, 3),)),
    "named_inputs_and_outputs": (named_inputs_and_outputs, lambda: {"left": noise(24), "right": noise(24)}),
    "grouped": (grouped, lambda: (noise(32, 32, 3),)),
    "recurrent": (recurrent, lambda: (noise(32, 8),)),
}
NETWORKS = {name: application(name) for name in APPLICATIONS} | {
    name: KerasNetwork(name, "own", make, inputs) for name, (make, inputs) in OWN.items()
}
