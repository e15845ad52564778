"""How much of the data is looked at to take statistics anew, and observing the ranges of simulated inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from autocompress.data import Batch

BATCH_NORM_SAMPLES, BATCH_NORM_BATCHES = 1024, 25
"""Samples from which batch norms take their statistics, in no more than so many batches."""
CALIBRATION_BATCHES, FIRST_BATCHES = 8, 2
"""Of the calibration data: for ranges that stay, and for such as a training goes on observing."""


def for_batch_norms(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The first of the batches, as many as batch norms need."""
    samples = 0
    for count, batch in enumerate(batches, 1):
        yield batch
        samples += batch.size
        if samples >= BATCH_NORM_SAMPLES or count >= BATCH_NORM_BATCHES:
            return


def calibration_count(quantizers: Collection[Any], trains: bool) -> int:
    """How many batches the quantizers of inputs have to see, before a training or without one. Learned ranges start from them."""
    goes_on = trains and not any(quantizer.is_learned for quantizer in quantizers)
    return FIRST_BATCHES if goes_on else CALIBRATION_BATCHES


@contextmanager
def calibrating(quantizers: Collection[Any]) -> Iterator[None]:
    """Within it, every one of the quantizers of inputs observes what it sees, in whatever mode."""
    for quantizer in quantizers:
        quantizer.is_calibrating = True
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.is_calibrating = False
