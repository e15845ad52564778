"""Batches of a task on a model's device, and the batch norms that they feed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

from autocompress.data import Batch
from autocompress.frameworks.torch.calls import device_of, tensors
from autocompress.task import Task

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def training_batches(task: Task, model: nn.Module, generator: np.random.Generator) -> Iterator[Batch]:
    """Training batches as tensors; whole arrays are shuffled here, a loader shuffles by itself."""
    split, device = task.splits["train"], device_of(model)
    smallest = 2 if batch_norms(model) and not comes_alone(task) else 1
    order = generator.permutation(split.length or 0) if split.is_arrays else None
    for batch in split.batches(order):
        if batch.size >= smallest:  # the last batch of a pass may be a single sample
            yield Batch(tensors(batch.inputs, device), tensors(batch.targets, device))


def batch_count(task: Task) -> int:
    """Training batches in one pass."""
    split = task.splits["train"]
    if split.is_arrays:
        return max(1, -(-(split.length or 0) // split.batch_size))
    try:
        return len(split.source)
    except TypeError:  # a loader of an iterable data set does not know
        return sum(1 for _ in split.source)


def comes_alone(task: Task) -> bool:
    """True where the training data come one sample at a time."""
    split = task.splits["train"]
    return (split.batch_size if split.is_arrays else getattr(split.source, "batch_size", None)) == 1


def batch_norms(model: nn.Module) -> list[Any]:
    """The batch norms of a model."""
    return [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
