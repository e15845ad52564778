"""How long a training can be that has to end in time."""

from __future__ import annotations

import math
from time import monotonic

from autocompress.frameworks.base import TuneSettings

SPARE_EPOCHS = 0.5
"""Left before a deadline, for statistics that are taken anew and for an epoch that takes longer than the one before."""


class Pace:
    """How many epochs of a training fit before its deadline, told by the time that the latest one took.

    Args:
        settings: with the epochs that are asked for.
    """

    def __init__(self, settings: TuneSettings) -> None:
        self._epochs, self._deadline = settings.epochs, settings.deadline
        self._latest = monotonic()

    def epochs(self, done: int) -> int:
        """The length of the training; asked at the end of every epoch.

        Args:
            done: finished epochs; it is never less.
        """
        if self._deadline is None:
            return self._epochs
        now = monotonic()
        fitting = math.floor((self._deadline - now) / max(now - self._latest, 1e-6) - SPARE_EPOCHS)
        self._latest = now
        return min(self._epochs, done + max(0, fitting))
