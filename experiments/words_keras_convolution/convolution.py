"""A small one-dimensional convolutional network that puts a word into one of several classes, in Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

WIDTHS = (128, 128, 192)


def word_classifier(letters: int, length: int, classes: int, width: int = 64) -> keras.Model:
    """Letters embedded, three convolutions along the word, the largest of each channel, classes; letter codes (N, length) in."""
    words = keras.Input((length,), dtype="int32", name="words")
    value = layers.Embedding(letters, width, name="letters")(words)
    for index, outputs in enumerate(WIDTHS):
        value = _normalized(value, outputs, f"conv{index + 1}")
    value = layers.GlobalMaxPooling1D(name="largest")(value)
    return keras.Model(words, layers.Dense(classes, name="classifier")(value), name="words")


def _normalized(value: Any, outputs: int, name: str) -> Any:
    """A convolution over three letters, its batch norm and ReLU."""
    value = layers.Conv1D(outputs, 3, padding="same", use_bias=False, name=name)(value)
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(value))
