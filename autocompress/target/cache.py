"""What was found out about a target, kept across runs in the user's cache folder.

Everything in it can be measured again: a file that is missing, damaged or from another version is simply absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from autocompress.device import Fingerprint

VARIABLE = "AUTOCOMPRESS_CACHE"
"""The environment variable that names another cache folder."""


def cache_folder() -> Path:
    """The folder named by AUTOCOMPRESS_CACHE, or ~/.cache/autocompress. It need not exist."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "autocompress"


def key_of(fingerprint: Fingerprint) -> str:
    """16 hexadecimal digits that name a fingerprint."""
    return hashlib.sha256(fingerprint.model_dump_json().encode()).hexdigest()[:16]


def read_json(path: Path) -> Any:
    """What `write_json` wrote; None where there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, data: Any) -> None:
    """Write a file whole or not at all; folders are made as needed.

    Raises:
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(data))
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
