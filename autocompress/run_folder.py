"""The one owner of a run folder: its layout, its lock, atomic writes, what is kept on disk.

config.yaml           the resolved configuration
run.json              what the run belongs to: digests of model, data and settings, and its reference latency
original.json         every part of the original model in words, so that its candidates can be made again
samples.npz           a few validation inputs, for the bundles' self-test
study.db              the Optuna study
trials.csv front.csv  derived from the records
shared/               the shared training: its weights, how far it is, what was decided about it
trials/NNNN/          record.json (the truth), policy.json, removed.json, model.xml/.bin, weights.safetensors
best                  a link to the bundle of the best trial so far, swapped whole
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from autocompress.errors import DiskFullError, RunFolderError
from autocompress.record import Plan, TrialRecord

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("No space left", "disk is full", "os error 28", "os error 122", "os error 27")
RESERVE_BYTES = 2_000_000


class RunFolder:
    """A run folder that exists, or that will be made by `create`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._records: dict[int, TrialRecord] | None = None

    @property
    def exists(self) -> bool:
        """True where the folder holds a run with at least one trial; without one there is nothing to lose."""
        return (self.path / "run.json").is_file() and any((self.path / "trials").glob("[0-9]*/record.json"))

    def file(self, name: str) -> Path:
        """The path of a file in the folder."""
        return self.path / name

    def trial(self, number: int) -> Path:
        """The folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def create(self) -> None:
        """Make the folder.

        Raises:
            RunFolderError: the path holds something that is not a run, or cannot be written.
        """
        if self.path.exists() and not (self.path / "run.json").is_file():
            found = [path.name for path in self.path.iterdir()] if self.path.is_dir() else ["a file"]
            foreign = sorted(name for name in found if name != "trials" and not name.startswith("."))
            if foreign:
                received = f"{self.path} with {', '.join(foreign[:3])}"
                raise RunFolderError("A new run starts in an empty folder", received, "Choose another --out.")
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                "The run folder can be written", f"{self.path}: {error.strerror}", "Choose another --out."
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one search at a time. A killed process lets go of it.

        Raises:
            RunFolderError: another process holds it.
        """
        try:
            held = FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError("One search at a time uses a run folder", f"{self.path}, which another process holds") from error
        with held:
            yield

    def write_text(self, name: str, text: str) -> None:
        """Replace a file whole, or leave it as it was.

        Raises:
            DiskFullError: the disk is full.
        """
        target = self.path / name
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        with self.disk_guard():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(text)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def write_json(self, name: str, data: Any) -> None:
        """Replace a JSON file whole."""
        self.write_text(name, json.dumps(data, indent=1))

    def read_json(self, name: str) -> Any:
        """A JSON file.

        Raises:
            RunFolderError: it is missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"A run folder holds a readable {name}", f"{self.path}: {error}", "Is this the folder of a run?"
            ) from error

    @contextmanager
    def disk_guard(self) -> Iterator[None]:
        """Turn "no space left" into a DiskFullError, also where a native library says it in words of its own."""
        try:
            yield
        except Exception as error:
            if getattr(error, "errno", None) in FULL or any(words in str(error) for words in FULL_WORDS):
                raise self._full() from error
            raise

    def require_space(self, wanted_bytes: int = RESERVE_BYTES) -> None:
        """Check before work that ends in writing.

        Raises:
            DiskFullError: less than `wanted_bytes` are free.
        """
        if shutil.disk_usage(self.path).free < wanted_bytes:
            raise self._full()

    def records(self) -> list[TrialRecord]:
        """Every trial, in order; read once, then kept in step with what `save` writes.

        Raises:
            RunFolderError: a record is damaged.
        """
        if self._records is None:
            paths = (self.path / "trials").glob("[0-9]*/record.json")
            found = sorted(map(_read_record, paths), key=lambda record: record.number)
            self._records = {record.number: record for record in found}
        return list(self._records.values())

    def open_trial(self, plan: Plan, source: str) -> TrialRecord:
        """The record of a plan: the one that exists, or a new one, already on disk."""
        records = self.records()
        for record in records:
            if record.key == plan.key:
                return record
        record = TrialRecord(number=records[-1].number + 1 if records else 0, plan=plan, source=source)
        self.write_json(f"trials/{record.number:04d}/policy.json", plan.policy)
        self.save(record)
        return record

    def save(self, record: TrialRecord) -> None:
        """Write a record."""
        self.records()
        assert self._records is not None
        self._records[record.number] = record
        self.write_text(f"trials/{record.number:04d}/record.json", record.model_dump_json(indent=1))

    def has_model(self, number: int) -> bool:
        """True where a trial's IR is on disk."""
        return (self.trial(number) / "model.xml").is_file()

    def removed(self, number: int) -> dict[str, list[int]] | None:
        """Group → the channels that a trial's candidate lost; None if it was never made."""
        name = f"trials/{number:04d}/removed.json"
        return dict(self.read_json(name)) if self.file(name).is_file() else None

    def save_removed(self, number: int, removed: Mapping[str, Sequence[int]]) -> None:
        """Keep what `removed` gives back."""
        self.write_text(f"trials/{number:04d}/removed.json", json.dumps({name: list(found) for name, found in removed.items()}))

    def discard(self, record: TrialRecord) -> None:
        """Forget a trial."""
        self.records()
        assert self._records is not None
        del self._records[record.number]
        shutil.rmtree(self.trial(record.number))

    def drop_models(self, keep: set[int]) -> None:
        """Remove the models and weights of all trials but those of `keep`; the records stay."""
        for folder in (self.path / "trials").iterdir():
            if folder.name.isdigit() and int(folder.name) not in keep:
                for pattern in ("model.xml", "model.bin", "weights.safetensors"):
                    (folder / pattern).unlink(missing_ok=True)

    def replace_best(self, number: int, build: Callable[[Path], None]) -> None:
        """Let `best` be a new bundle. At every moment the link leads to a complete one."""
        folder = self.path / f".best-{number:04d}-{uuid.uuid4().hex[:6]}"
        link, temporary = self.path / "best", self.path / f".best-link-{uuid.uuid4().hex[:6]}"
        with self.disk_guard():
            try:
                build(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            if link.is_dir() and not link.is_symlink():  # a copy that followed the link
                link.rename(self.path / f".best-copy-{uuid.uuid4().hex[:6]}")
            temporary.symlink_to(folder.name)
            os.replace(temporary, link)
        self._sweep(folder.name)

    def remove_best(self) -> None:
        """No trial qualifies (any more)."""
        link = self.path / "best"
        if link.is_symlink():
            link.unlink()
            self._sweep()

    def _sweep(self, kept: str = "") -> None:
        """Remove bundles that `best` does not lead to."""
        for old in self.path.glob(".best-*"):
            if old.name != kept:
                old.unlink() if old.is_symlink() else shutil.rmtree(old, ignore_errors=True)

    def _full(self) -> DiskFullError:
        return DiskFullError(
            f"The disk of {self.path} is full. Free some space and resume; the best so far is complete in {self.path}/best."
        )


def _read_record(path: Path) -> TrialRecord:
    try:
        return TrialRecord.model_validate_json(path.read_text())
    except (ValidationError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(
            "A trial's record.json is readable", f"{path}: {reason}", "Remove that trial's folder; it is run again."
        ) from error
