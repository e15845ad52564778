"""The ResNet of three blocks for 28×28 images of `mnist_resnet8`, in Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def resnet8(width: int) -> keras.Model:
    """Stem, three blocks at full, half and quarter resolution, global average, logits of ten classes; images (N, 28, 28, 1)."""
    images = keras.Input((28, 28, 1), name="images")
    value = layers.ReLU(name="relu")(_normalized(images, width, 3, 1, "stem"))
    for index, strides in enumerate((1, 2, 2)):
        value = _block(value, width * 2**index, strides, f"block{index + 1}")
    value = layers.GlobalAveragePooling2D(name="average")(value)
    return keras.Model(images, layers.Dense(10, name="fc")(value), name="resnet8")


def _block(value: Any, outputs: int, strides: int, name: str) -> Any:
    inner = layers.ReLU(name=f"{name}_relu1")(_normalized(value, outputs, 3, strides, f"{name}_conv1"))
    inner = _normalized(inner, outputs, 3, 1, f"{name}_conv2")
    if strides > 1 or value.shape[-1] != outputs:
        value = _normalized(value, outputs, 1, strides, f"{name}_shortcut")
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([inner, value]))


def _normalized(value: Any, outputs: int, size: int, strides: int, name: str) -> Any:
    """A convolution with a batch norm, whose momentum is PyTorch's default.

    The padding is PyTorch's too: "same" pads unevenly where a stride is 2.
    """
    if size > 1:
        value = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(value)
    value = layers.Conv2D(outputs, size, strides, use_bias=False, name=name)(value)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(value)
