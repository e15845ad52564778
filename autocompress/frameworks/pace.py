"""How long a training can be that has to end in time."""

from __future__ import annotations

import math
from time import monotonic

SPARE = 0.25
"""Of an epoch's time, left before a deadline for the statistics, which are taken anew after a training."""


class Pace:
    """Counts a training's steps and epochs, and shortens one that would not end before its deadline.

    It is told by the time that the epochs have taken so far. The length never grows again, for rates, zeros and binary layers
    follow the share of it that is done.

    Args:
        epochs: that are asked for.
        deadline: `time.monotonic()`; None for as long as it takes.

    Attributes:
        length: epochs of the training.
        done: finished ones.
    """

    def __init__(self, epochs: int, deadline: float | None) -> None:
        self.length, self.done = epochs, 0
        self._deadline, self._is_late = deadline, False
        self._steps, self._began, self._epoch_seconds = 0, 0.0, 0.0

    def is_over(self) -> bool:
        """Whether the training has to end: after its last epoch, or after an earlier step of a later one than the first."""
        return self._is_late or self.done >= self.length

    def end_step(self) -> None:
        """A step is done."""
        self._steps += 1
        if self._steps == 1:
            self._began = monotonic()  # the first step may compile something
        if self._deadline is not None and self.done:
            self._is_late = monotonic() > self._deadline - SPARE * self._epoch_seconds

    def end_epoch(self) -> None:
        """An epoch is done, with all its steps."""
        self.done += 1
        if self._deadline is None:
            return
        now = monotonic()
        step_seconds = (now - self._began) / max(self._steps - 1, 1)
        self._epoch_seconds = max(step_seconds * self._steps / self.done, 1e-6)
        fitting = math.floor((self._deadline - now) / self._epoch_seconds - SPARE)
        self.length = min(self.length, self.done + max(0, fitting))
