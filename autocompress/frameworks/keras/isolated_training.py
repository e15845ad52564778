"""A shared training in a worker process, which another worker goes on with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from autocompress.errors import WorkerError
from autocompress.frameworks.base import Candidate, Progress, TuneSettings
from autocompress.frameworks.keras.process import WorkerProcess
from autocompress.policy import Policy

Step = tuple[str, dict[str, Any]]
"""A call with its arguments."""


class Workplace(Protocol):
    """Who has a worker."""

    def living_worker(self) -> WorkerProcess:
        """The worker, or a new one with the task."""
        ...

    def scores(self, criterion: str) -> dict[str, list[float]]:
        """Group → importance of each channel."""
        ...

    def inherit(self, policy: Policy, criterion: str, removed: Mapping[str, Sequence[int]] | None) -> Candidate:
        """A candidate with the weights of the training, which is in the worker."""
        ...

    def file(self, suffix: str) -> Path:
        """A new path in the folder that is shared with the worker."""
        ...


class IsolatedTraining:
    """Forwards to the training in the worker. Policies are drawn here, one whenever the worker asks.

    Args:
        workplace: with the worker.
        criterion: by which channels are ranked, here.
        settings: of the training.

    Attributes:
        masked_because: why no step can leave out the channels that go; None where some can, or before it has begun.
    """

    def __init__(self, workplace: Workplace, criterion: str, settings: TuneSettings) -> None:
        self._workplace, self._criterion, self._settings = workplace, criterion, settings
        self.masked_because: str | None = None
        self._home: WorkerProcess | None = None
        self._epochs = 0
        self._way: list[Step] | None = []
        """The calls after which another worker has the same training; None where only this one has it."""

    def begin(self, epochs: int) -> None:
        """Start a cycle of some epochs."""
        self._epochs = epochs
        begin: Step = ("begin_training", {"epochs": epochs})
        self._follow([begin])
        if self._way is not None:
            self._way.append(begin)

    def epoch(self, policies: Iterator[Policy], progress: Progress) -> None:
        """One pass over the training data, a policy for each step."""
        worker = self.at_home()
        self._way = None
        worker.call("train_epoch", progress, lambda: next(policies).to_dict())
        worker.settle()

    def candidate(self, policy: Policy, removed: Mapping[str, Sequence[int]] | None = None) -> Candidate:
        """The model under a policy, pruned physically, with the weights of now."""
        return self._workplace.inherit(policy, self._criterion, removed)

    def save(self, path: Path) -> None:
        """Write all that the present cycle needs to go on."""
        self.at_home().call("save_training", path=str(path.resolve()))
        self._way = self._way_from(path)

    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        way = self._way_from(path)
        self._follow(way[1:])
        self._way = way

    def at_home(self) -> WorkerProcess:
        """A living worker that has the training.

        Raises:
            WorkerError: the only one that had it has died.
        """
        self._follow([])
        assert self._home is not None
        return self._home

    def park(self, worker: WorkerProcess) -> None:
        """Write what only this worker has."""
        if self._home is worker and self._way is None:
            self.save(self._workplace.file(".training"))

    def _way_from(self, path: Path) -> list[Step]:
        return [("begin_training", {"epochs": self._epochs}), ("load_training", {"path": str(path.resolve())})]

    def _follow(self, steps: Sequence[Step]) -> None:
        """Take some steps in a living worker, in a new one those before as well."""
        worker = self._workplace.living_worker()
        if worker is not self._home:
            if self._way is None:
                raise WorkerError(
                    "The worker process with the shared training has died; a resumed run goes on from its last epoch"
                )
            scores = self._workplace.scores(self._criterion)
            settings = asdict(self._settings)
            self.masked_because = worker.call("share", criterion=self._criterion, settings=settings, scores=scores)
            self._home, steps = worker, [*self._way, *steps]
        for name, arguments in steps:
            worker.call(name, **arguments)
