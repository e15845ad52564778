"""Ending a fine-tuning that leads nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.data import Inputs, as_prediction, join
from autocompress.errors import HopelessError, TaskError
from autocompress.task import Task

SAMPLES = 512
"""Of the validation data; they decide only whether a model has learned anything."""
LEAST_SHARE = 0.1

Predicted = Callable[[Any, Iterable[Inputs]], list[NDArray[Any]]]
"""From a framework's model and batches of inputs to its outputs."""


class Prospects:
    """What a model must reach after its first epoch to be trained on.

    The floor is what a model reaches that ignores its input: it always gives the original's mean output. A candidate goes on if
    it is above that by a tenth of what the original is.
    """

    def __init__(self, task: Task, teacher: Any, predicted: Predicted) -> None:
        self.predicted = predicted
        self.task, self.batches, seen = task, [], 0
        for batch in task.splits["valid"].numpy():
            self.batches.append(batch)
            seen += batch.size
            if seen >= SAMPLES:
                break
        taught = self._outputs(teacher)
        constant = [np.broadcast_to(output.mean(0), output.shape) for output in taught]
        self.original = self._score(taught)
        try:
            self.floor = self._score(constant)
        except TaskError:  # a metric that has no value for constant outputs
            self.floor = -np.inf

    def require(self, model: Any) -> None:
        """Look at a model after its first epoch; it is left in evaluation mode.

        Raises:
            HopelessError: it is hardly better than a model that ignores its input.
        """
        found = self._score(self._outputs(model))
        if found - self.floor < LEAST_SHARE * (self.original - self.floor):
            found, floor, original = (self.task.scorer.gain(value) for value in (found, self.floor, self.original))
            raise HopelessError(
                f"Ended after the first epoch: {self.task.scorer.name} {found:.4g} on a part of the validation data, where a "
                f"model that ignores its input has {floor:.4g} and the original {original:.4g}."
            )

    def _outputs(self, model: Any) -> list[Any]:
        return self.predicted(model, (batch.inputs for batch in self.batches))

    def _score(self, outputs: list[Any]) -> float:
        predictions = as_prediction(outputs)
        return self.task.scorer.gain(self.task.scorer(predictions, join([batch.targets for batch in self.batches])))
