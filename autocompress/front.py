"""Which models are worth keeping: dominance between measured trials, and the choice of one of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.budget import Drop
from autocompress.config import Objective
from autocompress.metrics import Metric
from autocompress.record import State, TrialRecord


def non_dominated(points: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows no other row dominates, every column to be minimised.

    A row dominates another if it is nowhere larger and somewhere smaller. Of equal rows the first is kept.

    Raises:
        ValueError: a value is NaN; it could neither dominate nor be dominated.
    """
    points = np.asarray(points, dtype=float)
    if np.isnan(points).any():
        raise ValueError("Dominance is not defined for NaN.")
    keep = np.ones(len(points), dtype=bool)
    for i, point in enumerate(points):
        no_larger = (points <= point).all(1)
        smaller_or_earlier = (points < point).any(1) | (np.arange(len(points)) < i)
        keep[i] = not (no_larger & smaller_or_earlier).any()
    return keep


def costs(record: TrialRecord, objectives: Sequence[Objective], metric: Metric) -> list[float]:
    """A complete trial's objectives, each to be minimised: the metric's loss, milliseconds, bytes."""
    if record.accuracy_valid is None or record.latency is None or record.size_bytes is None or record.compressed_bytes is None:
        raise ValueError(f"Trial {record.number} is not complete.")
    values = {
        "accuracy": -metric.gain(record.accuracy_valid),
        "latency": record.latency.ms,
        "throughput": record.latency.ms,  # of a request at full load
        "size": float(record.size_bytes),
        "compressed_size": float(record.compressed_bytes),
    }
    return [values[objective] for objective in objectives]


def near_front(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], metric: Metric, slack: float = 0.05
) -> list[TrialRecord]:
    """The complete trials that could be on the front if their latency were `slack` lower: a margin for measuring again."""
    complete = _comparable(records, metric)
    points = np.array([costs(record, objectives, metric) for record in complete]).reshape(len(complete), len(objectives))
    near = []
    for i, record in enumerate(complete):
        rivals = points.copy()
        rivals[i, 1] *= 1 - slack
        if non_dominated(rivals)[i]:
            near.append(record)
    return near


def front_of(records: Sequence[TrialRecord], objectives: Sequence[Objective], metric: Metric) -> list[TrialRecord]:
    """The non-dominated complete trials, the fastest first."""
    complete = _comparable(records, metric)
    if not complete:
        return []
    keep = non_dominated(np.array([costs(record, objectives, metric) for record in complete]))
    return sorted((r for r, kept in zip(complete, keep, strict=True) if kept), key=lambda r: r.latency.ms if r.latency else 0.0)


def _comparable(records: Sequence[TrialRecord], metric: Metric) -> list[TrialRecord]:
    """The complete trials without those that became better by a training of their own.

    Both have the same network, so by latency they differ in noise alone.
    """
    complete = [record for record in records if record.state == State.COMPLETE]
    trained = {record.policy: metric.gain(record.accuracy_valid or 0.0) for record in complete if record.is_final}

    def is_outdone(record: TrialRecord) -> bool:
        is_candidate = not record.is_final and not record.is_baseline
        return is_candidate and trained.get(record.policy, -np.inf) >= metric.gain(record.accuracy_valid or 0.0)

    return [record for record in complete if not is_outdone(record)]


def within_budget(record: TrialRecord, budget_ms: float | None) -> bool:
    """True where the measured latency keeps the budget, or there is none."""
    return record.latency is not None and (budget_ms is None or record.latency.ms <= budget_ms)


def eligible(
    records: Sequence[TrialRecord],
    budget_ms: float | None,
    drop: Drop | None,
    original: float | None,
    metric: Metric,
    max_bytes: int | None = None,
) -> list[TrialRecord]:
    """The complete trials that keep the budget and the size, and lose no more than the drop."""
    complete = [r for r in records if r.state == State.COMPLETE and r.accuracy_valid is not None and within_budget(r, budget_ms)]
    complete = [r for r in complete if max_bytes is None or (r.size_bytes or 0) <= max_bytes]
    if drop is None or original is None:
        return complete
    return [r for r in complete if r.accuracy_valid is not None and drop.allows(r.accuracy_valid, original, metric)]


def most_accurate(records: Sequence[TrialRecord], metric: Metric) -> TrialRecord | None:
    """The best by the metric; of equals the faster."""
    return max(records, key=lambda r: (metric.gain(r.accuracy_valid or 0.0), -_ms(r)), default=None)


def fastest(records: Sequence[TrialRecord], metric: Metric) -> TrialRecord | None:
    """The fastest; of equals the more accurate."""
    return min(records, key=lambda r: (_ms(r), -metric.gain(r.accuracy_valid or 0.0)), default=None)


def _ms(record: TrialRecord) -> float:
    return record.latency.ms if record.latency else float("inf")
