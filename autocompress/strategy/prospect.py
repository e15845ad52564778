"""What a trial of a point is worth, after what is known: the hypervolume that it is expected to add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.strategy.acquisition import expected_improvement
from autocompress.strategy.knapsack import Cost
from autocompress.strategy.observed import Observed, Points
from autocompress.strategy.surrogate import Features, Sample, Scale, Surrogate, best_belief

Array = NDArray[np.float64]

DROP_OF_INTEREST = 0.1
"""Share of the original's advantage that a model may lose and still be of interest, where no drop was given."""
NOTHING_SAVED = 1.02
"""Where there is no limit, hypervolume is counted from this multiple of what no compression costs."""
BELOW_THE_BEST = 0.9
"""Where nothing of interest was found yet, models are of interest from this fraction of the best that was."""
HEADROOM = 1.02
"""How much better than the best so far, or than the original, a model can be."""
LEAST_RUIN = 0.02
"""A smaller loss ruins no model, however little may be lost."""
DESTROYED = 0.5
"""Share of the original's advantage below which a policy tells that nothing beyond it is worth a trial either.

A smaller loss of one policy does not tell that: where it was taken to, the share of the best hypervolume fell from .971 to .935
on a table of really tuned ones, for there is noise, and not every choice that takes more away hurts more.
"""
MOST_COMPARED = 100
"""Measured costs against which estimates are held, and destroyed models, the least compressed first."""


@dataclass(frozen=True)
class Limits:
    """What a model has to keep to be of use; None where there is no limit.

    Attributes:
        latency: in the unit of the study's second objective.
        drop: of the first objective, against the original.
        size: in the unit of the function that estimates it.
    """

    latency: float | None = None
    drop: float | None = None
    size: float | None = None


class Prospect:
    """The state of a search, from which points are judged.

    Args:
        seen: the trials; those that are pending are believed to end as expected.
        scale: of gains.
        alternatives: columns of the regression; see `best_belief`.
        costs: estimates of the study's second and third objective, and of a size that is limited only.
        limits: that a model has to keep.
        repeat_noise: standard deviation of the gain when a policy is tuned again; None where it is unknown.
    """

    def __init__(
        self,
        seen: Observed,
        scale: Scale,
        alternatives: Sequence[Features],
        costs: Sequence[Cost],
        limits: Limits,
        repeat_noise: float | None,
    ) -> None:
        self._objectives = seen.costs.shape[1]
        self._costs, self._limits = costs, (limits.latency, limits.size)[: len(costs)]
        self._corrections = [self._correction(seen, axis) for axis in range(len(costs))]
        sample = Sample(seen.points, scale.z(seen.gains), np.minimum(scale.fraction(seen.gains), 1.0), seen.apart)
        self._surrogate, pending = _surrogate(seen, sample, scale, alternatives, repeat_noise)
        gains = np.exp(-self._surrogate.mean_at(sample, seen.counts))[seen.is_judged]
        tried = seen.points[seen.is_judged]
        points = np.concatenate([tried, np.array(seen.pending, dtype=np.int64).reshape(-1, tried.shape[1])])
        gains = np.concatenate([gains, np.exp(-pending)])
        charges = np.concatenate([seen.costs[seen.is_judged], self._estimated(points[len(tried) :])[:, : self._objectives]])
        useful = self._keeps_size(points)
        points, gains, charges = points[useful], gains[useful], charges[useful]
        best = _non_dominated(gains, charges)
        self.front, self._gains, self._charges = points[best], gains[best], charges[best]
        self._reference = self._referred(seen.points.shape[1])
        drop = DROP_OF_INTEREST if limits.drop is None else limits.drop / (scale.original - scale.floor)
        kept = np.exp(-self._surrogate.as_commonest(sample))[seen.is_judged]
        self._ruined = tried[kept < 1 - max(2 * drop, LEAST_RUIN)]
        destroyed = tried[kept < min(1 - 2 * drop, DESTROYED)]
        self._destroyed = destroyed[np.argsort(destroyed.sum(1), kind="stable")[:MOST_COMPARED]]
        within = self._gains[(self._charges < self._reference).all(1)]
        self._highest = HEADROOM * max(1.0, float(self._gains.max(initial=1.0)))
        self._floor = min(1 - drop, BELOW_THE_BEST * float(within.max(initial=0.0)))

    def is_hopeless(self, points: Points) -> NDArray[np.bool_]:
        """True where everything is compressed at least as much as in a policy that lost more than twice what is allowed."""
        return _goes_further(points, self._ruined)

    def worth(self, points: Points, latencies: Array | None = None) -> Array:
        """Of points, one a row. Nothing beyond what destroys the model; negative where a limit is missed, the more the further.

        Args:
            points: that could be tried.
            latencies: of them, where they were measured.
        """
        costs = self._estimated(points)
        if latencies is not None:
            costs[:, 0] = latencies
        mean, spread = self._surrogate.predict(points)
        reference = (self._floor, self._reference)
        costs_in = costs[:, : self._objectives]
        added = expected_improvement(mean, spread, costs_in, self._gains, self._charges, reference, self._highest)
        missed = np.max([cost / (limit or np.inf) for cost, limit in zip(costs.T, self._limits, strict=True)], axis=0)
        return np.where(missed > 1, -missed, np.where(_goes_further(points, self._destroyed), 0.0, added))

    def _estimated(self, points: Points) -> Array:
        """All costs of points, (n, costs)."""
        columns = [correction * cost(points) for cost, correction in zip(self._costs, self._corrections, strict=True)]
        return np.stack(columns, axis=1) if len(points) else np.empty((0, len(columns)))

    def _correction(self, seen: Observed, axis: int) -> float:
        """Measured relative to estimated cost, where it was measured."""
        if axis >= self._objectives or not len(seen.points):
            return 1.0
        best = np.argsort(-seen.gains, kind="stable")[:MOST_COMPARED]
        return float(np.median(seen.costs[best, axis] / self._costs[axis](seen.points[best])))

    def _keeps_size(self, points: Points) -> NDArray[np.bool_]:
        """False where a size that is not an objective is over its limit."""
        if len(self._costs) <= self._objectives or self._limits[-1] is None:
            return np.ones(len(points), dtype=bool)
        return np.asarray(self._estimated(points)[:, -1] <= self._limits[-1])

    def _referred(self, decisions: int) -> Array:
        """The costs from which hypervolume is counted."""
        whole = self._estimated(np.zeros((1, decisions), dtype=np.int64))[0]
        found = [NOTHING_SAVED * cost if limit is None else limit for cost, limit in zip(whole, self._limits, strict=True)]
        return np.array(found[: self._objectives])


def _surrogate(
    seen: Observed, sample: Sample, scale: Scale, alternatives: Sequence[Features], repeat_noise: float | None
) -> tuple[Surrogate, Array]:
    """The regression, and what pending trials are expected to end with, of which it is as sure as of those that ended."""
    belief = best_belief(alternatives, sample)
    if repeat_noise is None and seen.repeat_variance is not None:
        repeat_noise = float(np.sqrt(seen.repeat_variance))
    noise = None if repeat_noise is None else repeat_noise / (scale.original - scale.floor)
    found = Surrogate(belief, sample, noise)
    if not seen.pending:
        return found, np.empty(0)
    pending = np.array(seen.pending, dtype=np.int64)
    expected, _ = found.predict(pending)
    believed = Sample(
        np.concatenate([sample.points, pending]),
        np.concatenate([sample.z, expected]),
        np.concatenate([sample.fraction, np.clip(np.exp(-expected), 0.0, 1.0)]),
        np.concatenate([sample.apart, np.zeros((len(pending), sample.apart.shape[1]))]),
    )
    return Surrogate(belief, believed, noise), expected


def _goes_further(points: Points, others: Points) -> NDArray[np.bool_]:
    """Which points compress everything at least as much as one of the others does."""
    return np.asarray(np.any(np.all(points[:, None] >= others, axis=2), axis=1))


def _non_dominated(gains: Array, costs: Array) -> NDArray[np.int64]:
    """Rows that no other row dominates; gains are to be maximised, costs minimised."""
    order = np.lexsort([*costs.T[::-1], -gains])
    kept: list[int] = []
    for i in order:  # whatever dominates a row comes before it
        if not (costs[kept] <= costs[i]).all(1).any():
            kept.append(int(i))
    return np.array(kept, dtype=np.int64)
