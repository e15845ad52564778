"""A small one-dimensional convolutional network that tells the language of a word, trained once and kept in a cache."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import convolution
import keras
import numpy as np

import autocompress as ac

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share
import words
from keras_originals import Batches, cosine, trained_once

BATCH = 128
EPOCHS, LEARNING_RATE = 8, 2e-3


class Shuffled:
    """Training batches, in another order in every pass."""

    def __init__(self, codes: Any, languages: Any) -> None:
        self.data, self.generator = (codes, languages), np.random.default_rng(0)

    def __len__(self) -> int:
        return math.ceil(len(self.data[0]) / BATCH)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        order = self.generator.permutation(len(self.data[0]))
        return (tuple(part[chosen] for part in self.data) for chosen in np.array_split(order, len(self)))


def original(batches: Batches) -> keras.Model:
    """The trained network, compiled."""
    keras.utils.set_random_seed(0)
    model = convolution.word_classifier(1 + len(words.LETTERS), words.LONGEST, len(words.LISTS))
    optimizer = keras.optimizers.AdamW(cosine(LEARNING_RATE, EPOCHS, batches), weight_decay=1e-2)
    return trained_once("words_keras_convolution", model, batches, optimizer, EPOCHS, convolution, words)


def make_task() -> ac.Task:
    """The task of this experiment. Loss and kind of optimizer are those that the model was compiled with; data are arrays."""
    parts = {name: (codes.numpy().astype(np.int32), languages.numpy()) for name, (codes, languages) in words.splits().items()}
    return ac.Task(
        original(Shuffled(*parts["train"])),
        **parts,
        batch_size=BATCH,
        metric="accuracy",
        preprocessing={"letters": words.LETTERS, "length": words.LONGEST, "languages": list(words.LISTS)},
        learning_rate=1e-3,
        epochs=1,
        name="Language of a word, in Keras",
    )
