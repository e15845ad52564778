"""Files of weights: written whole or not at all, read without pickle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from autocompress.errors import ModelError

Tensors = TypeVar("Tensors")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Args:
        path: of the file.
        write: writes it at the path that it is given.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path, read: Callable[[Path], Tensors]) -> Tensors:
    """What a reader of safetensors finds in a file.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        return read(path)
    except (OSError, SafetensorError) as error:
        raise ModelError("A weights file is complete safetensors", f"{path}: {error}", "Export the model again.") from error
