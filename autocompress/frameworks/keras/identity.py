"""What a task is, in words that two processes can compare."""

from __future__ import annotations

from typing import Protocol

from autocompress.task import Task


class Digesting(Protocol):
    """A framework that can tell one model from another."""

    def digest(self, task: Task) -> str:
        """A hash of the model's architecture and weights."""
        ...


def identity_of(framework: Digesting, task: Task) -> dict[str, str]:
    """What has to be the same when a task is made again: the model, and whole arrays of data. A loader may draw anew."""
    whole = {name: split.digest() for name, split in task.splits.items() if split.is_arrays and name != "test"}
    return {"model": framework.digest(task), **{f"{name} data": digest for name, digest in whole.items()}}
