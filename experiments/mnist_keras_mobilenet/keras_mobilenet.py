"""The small MobileNetV2 of `mnist_mobilenet`, in Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

EXPANSION = 4
BLOCKS = [(32, 1), (48, 2), (48, 1), (80, 2), (80, 1)]
"""Output channels and stride of each inverted residual."""
STEM, HEAD = 32, 128


def mobilenet() -> keras.Model:
    """Stem at half resolution, five inverted residuals, a 1×1 convolution, global average, ten classes; (N, 28, 28, 1) in."""
    images = keras.Input((28, 28, 1), name="images")
    value = _active(layers.Conv2D(STEM, 3, 2, padding="same", use_bias=False, name="stem")(images), "stem")
    for index, (outputs, strides) in enumerate(BLOCKS):
        value = _inverted_residual(value, outputs, strides, f"block{index}")
    value = _active(layers.Conv2D(HEAD, 1, use_bias=False, name="head")(value), "head")
    value = layers.GlobalAveragePooling2D(name="average")(value)
    return keras.Model(images, layers.Dense(10, name="classifier")(value), name="mobilenet")


def _inverted_residual(value: Any, outputs: int, strides: int, name: str) -> Any:
    """Expand, filter each channel by itself, project; added to the input where the shapes agree."""
    inner = layers.Conv2D(EXPANSION * value.shape[-1], 1, use_bias=False, name=f"{name}_expand")(value)
    inner = _active(inner, f"{name}_expand")
    inner = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False, name=f"{name}_filter")(inner)
    inner = _active(inner, f"{name}_filter")
    inner = _normalized(layers.Conv2D(outputs, 1, use_bias=False, name=f"{name}_project")(inner), f"{name}_project")
    is_residual = strides == 1 and value.shape[-1] == outputs
    return layers.Add(name=f"{name}_add")([value, inner]) if is_residual else inner


def _normalized(value: Any, name: str) -> Any:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(value)


def _active(value: Any, name: str) -> Any:
    return layers.ReLU(6.0, name=f"{name}_relu")(_normalized(value, name))
