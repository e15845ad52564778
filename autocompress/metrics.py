"""Metrics by name, on NumPy predictions and targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from autocompress.errors import TaskError

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Metric:
    """A function of (predictions, targets) and whether more of it is better."""

    name: str
    direction: Direction
    function: Callable[[Any, Any], float]

    def __call__(self, predictions: Any, targets: Any) -> float:
        """The metric's value.

        Raises:
            TaskError: it is not a finite number.
        """
        returned = self.function(predictions, targets)
        try:
            value = float(returned)
        except (TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            remedy = "Check the metric, the model's output and the data."
            raise TaskError(f"The metric {self.name} returns a finite number", repr(returned), remedy)
        return value

    def gain(self, value: float) -> float:
        """The value with its sign turned so that more is better."""
        return value if self.direction == "maximize" else -value


def accuracy(predictions: Any, targets: Any) -> float:
    """Fraction of samples whose largest output (axis 1) is the target class; one column is a logit of two classes."""
    predictions = np.asarray(predictions)
    binary = predictions.ndim == 1 or predictions.shape[1] == 1
    classes = (predictions.reshape(len(predictions), -1)[:, 0] > 0) if binary else predictions.argmax(1)
    targets = np.asarray(targets)
    return float(np.mean(classes == targets.reshape(classes.shape)))


def mean_squared_error(predictions: Any, targets: Any) -> float:
    """Mean of squared differences."""
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    return float(np.mean((predictions.reshape(targets.shape) - targets) ** 2))


def mean_absolute_error(predictions: Any, targets: Any) -> float:
    """Mean of absolute differences."""
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    return float(np.mean(np.abs(predictions.reshape(targets.shape) - targets)))


METRICS = {
    "accuracy": Metric("accuracy", "maximize", accuracy),
    "mse": Metric("mse", "minimize", mean_squared_error),
    "mae": Metric("mae", "minimize", mean_absolute_error),
}


def resolve_metric(metric: str | Callable[[Any, Any], float], direction: Direction | None) -> Metric:
    """A metric from its name, or from a function and its direction.

    Raises:
        TaskError: an unknown name, or a function without a direction.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            raise TaskError(f"A metric is one of {', '.join(METRICS)} or a function of (predictions, targets)", repr(metric))
        if direction not in (None, METRICS[metric].direction):
            raise TaskError(
                f"The metric {metric} has the direction {METRICS[metric].direction}", repr(direction), "Leave direction out."
            )
        return METRICS[metric]
    if not callable(metric):
        raise TaskError("A metric is a name or a function of (predictions, targets)", type(metric).__name__)
    if direction not in ("maximize", "minimize"):
        raise TaskError(
            "A metric function needs a direction", repr(direction), 'Say Task(..., direction="maximize") or "minimize".'
        )
    return Metric(getattr(metric, "__name__", type(metric).__name__), direction, metric)
