"""The worker process, seen from the search: it is handed calls, gives back progress and errors, and never outlives the search."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from autocompress.errors import WorkerError
from autocompress.frameworks.base import Progress
from autocompress.frameworks.keras.parcel import Channel, Message, error_of

MODULE = "autocompress.frameworks.keras.worker"
GRACE_SECONDS = 3.0
"""For a worker that is told to end."""
LOOK_SECONDS = 1.0
"""Between two looks at whether it still lives: a child of its own can hold the pipe open when it is gone."""


class WorkerProcess:
    """A process that holds a task and candidates of its model.

    Attributes:
        resident_bytes: of the process after its last call.
        started_bytes: when it was ready; `settle` says when that is.

    Args:
        folder: in which both write files for each other.
        backend: of Keras in the process.
    """

    def __init__(self, folder: Path, backend: str) -> None:
        self.started_bytes = self.resident_bytes = 0
        self._log = tempfile.NamedTemporaryFile(dir=folder, prefix="worker-", suffix=".log")  # noqa: SIM115 — as long as the process
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", MODULE, str(folder), *(entry or os.getcwd() for entry in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"PYTHONPATH": _import_path(), "KERAS_BACKEND": backend},
            start_new_session=True,  # so that children of its own end with it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout, self._process.stdin)
        self._messages: SimpleQueue[Message | None] = SimpleQueue()
        threading.Thread(target=_listen, args=(self._channel, self._messages), daemon=True).start()
        self._end = weakref.finalize(self, _end, self._process, self._log)
        self._is_busy = self._is_settled = False

    @property
    def is_alive(self) -> bool:
        """False once it has ended, however that came."""
        return self._end.alive and self._process.poll() is None

    @property
    def grown_bytes(self) -> int:
        """How much its resident memory has grown since it was ready."""
        return self.resident_bytes - self.started_bytes

    def settle(self) -> None:
        """Count growth from now on, if that was not said before: what a first training takes is the model's size."""
        if not self._is_settled:
            self.started_bytes, self._is_settled = self.resident_bytes, True

    def call(self, name: str, progress: Progress | None = None, ask: Callable[[], Any] | None = None, **arguments: Any) -> Any:
        """Let the process do something, and wait for it.

        Whatever leaves this function before the process has answered ends the process.

        Args:
            name: of a method of `worker.Worker`.
            progress: told how much is done. What it raises stops the process's work, and is raised here.
            ask: gives what the process asks for while it works, plain data; what it raises likewise.
            **arguments: plain data.

        Raises:
            WorkerError: the process died, or an exception of a foreign class was raised in it.
            Exception: what was raised in it, with the same class and message.
        """
        try:
            self._is_busy = True
            self._send(name, {"call": name, "arguments": arguments})
            answer = self._answer(name, progress or _ignore, ask)
            self._is_busy = False
        finally:
            if self._is_busy:
                self._process.kill()
                self.end()
        self.resident_bytes = answer["resident_bytes"]
        self.started_bytes = self.started_bytes or self.resident_bytes
        if "error" in answer:
            error = error_of(answer["error"])
            error.add_note(f"In the worker process:\n{answer['traceback']}")
            raise error
        return answer["result"]

    def end(self) -> None:
        """End the process."""
        self._end()

    def _answer(self, name: str, progress: Progress, ask: Callable[[], Any] | None) -> Message:
        while True:
            message = self._received(name)
            if "line" in message:
                print(message["line"])
            elif "progress" in message:
                self._reply(name, partial(progress, message["progress"]))
            elif "asks" in message and ask is not None:
                self._reply(name, ask)
            else:
                return message

    def _reply(self, name: str, reply: Callable[[], Any]) -> None:
        """Let the process go on with what `reply` gives; stop it if that raises."""
        try:
            given = reply()
        except Exception:
            with contextlib.suppress(WorkerError):
                self._stop(name)
            raise
        self._send(name, {"go_on": True, "given": given})

    def _stop(self, name: str) -> None:
        """Let the process leave what it is at, and wait until it has."""
        self._send(name, {"go_on": False})
        while not {"stopped", "error", "result"} & self._received(name).keys():
            pass
        self._is_busy = False

    def _send(self, name: str, message: Message) -> None:
        try:
            self._channel.send(message)
        except OSError as error:
            raise self._death(name) from error

    def _received(self, name: str) -> Message:
        while True:
            is_alive = self.is_alive  # asked first: what a dead process has sent is there already
            try:
                message = self._messages.get(timeout=LOOK_SECONDS)
            except Empty:
                message = {} if is_alive else None
            if message is None:
                raise self._death(name)
            if message:
                return message

    def _death(self, name: str) -> WorkerError:
        try:
            code = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return WorkerError(f"The worker process closed its pipe during {name}; {self._last_words()}")
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        why = "as when memory runs out" if code == -signal.SIGKILL else self._last_words()
        return WorkerError(f"The worker process ended {how} during {name}; {why}")

    def _last_words(self) -> str:
        said = Path(self._log.name).read_bytes()  # opened anew: the process writes where the shared one stands
        lines = said.decode(errors="replace").strip().splitlines()
        return f"the last that it said: {lines[-1][:300]}" if lines else "it said nothing"


def _ignore(fraction: float) -> None:
    """A progress of which nobody is told."""


def _listen(channel: Channel, messages: SimpleQueue[Message | None]) -> None:
    """Take what the process sends; None at its end."""
    with contextlib.suppress(OSError, ValueError):  # the pipe was closed here
        while (message := channel.receive()) is not None:
            messages.put(message)
    messages.put(None)


def _import_path() -> str:
    """Where this package can be imported from. The task's folder comes in later: it may shadow the standard library."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*([given] if given else []), str(Path(__file__).parents[3])])


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Close a process's input, upon which it ends, wait for that, end its children, and close the rest."""
    _close(process.stdin)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    _close(process.stdout)  # not before: closing waits for the thread that reads, and that for whoever holds the other end
    _close(log)


def _close(stream: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError):
        stream.close()  # type: ignore[union-attr]
