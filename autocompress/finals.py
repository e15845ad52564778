"""The front's own training after a search: which model is trained next, and for how long.

What a model has lost against the most accurate one falls with the length of its training in much the same way in all models, so
the accuracy that a longer training would give can be foretold, and with it the hypervolume that it would add to the front. A fast
model that has lost a point wins more, and in less time, than a slow one that has lost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from autocompress.baselines import ORIGINAL
from autocompress.config import Objective
from autocompress.front import costs
from autocompress.metrics import Metric
from autocompress.policy import Policy
from autocompress.record import Stage, State, TrialRecord
from autocompress.shared import is_shared
from autocompress.strategy.acquisition import expected_improvement

LONGEST = 16
"""Times as long as a candidate a model is trained at most."""
LEARNING = 0.8
"""Power of the epochs with which a loss falls.

A ResNet-8 (.955) without a branch reached .937, .952 and .957 in 3, 12 and 24 epochs; a MobileNetV2 with a quarter of its
channels (.970) reached .918, .959 and .966 in 2, 11 and 19. Four others of a MobileNetV2 lost .009, .014, .022 and .038 in 2
epochs, and .001, .005, .006 and .013 in 8. The powers lie between .8 and 1.4.
"""
MARGIN = 1.15
"""Times as long as told by others a training may take: one that has to be cut off is lost."""
MOST_LOSS = 3
"""Times the median loss of a front's models against the most accurate one: what has lost more will not win it back."""
NOTHING_SAVED = 1.02
"""Hypervolume is counted from this multiple of the original's costs, whatever the budget: the most accurate model counts most."""


@dataclass(frozen=True)
class Terms:
    """Of the models' own training.

    Attributes:
        own: epochs of a candidate that is trained by itself.
        asked: epochs that the user wants; None where the time decides.
        begun: epochs of trainings that were cut off; they begin anew.
    """

    own: int
    asked: int | None = None
    begun: Mapping[Policy, int] = field(default_factory=dict)

    def fixed(self, record: TrialRecord) -> int | None:
        """How long a model has to be trained; None where the time decides."""
        return self.begun.get(record.policy, self.asked)

    def least(self, record: TrialRecord) -> int:
        """Fewer epochs are not worth it: as many as a candidate has, or more than it had."""
        return self.own if record.epochs == 0 else self.own + 1


@dataclass(frozen=True)
class Final:
    """A model's own training.

    Attributes:
        record: the model as a candidate.
        epochs: that it is trained for.
        gain: the metric's, as foretold.
    """

    record: TrialRecord
    epochs: int
    gain: float


def promising_first(front: Sequence[TrialRecord], metric: Metric) -> tuple[list[TrialRecord], list[TrialRecord]]:
    """The models of a front that may come near the most accurate one, and those that have lost far more than the others."""
    gains = [metric.gain(record.accuracy_valid or 0.0) for record in front]
    losses = [max(gains) - gain for gain in gains]
    most = MOST_LOSS * median(losses) if front else 0.0
    promising = [record for record, loss in zip(front, losses, strict=True) if loss <= most]
    return promising, [record for record in front if record not in promising]


class Finals:
    """What is known of a search, and what training a model of its front would add to that.

    Args:
        records: of all trials.
        objectives: of the search.
        metric: of the task.
        terms: of the training.
    """

    def __init__(self, records: Sequence[TrialRecord], objectives: Sequence[Objective], metric: Metric, terms: Terms) -> None:
        self.terms, self._objectives, self._metric = terms, objectives, metric
        complete = [record for record in records if record.state == State.COMPLETE]
        known = np.array([costs(record, objectives, metric) for record in complete])
        self._gains, self._costs = -known[:, 0], known[:, 1:]
        original = [record.source == ORIGINAL for record in complete]
        self._reference = NOTHING_SAVED * self._costs[original if any(original) else slice(None)].max(axis=0)
        self._timed = [
            (record, epochs)
            for record in complete
            if record.seconds.get(Stage.FINE_TUNE) and (epochs := _epochs_of(record, terms.own))
        ]

    def next(self, models: Sequence[TrialRecord], seconds: float | None) -> Final | None:
        """The model that is trained next, and for how long; None where there is no time for any.

        Training few models for long and many for a short time are weighed against each other by the hypervolume that each is
        foretold to add.

        Args:
            models: that were not trained yet, as candidates.
            seconds: that are left; None without a limit.
        """
        plans = [self._plan(models, None if seconds is None else seconds / count, count) for count in range(1, len(models) + 1)]
        feasible = [(added, chosen[0]) for added, chosen in plans if chosen]
        return max(feasible, key=lambda plan: plan[0])[1] if feasible else None

    def _plan(self, models: Sequence[TrialRecord], share: float | None, count: int) -> tuple[float, list[Final]]:
        """So many models, each trained for its share of the time, what adds most first; and the hypervolume that all add."""
        open_ones = [final for record in models if (final := self._final(record, share)) is not None]
        gains, known, total = self._gains, self._costs, 0.0
        chosen: list[Final] = []
        while open_ones and len(chosen) < count:
            added = self._added(open_ones, gains, known, min(map(self._gain, models)))
            best = max(range(len(open_ones)), key=lambda i: (added[i], open_ones[i].gain))
            chosen.append(open_ones.pop(best))
            gains = np.append(gains, chosen[-1].gain)
            known = np.concatenate([known, self._cost(chosen[-1])])
            total += float(added[best])
        return total, chosen

    def _added(
        self, finals: Sequence[Final], gains: NDArray[np.float64], known: NDArray[np.float64], floor: float
    ) -> NDArray[np.float64]:
        """The hypervolume that each training would add, counted from a gain."""
        above = np.array([final.gain for final in finals]) - floor
        own_costs = np.concatenate([self._cost(final) for final in finals])
        mean = -np.log(np.maximum(above, np.finfo(float).tiny))
        return expected_improvement(mean, np.zeros(len(mean)), own_costs, gains - floor, known, (0.0, self._reference))

    def _final(self, record: TrialRecord, share: float | None) -> Final | None:
        """A model's training within a share of the time; None where it does not fit."""
        fixed, least = self.terms.fixed(record), self.terms.least(record)
        if share is None:
            epochs = fixed or least
        else:
            fits = self.epochs_within(share, record)
            if fits < (fixed or least):
                return None
            epochs = fixed or min(fits, LONGEST * self.terms.own)
        return Final(record, epochs, self._foretold(record, epochs))

    def epochs_within(self, seconds: float, record: TrialRecord) -> int:
        """For how many epochs a model can be trained, told by others that were; where there are none, as few as make sense."""
        if not self._timed:
            return self.terms.fixed(record) or self.terms.least(record) if seconds > 0 else 0
        nearest, epochs = min(self._timed, key=lambda pair: abs((pair[0].macs or 0) - (record.macs or 0)))
        epoch = MARGIN * nearest.seconds[Stage.FINE_TUNE] / epochs
        besides = max(one.total_seconds - one.seconds[Stage.FINE_TUNE] for one, _ in self._timed)
        return int((seconds - besides) / epoch)

    def _foretold(self, record: TrialRecord, epochs: int) -> float:
        """The gain of a model after a training."""
        most_accurate = float(self._gains.max())
        kept = max(epochs / self.terms.own, 1.0) ** -LEARNING
        return float(most_accurate - kept * (most_accurate - self._gain(record)))

    def _gain(self, record: TrialRecord) -> float:
        return float(self._metric.gain(record.accuracy_valid or 0.0))

    def _cost(self, final: Final) -> NDArray[np.float64]:
        return np.array([costs(final.record, self._objectives, self._metric)[1:]])


def _epochs_of(record: TrialRecord, own: int) -> int | None:
    """How long a model was trained; None of an heir that was trained for a shorter time."""
    if record.plan.epochs is not None:
        return record.plan.epochs
    return None if Stage.INHERIT in record.done and is_shared(record.policy) else own
