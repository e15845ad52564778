"""The front's own training after a search: which model is trained next, and for how long.

What a model has lost against the most accurate one falls with the length of its training in much the same way in all models, so
the accuracy that a longer training would give can be foretold, and with it what it would add to the front. A fast model that has
lost a point wins more, and in less time, than a slow one that has lost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from autocompress.baselines import ORIGINAL
from autocompress.config import Objective
from autocompress.front import costs, non_dominated
from autocompress.metrics import Metric
from autocompress.policy import Policy
from autocompress.record import Stage, TrialRecord
from autocompress.strategy.acquisition import expected_improvement

Array = NDArray[np.float64]

LONGEST = 10
"""Times as long as a candidate a model is trained at most."""
LEARNING = 0.7
"""Power of the epochs with which a loss falls.

A ResNet-8 (.955) without a branch reached .937, .952 and .957 in 3, 12 and 24 epochs. Of a full MobileNetV2 (.970) models with
.956, .952, .930 and .920 after 2 epochs reached .968, .967, .960 and .962 in 21, 32, 19 and 29. The powers lie between .6 and .9.
"""
MARGIN = 1.15
"""Times as long as told by others a training may take: what takes longer is shortened, or lost if its rates are the user's."""
MOST_LOSS = 6
"""Times the median loss of a front's models against the most accurate of all: what has lost more will hardly win it back."""
DESTROYED = 0.5
"""Share of the most accurate model's metric, where more is better: what has lost more comes last, however many have."""
SMALL_LOSS = 0.1
"""Times the median loss: what differs by less is hardly told apart."""
NOTHING_SAVED = 1.02
"""Costs are counted from this multiple of the original's, whatever the budget, so that accuracy counts as well."""
MOST_MODELS = 8
"""That are weighed against each other."""
OTHERS = (Stage.FINE_TUNE, Stage.EXPORT_UNTRAINED, Stage.MEASURE_UNTRAINED)
"""The training, and what is spared where a model was measured before. The longest of all else counts, as at the deadline."""


@dataclass(frozen=True)
class Lengths:
    """How long models are trained.

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
        """Fewer epochs are not worth it: as many as a candidate has, and more than this one had."""
        had = self.own if record.epochs is None else record.epochs
        return self.fixed(record) or max(self.own, had + 1)


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


@dataclass(frozen=True)
class Value:
    """What a front is worth: how fast a model is at every loss that a user may allow.

    That is the hypervolume with both axes on logarithmic scales: half the loss counts alike whether it is large or small, and so
    does half the latency.

    Attributes:
        most_accurate: gain against which losses are counted.
        smallest: losses below it are hardly told apart.
        largest: loss of interest.
        limit: cost of interest.
    """

    most_accurate: float
    smallest: float
    largest: float
    limit: float

    def added(self, models: Array, known: Array) -> Array:
        """What each model adds to those that are known; rows of (gain, cost)."""
        levels, others = self._levels(models[:, 0]), self._levels(known[:, 0])
        own_costs, known_costs = np.log(models[:, 1:]), np.log(known[:, 1:])
        mean = -np.log(np.maximum(levels, np.finfo(float).tiny))
        counted_from = 0.0, np.log([self.limit])
        return expected_improvement(mean, np.zeros(len(mean)), own_costs, others, known_costs, counted_from)

    def _levels(self, gains: Array) -> Array:
        """0 at the largest loss of interest."""
        smallest = max(self.smallest, np.finfo(float).tiny)
        losses = np.maximum(self.most_accurate - gains, 0.0)
        return np.asarray(np.log(self.largest + smallest) - np.log(losses + smallest))


class Finals:
    """What is known of a search, and what training a model of its front would add to that.

    Args:
        complete: all trials that were scored.
        useful: those of them that keep the limits.
        objectives: of the search.
        metric: of the task.
        lengths: of the trainings.
    """

    def __init__(
        self,
        complete: Sequence[TrialRecord],
        useful: Sequence[TrialRecord],
        objectives: Sequence[Objective],
        metric: Metric,
        lengths: Lengths,
    ) -> None:
        self._objectives, self._metric, self._lengths = objectives, metric, lengths
        self._most_accurate = max(self._gain(record) for record in complete)
        self._delivered = max((self._gain(record) for record in useful), default=-np.inf)
        self._is_first = not any(record.is_final for record in useful)
        self._originals = [self._cost(record) for record in complete if record.source == ORIGINAL]
        known = np.array([[self._gain(record), self._cost(record)] for record in useful]).reshape(-1, 2)
        self._known = known[non_dominated(known * (-1, 1))]
        timed = [(record, record.epochs or lengths.own) for record in complete if record.seconds.get(Stage.FINE_TUNE)]
        self._timed = [(record, epochs) for record, epochs in timed if epochs >= lengths.own]  # a first epoch takes longer
        self._besides = max(sum(s for stage, s in record.seconds.items() if stage not in OTHERS) for record in complete)

    def promising_and_others(self, front: Sequence[TrialRecord]) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """The models of a front that may come near the most accurate one of all, and those that have lost far more than most."""
        losses = [self._loss(record) for record in front]
        most = MOST_LOSS * median(losses) or math.inf if front else 0.0  # most may be as accurate as the most accurate
        most = min(most, DESTROYED * self._most_accurate) if self._most_accurate > 0 else most
        promising = [record for record, loss in zip(front, losses, strict=True) if loss <= most]
        return promising, [record for record in front if record not in promising]

    def next(self, models: Sequence[TrialRecord], seconds: float | None) -> Final | None:
        """The model that is trained next, and for how long; None where there is no time for any.

        Training few models for long and many for a short time are weighed against each other by what each is foretold to add.

        Args:
            models: that were not trained yet, as candidates.
            seconds: that are left; None without a limit.
        """
        counts = range(1, min(len(models), MOST_MODELS) + 1)
        plans = [self._plan(models, None if seconds is None else seconds / count, count) for count in counts]
        feasible = [(added, count, chosen[0]) for (added, chosen), count in zip(plans, counts, strict=True) if chosen]
        return max(feasible, key=lambda plan: plan[:2])[2] if feasible else None

    def _plan(self, models: Sequence[TrialRecord], share: float | None, count: int) -> tuple[float, list[Final]]:
        """What so many models add, each trained for its share of the time; and the models in order.

        The very first is what will be delivered, unless something better is there without a training; then comes what adds most.
        """
        open_ones = [final for record in models if (final := self._final(record, share)) is not None]
        losses = [self._loss(record) for record in models]
        value = Value(self._most_accurate, SMALL_LOSS * median(losses), max(losses), NOTHING_SAVED * self._largest_cost(models))
        known, total = self._known, 0.0
        chosen: list[Final] = []
        while open_ones and len(chosen) < count:
            added = value.added(np.array([[final.gain, self._cost(final.record)] for final in open_ones]), known)
            most_accurate = max(range(len(open_ones)), key=lambda i: open_ones[i].gain)
            best = max(range(len(open_ones)), key=lambda i: (added[i], open_ones[i].gain))
            if self._is_first and not chosen and open_ones[most_accurate].gain > self._delivered:
                best = most_accurate
            chosen.append(open_ones.pop(best))
            known = np.concatenate([known, [[chosen[-1].gain, self._cost(chosen[-1].record)]]])
            total += float(added[best])
        return total, chosen

    def _largest_cost(self, models: Sequence[TrialRecord]) -> float:
        return max([*self._originals, *map(self._cost, models)])

    def _final(self, record: TrialRecord, share: float | None) -> Final | None:
        """A model's training within a share of the time; None where it does not fit."""
        epochs = least = self._lengths.least(record)
        if share is not None:
            fits = self._epochs_within(share, record)
            if fits < least:
                return None
            epochs = self._lengths.fixed(record) or min(fits, max(least, LONGEST * self._lengths.own))
        return Final(record, epochs, self._foretold(record, epochs))

    def _epochs_within(self, seconds: float, record: TrialRecord) -> int:
        """For how many epochs a model can be trained, told by one of its size that was; without any, as few as make sense."""
        if not self._timed:
            return self._lengths.least(record) if seconds > 0 else 0
        nearest, epochs = min(self._timed, key=lambda pair: abs((pair[0].macs or 0) - (record.macs or 0)))
        return int((seconds - self._besides) / (MARGIN * nearest.seconds[Stage.FINE_TUNE] / epochs))

    def _foretold(self, record: TrialRecord, epochs: int) -> float:
        """The gain of a model after a training; what an heir without any of its own inherited counts as a candidate's."""
        own = self._lengths.own
        kept = float(max((epochs + own * (record.epochs == 0)) / own, 1.0) ** -LEARNING)
        return self._most_accurate - kept * self._loss(record)

    def _gain(self, record: TrialRecord) -> float:
        return float(self._metric.gain(record.accuracy_valid or 0.0))

    def _loss(self, record: TrialRecord) -> float:
        return self._most_accurate - self._gain(record)

    def _cost(self, record: TrialRecord) -> float:
        """The first objective beside the accuracy: with more of them a plan would take longer than it is worth."""
        return costs(record, self._objectives, self._metric)[1]
