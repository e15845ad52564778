"""The front's own training after a search: which models, in which order, for how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from autocompress.metrics import Metric
from autocompress.record import Stage, TrialRecord
from autocompress.shared import is_shared

LONG, LONGEST = 4, 16
"""Times as long as a candidate the first models are trained, and all where there is time for it.

On a ResNet-8 without a branch 3 epochs gave .937, 12 gave .952 and 24 gave .957; on a MobileNetV2 with a quarter of its channels
2 gave .918, 11 gave .959 and 19 gave .966.
"""
MARGIN = 1.15
"""Times as long as told by others a training may take: one that has to be cut off is lost."""
MOST_LOSS = 3
"""Times the median loss of a front's models against the most accurate one: what has lost more comes last."""


def in_order(front: Sequence[TrialRecord], best: TrialRecord | None, metric: Metric) -> list[TrialRecord]:
    """The models of a front in the order in which they are trained once more.

    The best one comes first, and then always the one that is farthest in latency from those before it: neighbours on the front
    would win the same. What has lost far more than the others will not win it back.

    Args:
        front: measured and scored.
        best: the one that would be deployed now; None where there is none.
        metric: of the task.
    """
    if not front:
        return []
    most_accurate = max(_gain(record, metric) for record in front)
    losses = {record.number: most_accurate - _gain(record, metric) for record in front}
    most = MOST_LOSS * median(losses.values())

    def is_best(record: TrialRecord) -> bool:
        return best is not None and record.policy == best.policy

    ranked = sorted(front, key=lambda record: (not is_best(record), losses[record.number]))
    promising = [record for record in ranked if is_best(record) or losses[record.number] <= most]
    return _spread(promising) + _spread([record for record in ranked if record not in promising])


def _gain(record: TrialRecord, metric: Metric) -> float:
    return metric.gain(record.accuracy_valid or 0.0)


def _spread(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The first one, then always the one farthest from those before it."""
    ordered, left = list(records[:1]), list(records[1:])
    while left:
        farthest = max(left, key=lambda record: min(_distance(record, other) for other in ordered))
        ordered.append(farthest)
        left.remove(farthest)
    return ordered


def _distance(one: TrialRecord, other: TrialRecord) -> float:
    """How many times as fast, as a logarithm."""
    if one.latency is None or other.latency is None:
        return 0.0
    return abs(math.log(one.latency.ms / other.latency.ms))


def epochs_within(
    seconds: float, models: int, record: TrialRecord, tuned: Sequence[TrialRecord], own: int, least: int
) -> int | None:
    """How long a model is trained; None where there is no time for it.

    Args:
        seconds: that are left.
        models: that are still to be trained, this one among them.
        record: the model as a candidate.
        tuned: what was trained before, from which the seconds are told.
        own: epochs of a candidate that is trained by itself.
        least: fewer are not worth it.
    """
    trained = [(one, epochs) for one in tuned if one.seconds.get(Stage.FINE_TUNE) and (epochs := _epochs_of(one, own))]
    if not trained:
        return least if seconds > 0 else None
    nearest, epochs = min(trained, key=lambda pair: abs((pair[0].macs or 0) - (record.macs or 0)))
    epoch = MARGIN * nearest.seconds[Stage.FINE_TUNE] / epochs
    besides = max(one.total_seconds - one.seconds[Stage.FINE_TUNE] for one, _ in trained)
    fits, even_share = (int((part - besides) / epoch) for part in (seconds, seconds / models))
    return None if fits < least else min(fits, LONGEST * own, max(LONG * own, even_share))


def _epochs_of(record: TrialRecord, own: int) -> int | None:
    """How long a model was trained; None of an heir that was trained for a shorter time."""
    if record.plan.epochs is not None:
        return record.plan.epochs
    return None if Stage.INHERIT in record.done and is_shared(record.policy) else own
