"""What the Keras experiments share: images with their channels last, and an original that is trained once."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sized
from types import ModuleType
from typing import Any, Protocol

import keras
import numpy as np
from originals import CACHE

CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Batches(Sized, Iterable[tuple[Any, Any]], Protocol):
    """Anything that knows how many batches of (inputs, classes) it yields."""


class ChannelsLast:
    """Batches of tensors (N, 1, 28, 28) as arrays (N, 28, 28, 1)."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (channels_last(*batch) for batch in self.batches)


def channels_last(images: Any, labels: Any) -> tuple[Any, Any]:
    """Tensors (N, 1, 28, 28) as arrays (N, 28, 28, 1)."""
    return np.moveaxis(images.numpy(), 1, -1), labels.numpy()


def cosine(highest: float, epochs: int, batches: Batches) -> Any:
    """One epoch of warm-up, then half a cosine to zero."""
    steps = len(batches)
    schedule = keras.optimizers.schedules.CosineDecay
    return schedule(highest / 25, (epochs - 1) * steps, warmup_target=highest, warmup_steps=steps)


def trained_once(name: str, model: keras.Model, batches: Batches, optimizer: Any, epochs: int, *code: ModuleType) -> keras.Model:
    """`model`, compiled and trained by this very code now or before.

    Args:
        name: of the cached file.
        model: freshly initialised.
        batches: training data.
        optimizer: with its schedule.
        epochs: passes over the data.
        *code: the modules that define model and data; if their text changes, the model is trained anew.
    """
    text = "".join(map(inspect.getsource, (*code, train)))
    settings = keras.saving.serialize_keras_object(optimizer)
    key = hashlib.sha256(f"{text}{settings}{epochs}{len(batches)}".encode()).hexdigest()[:16]
    path = CACHE / f"{name}-{key}.keras"
    if not path.is_file():
        print(f"Training the original once ({epochs} epochs); it is kept in {CACHE.name}/", flush=True)
        train(model, batches, optimizer, epochs)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    loaded: keras.Model = keras.saving.load_model(path)
    return loaded


def train(model: keras.Model, batches: Batches, optimizer: Any, epochs: int) -> None:
    """Plain training by `fit`."""
    model.compile(optimizer, CLASSES, metrics=["accuracy"], jit_compile=False)
    passes = (batch for _ in range(epochs) for batch in batches)
    model.fit(passes, epochs=epochs, steps_per_epoch=len(batches), shuffle=False, verbose=0)
