"""What the Keras experiments with words share: the data as arrays, and the task of a network that tells a word's language."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import keras
import numpy as np
import words
from keras_originals import Batches, cosine, trained_once

import autocompress as ac

BATCH = 128
EPOCHS, LEARNING_RATE = 8, 2e-3
Classifier = Callable[[int, int, int], keras.Model]
"""Makes a network for so many letters, of words of a length, and so many classes."""


class Shuffled:
    """Training batches, in another order in every pass."""

    def __init__(self, codes: Any, languages: Any) -> None:
        self.data, self.generator = (codes, languages), np.random.default_rng(0)

    def __len__(self) -> int:
        return math.ceil(len(self.data[0]) / BATCH)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        order = self.generator.permutation(len(self.data[0]))
        return (tuple(part[chosen] for part in self.data) for chosen in np.array_split(order, len(self)))


def task_of(name: str, classifier: Classifier, code: ModuleType) -> ac.Task:
    """The task of an experiment. Loss and kind of optimizer are those that the model was compiled with; data are arrays.

    Args:
        name: of the experiment.
        classifier: makes its network.
        code: the module in which it stands.
    """
    parts = {part: (codes.numpy().astype(np.int32), languages.numpy()) for part, (codes, languages) in words.splits().items()}
    return ac.Task(
        _original(name, classifier, code, Shuffled(*parts["train"])),
        **parts,
        batch_size=BATCH,
        metric="accuracy",
        preprocessing={"letters": words.LETTERS, "length": words.LONGEST, "languages": list(words.LISTS)},
        learning_rate=1e-3,
        epochs=1,
        name="Language of a word, in Keras",
    )


def _original(name: str, classifier: Classifier, code: ModuleType, batches: Batches) -> keras.Model:
    """The trained network, compiled."""
    keras.utils.set_random_seed(0)
    model = classifier(1 + len(words.LETTERS), words.LONGEST, len(words.LISTS))
    optimizer = keras.optimizers.AdamW(cosine(LEARNING_RATE, EPOCHS, batches), weight_decay=1e-2)
    return trained_once(name, model, batches, optimizer, EPOCHS, code, words)
