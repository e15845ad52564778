"""Batches of a task, and the batch norms that they feed."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

from autocompress.data import Batch
from autocompress.frameworks.keras.calls import arrays
from autocompress.task import Task


def training_batches(task: Task, model: keras.Model, generator: np.random.Generator) -> Iterator[Batch]:
    """Training batches in NumPy; whole arrays are shuffled here, other data shuffle by themselves."""
    split = task.splits["train"]
    smallest = 2 if batch_norms(model) and not split.comes_alone else 1
    order = generator.permutation(split.length or 0) if split.is_arrays else None
    for batch in split.batches(order):
        if batch.size >= smallest:  # the last batch of a pass may be a single sample
            yield batch.map(arrays)


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The batch norms of a model."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
