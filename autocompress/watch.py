"""Who looks on while a search runs. The search tells; a watcher shows it, or does nothing."""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.record import Stage, TrialRecord


class Watcher:
    """Does nothing; override what you want to see."""

    def say(self, line: str) -> None:
        """Something worth a line: what was found, left out, decided."""

    def stage(self, record: TrialRecord, stage: Stage) -> None:
        """A trial enters a stage."""

    def progress(self, fraction: float) -> None:
        """How much of the stage is done, where that is known."""

    def trial(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """A trial has ended."""

    def left(self, trials: int | None, seconds: float | None) -> None:
        """What is left before the search stops: candidates to score, or seconds; None where there is no limit."""

    def final(self, records: Sequence[TrialRecord]) -> None:
        """The front is being measured again."""
