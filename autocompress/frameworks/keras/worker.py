"""The worker process itself: a task, candidates of its model, and what a search asks to be done with them.

It ends when the search closes the pipe, or is gone: within two seconds, whatever it is at.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.frameworks.base import Candidate, SharedTraining, TuneSettings
from autocompress.frameworks.keras.framework import KerasFramework
from autocompress.frameworks.keras.identity import identity_of
from autocompress.frameworks.keras.parcel import Channel, Message, describe_error, read_arrays, write_arrays, write_converted
from autocompress.policy import Policy
from autocompress.task import load_task

GRACE_SECONDS = 2.0
"""For what it is at when the search is gone."""


class Stopped(BaseException):
    """The search does not want what is being done any more. No user's `except Exception` may catch it."""


class Worker:
    """Does what it is told, one call after the other.

    Args:
        channel: to the search.
        folder: in which both write files for each other.
    """

    def __init__(self, channel: Channel, folder: Path) -> None:
        self._channel, self._folder = channel, folder
        self._framework = KerasFramework()
        self._candidates: dict[int, Candidate] = {}
        self._training: SharedTraining
        self._waiting: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def serve(self) -> None:
        """Answer calls until the search closes the pipe."""
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        while (message := self._waiting.get()) is not None:
            self._channel.send(self._answer(message) | {"resident_bytes": resident_bytes()})

    def open(self, reference: str) -> dict[str, str]:
        """Load the task of a file, and tell what it is."""
        with contextlib.redirect_stdout(io.StringIO()):  # what it says, it has said to the user before
            self._task = load_task(reference)
        return identity_of(self._framework, self._task)

    def compress(
        self, number: int, policy: dict[str, Any], removed: Mapping[str, Sequence[int]], kept: Sequence[int]
    ) -> dict[str, int]:
        """Make a candidate under a number, forget those that are not kept; its multiply-accumulates by layer."""
        return self._keep(number, self._framework.compress(self._task, Policy.from_dict(policy), "l2", removed), kept)

    def fine_tune(self, number: int, settings: dict[str, Any], inherits: bool) -> int:
        """Train a candidate, with every progress reported; its epochs."""
        candidate, heir_of = self._candidates[number], self._training if inherits else None
        return self._framework.fine_tune(self._task, candidate, TuneSettings(**settings), self._report, heir_of)

    def share(self, criterion: str, settings: dict[str, Any], scores: Mapping[str, Sequence[float]]) -> str | None:
        """Make the elastic model, with the search's ranking of the channels; why it is only masked."""
        self._framework.rank_as(self._task, criterion, scores)
        self._training = self._framework.share(self._task, criterion, TuneSettings(**settings))
        return self._training.masked_because

    def begin_training(self, epochs: int) -> None:
        """Start a cycle of the shared training."""
        self._training.begin(epochs)

    def train_epoch(self) -> None:
        """An epoch of the shared training, for each step of which the search gives a policy."""
        self._training.epoch((Policy.from_dict(policy) for policy in iter(self._ask, None)), self._report)

    def save_training(self, path: str) -> None:
        """Write the shared training."""
        self._training.save(Path(path))

    def load_training(self, path: str) -> None:
        """Read the shared training."""
        self._training.load(Path(path))

    def inherit(
        self, number: int, policy: dict[str, Any], removed: Mapping[str, Sequence[int]], kept: Sequence[int]
    ) -> dict[str, int]:
        """As `compress`, with the weights of the shared training."""
        return self._keep(number, self._training.candidate(Policy.from_dict(policy), removed), kept)

    def reestimate(self, number: int) -> None:
        """Take a candidate's statistics and ranges anew."""
        self._framework.reestimate(self._task, self._candidates[number])

    def predict(self, number: int, batches: Any, file: str) -> Any:
        """A candidate's outputs for the batches of a file, which they replace."""
        path = self._folder / file
        return write_arrays(self._framework.predict(self._task, self._candidates[number], read_arrays(batches, path)), path)

    def save(self, number: int, path: str) -> None:
        """Write a candidate's weights."""
        self._framework.save(self._candidates[number], Path(path))

    def load(self, number: int, path: str) -> None:
        """Read a candidate's weights."""
        self._framework.load(self._candidates[number], Path(path))

    def to_openvino(self, number: int, batch: int, file: str) -> Message:
        """Convert a candidate into files."""
        return write_converted(self._framework.to_openvino(self._task, self._candidates[number], batch), self._folder / file)

    def _answer(self, message: Message) -> Message:
        try:
            return {"result": getattr(self, message["call"])(**message["arguments"])}
        except Stopped:
            return {"stopped": True}
        except (Exception, SystemExit) as error:
            return {"error": describe_error(error), "traceback": traceback.format_exc()}

    def _keep(self, number: int, candidate: Candidate, kept: Sequence[int]) -> dict[str, int]:
        self._candidates = {one: self._candidates[one] for one in kept if one in self._candidates} | {number: candidate}
        return {name: int(macs) for name, macs in candidate.macs.items()}

    def _report(self, fraction: float) -> None:
        """Tell how much is done, and learn whether to go on."""
        self._given({"progress": fraction})

    def _ask(self) -> Any:
        """The next policy."""
        return self._given({"asks": True})

    def _given(self, message: Message) -> Any:
        self._channel.send(message)
        answer = self._waiting.get()
        if answer is None or not answer["go_on"]:
            raise Stopped
        return answer["given"]

    def _listen(self) -> None:
        """Take what the search says; when it is gone, end, whatever is being done."""
        while (message := self._channel.receive()) is not None:
            self._waiting.put(message)
        self._waiting.put(None)
        time.sleep(GRACE_SECONDS)
        os._exit(1)


def _end_with(parent: int) -> None:
    """End when the search is gone, though a child of its own may hold the pipe open."""
    while os.getppid() == parent:
        time.sleep(GRACE_SECONDS)
    os._exit(1)


class Lines(io.TextIOBase):
    """Standard output whose lines the search prints."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._rest = channel, ""

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Send the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._channel.send({"line": line})
        return len(text)


def resident_bytes() -> int:
    """This process's resident memory; on systems that do not tell it, the most that it ever was."""
    statistics = Path("/proc/self/statm")
    if statistics.is_file():
        return int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # not there on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Serve the search at the other end of the standard streams."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the search, which ends this process
    channel = Channel(*_taken_streams())
    sys.stdout = Lines(channel)
    sys.path[:] = sys.argv[2:]
    Worker(channel, Path(sys.argv[1])).serve()


def _taken_streams() -> tuple[Any, Any]:
    """The streams to the search. Whatever else reads standard input finds nothing, and native output goes to the log."""
    streams = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return streams


if __name__ == "__main__":
    main()
