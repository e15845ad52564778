"""How a run keeps its time limit: its clock, and a watcher that ends a training which would run past it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from autocompress.errors import OutOfTimeError
from autocompress.record import Stage, TrialRecord
from autocompress.watch import Watcher


class Clock:
    """The time of a run.

    Args:
        limit_s: of the whole run; None without a limit.
        started: `time.monotonic()` at the run's begin.
    """

    def __init__(self, limit_s: float | None, started: float) -> None:
        self.limit_s, self.started = limit_s, started

    @property
    def left(self) -> float | None:
        """Seconds until the limit; None without one."""
        return None if self.limit_s is None else self.limit_s - (time.monotonic() - self.started)


class Timekeeper(Watcher):
    """Hands on what it is told, and ends what is still at work at a deadline.

    Whatever takes long reports its progress, so that is where it can be ended.

    Args:
        watcher: to whom all is handed on.

    Attributes:
        deadline: on the clock of `time.monotonic()`; None where there is none.
    """

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self.deadline: float | None = None

    def allow(self, seconds: float | None) -> None:
        """From now on so many seconds; None for as many as it takes."""
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def progress(self, fraction: float) -> None:
        """Hand on.

        Raises:
            OutOfTimeError: the deadline has passed.
        """
        self.watcher.progress(fraction)
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTimeError

    def say(self, line: str) -> None:
        """Hand on."""
        self.watcher.say(line)

    def stage(self, record: TrialRecord, stage: Stage) -> None:
        """Hand on."""
        self.watcher.stage(record, stage)

    def trial(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Hand on."""
        self.watcher.trial(record, best)

    def left(self, trials: int | None, seconds: float | None) -> None:
        """Hand on."""
        self.watcher.left(trials, seconds)

    def final(self, records: Sequence[TrialRecord]) -> None:
        """Hand on."""
        self.watcher.final(records)
