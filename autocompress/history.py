"""What was done to which original: with the weights beside it, all that gives a compressed model back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from autocompress.config import CompressionConfig, Storage
from autocompress.errors import BundleError
from autocompress.task import Task

MENTIONED = 6
"""Differences that a message names."""


class Settings(BaseModel):
    """What a task and a configuration say of how a model is exported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    preprocessing: dict[str, Any] | None
    target_key: str
    storage: Storage
    calibration_samples: int

    @classmethod
    def of(cls, task: Task, config: CompressionConfig) -> Settings:
        """Those of a task and a configuration."""
        described = {name: getattr(task, name) for name in ("name", "preprocessing", "target_key")}
        return cls(**described, storage=config.storage, calibration_samples=config.calibration_samples)


class History(BaseModel):
    """The way from an original to a compressed model.

    Attributes:
        framework: of the model.
        policy: what was done.
        removed: group → the channels of the original that were removed, ascending.
        original: every part of the original in words, as `Framework.architecture` gives them.
        settings: for exporting the model again, once it is loaded.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    framework: str
    policy: dict[str, Any]
    removed: dict[str, list[int]]
    original: dict[str, str]
    settings: Settings

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the original's architecture."""
        return hashlib.sha256(json.dumps(self.original, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(self.model_dump() | {"digest": self.digest}))

    @classmethod
    def read(cls, path: Path) -> History:
        """Read what `write` wrote.

        Raises:
            BundleError: it is missing or damaged.
        """
        try:
            data = json.loads(path.read_text())
            digest = data.pop("digest")
            history = cls.model_validate(data)
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise BundleError(
                f"A bundle's {path.name} is readable", f"{type(error).__name__}: {error}", "Export it again."
            ) from error
        if digest != history.digest:
            raise BundleError(f"A bundle's {path.name} names its original", f"{digest}, not {history.digest}", "Export it again.")
        return history

    def require_original(self, architecture: Mapping[str, str]) -> None:
        """Check that a model is built as the original was.

        Raises:
            BundleError: it is not; the message says in what.
        """
        found = _differences(self.original, architecture)
        if found:
            more = f"; and {len(found) - MENTIONED} more" if len(found) > MENTIONED else ""
            raise BundleError(
                "The model is built as the one that was compressed",
                "; ".join(found[:MENTIONED]) + more,
                "Any weights will do, but give the original's layers.",
            )


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """In words, one for each layer: its first tensor that differs, or else its settings."""
    words = {}
    for name in {**before, **now}:
        label = name or "the model"
        if name not in now:
            words[name] = f"{label} is missing ({before[name]})"
        elif name not in before:
            words[name] = f"{label} is new ({now[name]})"
        elif before[name] != now[name]:
            words[name] = f"{label} is {now[name]}, was {before[name]}"
    for name, text in reversed(list(words.items())):
        layer = name.rpartition(".")[0]
        if layer != name and layer in words:
            del words[name]
            if layer in before and layer in now:
                words[layer] = text
    return list(words.values())
