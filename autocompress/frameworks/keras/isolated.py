"""Keras trials in a worker process of their own, which is replaced when it has grown, or died."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.data import Inputs
from autocompress.errors import WorkerError
from autocompress.frameworks.base import Candidate, Framework, Progress, SharedTraining, TuneSettings
from autocompress.frameworks.keras.identity import identity_of
from autocompress.frameworks.keras.isolated_training import IsolatedTraining
from autocompress.frameworks.keras.parcel import read_arrays, read_converted, write_arrays
from autocompress.frameworks.keras.process import WorkerProcess
from autocompress.policy import Policy
from autocompress.structure import Structure
from autocompress.target.precision import Converted
from autocompress.task import Task

if TYPE_CHECKING:
    from autocompress.frameworks.keras.framework import KerasFramework

MOST_GROWN_BYTES = 2**30
"""By which a worker may grow before it is replaced: a few dozen models, beside which its start of some seconds is little."""
IN_THIS_PROCESS = "Trials run in this process, which grows by about 30 MB with every model"


class AnotherTaskError(WorkerError):
    """A worker that loads the task's file gets something else than the search has."""


@dataclass(eq=False)
class Remote:
    """A candidate's model, which lives in a worker.

    Attributes:
        number: its name there.
        home: the worker; None before it was made.
        is_trained: its numbers are no longer the original's.
        parked: file of its numbers, written before its worker was replaced.
    """

    number: int
    home: WorkerProcess | None = None
    is_trained: bool = False
    parked: Path | None = None


def isolated(inner: KerasFramework, task: Task, say: Callable[[str], None]) -> Framework:
    """A framework that does its work on a task's candidates in a worker; where that is not possible, the given one.

    Args:
        inner: of the task's model.
        task: which the worker loads from its file.
        say: told why, if the worker cannot.
    """
    if task.origin is None:
        say(f"{IN_THIS_PROCESS}: a worker process can only load a task from a file")
        return inner
    found = IsolatedKeras(inner, task, task.origin)
    reason = found.obstacle()
    if reason is None:
        return found
    found.close()
    say(f"{IN_THIS_PROCESS}: loaded again by a worker process, {reason}")
    return inner


class IsolatedKeras:
    """Does in a worker what makes a process grow; inspects and ranks here, where the task's model is.

    Args:
        inner: of the task's model.
        task: whose candidates are made.
        reference: of the file from which the worker loads the task.
    """

    name = "keras"

    def __init__(self, inner: KerasFramework, task: Task, reference: str) -> None:
        self._inner, self._task, self._reference = inner, task, reference
        self._folder = Path(tempfile.mkdtemp(prefix="autocompress-"))
        self._removal = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._worker: WorkerProcess | None = None
        self._remotes: weakref.WeakSet[Remote] = weakref.WeakSet()
        self._training: IsolatedTraining | None = None
        self._numbers, self._files = count(), count()

    def obstacle(self) -> str | None:
        """Why a worker cannot have the same task, in words; None where it can."""
        try:
            self._start()
        except AnotherTaskError as error:
            return str(error)
        except Exception as error:  # a task file may do anything
            return f"the task raises {type(error).__name__}: {error}"
        return None

    def isolated(self, task: Task, say: Callable[[str], None]) -> Framework:
        """It is already."""
        return self

    def close(self) -> None:
        """End the worker, and with it all candidates."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None
        self._removal()

    def digest(self, task: Task) -> str:
        """A hash of the model's architecture and weights."""
        return self._inner.digest(task)

    def architecture(self, task: Task) -> dict[str, str]:
        """Every part of the model by name, in words."""
        return self._inner.architecture(task)

    def inspect(self, task: Task) -> Structure:
        """Layers and proven dependency groups."""
        return self._inner.inspect(task)

    def importance(self, task: Task, criterion: str) -> dict[str, NDArray[np.float64]]:
        """Group name → importance of each of its channels."""
        return self._inner.importance(task, criterion)

    def share(self, task: Task, criterion: str, settings: TuneSettings) -> SharedTraining:
        """A training in the worker, whose weights every policy can inherit."""
        self._training = IsolatedTraining(self, criterion, settings)
        return self._training

    def scores(self, criterion: str) -> dict[str, list[float]]:
        """`importance` as plain data."""
        return {name: scores.tolist() for name, scores in self._inner.importance(self._task, criterion).items()}

    def compress(
        self, task: Task, policy: Policy, criterion: str, removed: Mapping[str, Sequence[int]] | None = None
    ) -> Candidate:
        """Rank here, prune and simulate in the worker."""
        return self._made("compress", policy, criterion, removed)

    def inherit(self, policy: Policy, criterion: str, removed: Mapping[str, Sequence[int]] | None) -> Candidate:
        """The same with the weights of the shared training, which is in the worker."""
        candidate = self._made("inherit", policy, criterion, removed)
        candidate.model.is_trained = True
        return candidate

    def fine_tune(
        self,
        task: Task,
        candidate: Candidate,
        settings: TuneSettings,
        progress: Progress,
        heir_of: SharedTraining | None = None,
    ) -> int:
        """Train the candidate in the worker. What `progress` raises ends the training and is raised here."""
        if inherits := isinstance(heir_of, IsolatedTraining):
            heir_of.at_home()
        epochs: int = self._change(candidate, "fine_tune", progress, settings=asdict(settings), inherits=inherits)
        candidate.model.home.settle()
        return epochs

    def reestimate(self, task: Task, candidate: Candidate) -> None:
        """Take normalization statistics and input ranges anew."""
        self._change(candidate, "reestimate")

    def load(self, candidate: Candidate, path: Path) -> None:
        """Read what `save` wrote."""
        self._change(candidate, "load", path=str(path.resolve()))

    def save(self, candidate: Candidate, path: Path) -> None:
        """Write the candidate's weights."""
        self._call(candidate, "save", path=str(path.resolve()))

    def predict(self, task: Task, candidate: Candidate, batches: Iterable[Inputs]) -> Any:
        """The simulation's outputs for batches of inputs."""
        path = self.file(".npz")
        structure = write_arrays(list(batches), path)
        return read_arrays(self._call(candidate, "predict", batches=structure, file=path.name), path)

    def to_openvino(self, task: Task, candidate: Candidate, batch: int) -> Converted:
        """Convert in the worker, and read what came out."""
        path = self.file(".xml")
        return read_converted(self._call(candidate, "to_openvino", batch=batch, file=path.name), path)

    def _change(self, candidate: Candidate, name: str, progress: Progress | None = None, **arguments: Any) -> Any:
        """Call what changes a candidate's numbers. Where that ends early they are neither the old nor the new ones."""
        number = self._at_home(candidate)
        candidate.model.is_trained, candidate.model.parked = True, None
        return candidate.model.home.call(name, progress, number=number, **arguments)

    def _call(self, candidate: Candidate, name: str, **arguments: Any) -> Any:
        number = self._at_home(candidate)
        return candidate.model.home.call(name, number=number, **arguments)

    def _at_home(self, candidate: Candidate) -> int:
        """The candidate's number in a living worker; it is made there again if it came from an earlier one."""
        remote: Remote = candidate.model
        if remote.home is None or not remote.home.is_alive:
            if remote.is_trained and remote.parked is None:
                raise WorkerError("The worker process that trained this candidate has died")
            self._make("compress", remote, candidate.policy, candidate.removed)
            if remote.parked is not None:
                self._call(candidate, "load", path=str(remote.parked))
        return remote.number

    def _made(self, how: str, policy: Policy, criterion: str, removed: Mapping[str, Sequence[int]] | None) -> Candidate:
        """A new candidate. A worker that has grown is replaced first."""
        found = self._inner.removed(self._task, policy, criterion) if removed is None else removed
        gone = {name: [int(channel) for channel in channels] for name, channels in found.items()}
        worker, remote = self._worker, Remote(next(self._numbers))
        if worker is not None and worker.is_alive and worker.grown_bytes > MOST_GROWN_BYTES:
            self._park(worker)
            worker.end()
        if how == "inherit":
            assert self._training is not None
            self._training.at_home()
        return Candidate(remote, policy, self._make(how, remote, policy, gone), gone)

    def _make(self, how: str, remote: Remote, policy: Policy, removed: Mapping[str, Sequence[int]]) -> dict[str, int]:
        worker = self.living_worker()
        kept = [one.number for one in self._remotes if one.home is worker]
        macs = worker.call(how, number=remote.number, policy=policy.to_dict(), removed=removed, kept=kept)
        remote.home = worker
        self._remotes.add(remote)
        return dict(macs)

    def living_worker(self) -> WorkerProcess:
        """The worker, or a new one with the task."""
        return self._worker if self._worker is not None and self._worker.is_alive else self._start()

    def _start(self) -> WorkerProcess:
        """A new worker with the task.

        Raises:
            AnotherTaskError: the file makes another task by now.
        """
        worker = self._worker = WorkerProcess(self._folder, keras.backend.backend())
        found, expected = worker.call("open", reference=self._reference), self._identity
        other = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        if other:
            worker.end()
            raise AnotherTaskError(f"the task has other {' and other '.join(other)}")
        return worker

    @cached_property
    def _identity(self) -> dict[str, str]:
        return identity_of(self._inner, self._task)

    def _park(self, worker: WorkerProcess) -> None:
        """Write the numbers that only this worker has."""
        if self._training is not None:
            self._training.park(worker)
        for remote in self._remotes:
            if remote.home is worker and remote.is_trained and remote.parked is None:
                path = self.file(".safetensors")
                worker.call("save", number=remote.number, path=str(path))
                remote.parked = path

    def file(self, suffix: str) -> Path:
        """A new path in the folder that is shared with the worker."""
        return self._folder / f"{next(self._files)}{suffix}"
