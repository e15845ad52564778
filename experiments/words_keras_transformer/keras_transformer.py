"""A small transformer encoder (Vaswani et al., 2017; layer norm first) that puts a word into one of several classes, in Keras."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


def word_classifier(letters: int, length: int, classes: int, width: int = 64, heads: int = 4, depth: int = 2) -> keras.Model:
    """Letters and their places embedded, encoder layers, the average of all letters, classes; letter codes (N, length) in."""
    words = keras.Input((length,), dtype="int32", name="words")
    places = ops.cumsum(ops.ones_like(words), axis=1) - 1
    value = layers.Embedding(letters, width, name="letters")(words) + layers.Embedding(length, width, name="places")(places)
    for index in range(depth):
        value = _layer(value, width, heads, f"layer{index}")
    value = layers.GlobalAveragePooling1D(name="average")(layers.LayerNormalization(name="norm")(value))
    return keras.Model(words, layers.Dense(classes, name="classifier")(value), name="words")


def _layer(value: Any, width: int, heads: int, name: str) -> Any:
    """Attention, then two dense layers for each letter, both added to their input."""
    seen = layers.LayerNormalization(name=f"{name}_norm1")(value)
    value = value + layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(seen, seen)
    hidden = layers.LayerNormalization(name=f"{name}_norm2")(value)
    hidden = layers.Dense(4 * width, activation="gelu", name=f"{name}_expand")(hidden)
    return value + layers.Dense(width, name=f"{name}_project")(hidden)
