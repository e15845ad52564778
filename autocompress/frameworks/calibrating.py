"""Observing the ranges of simulated inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


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
