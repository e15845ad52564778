"""What crosses the pipe between a search and its worker process: lines of JSON, and files for arrays and graphs. No pickle.

The search sends {"call": name, "arguments": {...}}, and after each progress and question {"go_on": true or false, "given": ...}.
The worker sends {"progress": fraction}, {"asks": true} and {"line": what the user's code prints} as they come, and at last
{"result": ...}, {"error": ...} or {"stopped": true}, with its {"resident_bytes": ...}.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from autocompress import errors
from autocompress.data import to_numpy
from autocompress.errors import WorkerError
from autocompress.target import precision
from autocompress.target.precision import Converted, LayerGrid
from autocompress.target.runtime import core

Message = dict[str, Any]


class Channel:
    """One end of the pipe.

    Args:
        incoming: what the other end writes.
        outgoing: what the other end reads.
    """

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Write a message, whole.

        Raises:
            OSError: nobody reads any more.
        """
        with self._lock:
            self._outgoing.write(json.dumps(message).encode() + b"\n")
            self._outgoing.flush()

    def receive(self) -> Message | None:
        """The next message; None where the other end is gone."""
        line = self._incoming.readline()
        return dict(json.loads(line)) if line.endswith(b"\n") else None


def write_arrays(value: Any, path: Path) -> Any:
    """Write the arrays in mappings and sequences to a file; returns their structure, which is plain data."""
    arrays: list[NDArray[Any]] = []

    def described(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: described(one) for name, one in part.items()}
        if isinstance(part, tuple | list):
            return [described(one) for one in part]
        array = to_numpy(part)
        arrays.append(array.astype(np.float32) if array.dtype.kind == "V" else array)  # NumPy cannot store bfloat16
        return len(arrays) - 1

    structure = described(value)
    with path.open("wb") as file:
        np.savez(file, *arrays)
    return structure


def read_arrays(structure: Any, path: Path) -> Any:
    """What `write_arrays` wrote, with tuples for all sequences; the file is removed."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored}

    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: filled(one) for name, one in part.items()}
        return tuple(filled(one) for one in part) if isinstance(part, list) else arrays[f"arr_{part}"]

    path.unlink()
    return filled(structure)


def write_converted(converted: Converted, path: Path) -> Message:
    """Write a converted model as an IR and its codes beside it; returns the rest, which is plain data."""
    precision.save(converted.model, path)
    return {
        "codes": write_arrays({name: grid.codes for name, grid in converted.grids.items()}, _codes_path(path)),
        "grids": {name: [grid.bits, grid.axis] for name, grid in converted.grids.items()},
        "notes": converted.notes,
        "input_ranges": {name: list(map(float, bounds)) for name, bounds in converted.input_ranges.items()},
    }


def read_converted(described: Message, path: Path) -> Converted:
    """What `write_converted` wrote; the files are removed."""
    codes = read_arrays(described["codes"], _codes_path(path))
    grids = {name: LayerGrid(codes[name], bits, axis) for name, (bits, axis) in described["grids"].items()}
    ranges = {name: (low, high) for name, (low, high) in described["input_ranges"].items()}
    model = core().read_model(path)
    for file in (path, path.with_suffix(".bin")):
        file.unlink()
    return Converted(model, grids, list(described["notes"]), ranges)


def describe_error(error: BaseException) -> Message:
    """An exception by its class's name and its message."""
    text = error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else str(error)
    return {"class": type(error).__name__, "module": type(error).__module__, "message": text}


def error_of(described: Message) -> Exception:
    """An exception of the same class and message; a WorkerError where the class is neither this project's nor Python's."""
    home = {errors.__name__: errors, builtins.__name__: builtins}.get(described["module"])
    kind = getattr(home, described["class"], None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # some classes cannot be made so, an ExceptionGroup for one
            found = kind.__new__(kind)  # a UserError would compose its message anew
            found.args = (described["message"],)
            return found
    return WorkerError(f"{described['class']}: {described['message']}")


def _codes_path(path: Path) -> Path:
    return path.with_suffix(".npz")
