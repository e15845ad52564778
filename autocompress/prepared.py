"""What a compressed module in a user's own script has to know of itself, so that it can be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autocompress.config import CompressionConfig
from autocompress.data import Split
from autocompress.errors import TaskError
from autocompress.frameworks.base import Candidate, framework_of
from autocompress.policy import Policy
from autocompress.task import Task

ATTRIBUTE = "_autocompress"


@dataclass(frozen=True)
class Preparation:
    """How a module was made.

    Attributes:
        task: the original model, and the calibration data.
        policy: what was done to it.
        macs: multiply-accumulates by layer.
        removed: group → the channels of the original that were removed.
        config: criterion, target, storage.
    """

    task: Task
    policy: Policy
    macs: Mapping[str, int]
    removed: Mapping[str, Sequence[int]]
    config: CompressionConfig

    def __deepcopy__(self, memo: dict[int, Any]) -> Preparation:
        """Copies of a module share it: it is not changed, and it holds the user's data."""
        return self

    def candidate(self, model: Any) -> Candidate:
        """The module as the search knows it."""
        return Candidate(model, self.policy, dict(self.macs), self.removed)


def remember(candidate: Candidate, task: Task, config: CompressionConfig) -> Any:
    """The candidate's module, which now knows how it was made."""
    made = Preparation(task, candidate.policy, candidate.macs, candidate.removed, config)
    setattr(candidate.model, ATTRIBUTE, made)
    return candidate.model


def preparation_of(model: Any) -> Preparation:
    """How a module was made.

    Raises:
        TaskError: it was not made by `prepare` or `load`.
    """
    found = vars(model).get(ATTRIBUTE)  # what wraps a module hands over its attributes
    if not isinstance(found, Preparation):
        raise TaskError(
            "An exported model is one that prepare() or load() returned",
            f"a {type(model).__name__} that does not know its policy",
            "Export the module itself, not what wraps it.",
        )
    return found


def has_targets(data: Any) -> bool:
    """False for inputs alone: an array, or a dict of arrays by name."""
    return not isinstance(data, Mapping) and not hasattr(data, "shape")


def task_of(model: Any, data: Any, **options: Any) -> Task:
    """A task for a model and calibration data, with or without targets.

    Args:
        model: the original.
        data: an array of inputs, a dict of such arrays by name, or what `Task` takes as `train`.
        options: of `Task`.

    Raises:
        TaskError: the model is of no framework, or the data cannot be read.
    """
    framework_of(model)
    if not has_targets(data):
        first = next(iter(data.values()), ()) if isinstance(data, Mapping) else data
        data = (dict(data) if isinstance(data, Mapping) else data), np.zeros(len(first), np.int64)
    Split("calibration", data)  # what is wrong with it is said of the calibration data
    return Task(model, train=data, valid=data, **options)
