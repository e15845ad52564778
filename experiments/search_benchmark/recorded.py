"""A search problem made of a table of policies that were really scored and measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.decision import Decision

Array = NDArray[np.float64]
Points = NDArray[np.int64]
FACTS = ("sensitivities", "original", "budget", "worst_drop", "probing_seconds", "gate_share")


@dataclass(eq=False)
class Recorded:
    """Replays what `build_table.py` wrote.

    A trial draws one of the seeds with which its policy was tuned; the truth is the average of all of them.
    """

    decisions: tuple[Decision, ...]
    sensitivities: dict[str, list[float]]
    original: float
    budget: float
    worst_drop: float
    probing_seconds: float
    gate_share: float
    rows: dict[tuple[int, ...], pd.DataFrame]
    predicted: dict[tuple[int, ...], float]

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """A table and the description beside it.

        Raises:
            SystemExit: policies of the space are missing from the table.
        """
        about = json.loads(path.with_suffix(".json").read_text())
        decisions = tuple(Decision(kind, subject, tuple(choices)) for kind, subject, choices in about["decisions"])
        table = pd.read_csv(path)
        names = [d.name for d in decisions]
        rows = {tuple(map(int, key)): found for key, found in table.groupby(names)}
        missing = int(np.prod([len(d.choices) for d in decisions])) - len(rows)
        if missing:
            raise SystemExit(f"{path} is not complete: {missing} policies are missing. Run build_table.py.")
        predicted = {key: float(found["latency_predicted"].iloc[0]) for key, found in rows.items()}
        facts = {key: about[key] for key in FACTS}
        return cls(decisions, rows=rows, predicted=predicted, **facts)

    def latency(self, points: Points) -> Array:
        """As the layer table predicts it, (n,)."""
        return np.array([self.predicted[point] for point in map(tuple, points.tolist())])

    def measured(self, point: Points, draw: np.random.Generator) -> tuple[float, float]:
        """Accuracy and latency of one of the trainings."""
        found = self.rows[tuple(point.tolist())]
        row = found.iloc[int(draw.integers(len(found)))]
        return float(row["accuracy_valid"]), float(row["latency"])

    def seconds(self, point: Points) -> float:
        """Of fine-tuning, on average."""
        return float(self.rows[tuple(point.tolist())]["tune_seconds"].mean())

    def truth(self, points: Points) -> tuple[Array, Array]:
        """Average latencies and accuracies on test data."""
        found = [self.rows[point] for point in map(tuple, points.tolist())]
        return np.array([one["latency"].mean() for one in found]), np.array([one["accuracy_test"].mean() for one in found])

    def best_front(self) -> tuple[Array, Array]:
        """Of the whole table."""
        return self.truth(np.array(list(self.rows)))
