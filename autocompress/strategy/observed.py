"""What a study holds, as arrays in an order that does not depend on when the trials were made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

Array = NDArray[np.float64]
Points = NDArray[np.int64]
Point = tuple[int, ...]


@dataclass(frozen=True)
class Observed:
    """The trials of a study.

    Attributes:
        points: of each policy that was completed, (n, decisions), without repeats.
        gains: average value of the first objective, its sign turned so that more is better, (n,).
        costs: average values of the other objectives, (n, k).
        counts: how often each was completed, (n,).
        repeat_variance: of a gain when a policy is repeated; None without repeats.
        pending: points that are being tried.
        others: points that were given up: over the budget, or failed.
    """

    points: Points
    gains: Array
    costs: Array
    counts: Array
    repeat_variance: float | None
    pending: tuple[Point, ...]
    others: tuple[Point, ...]

    @cached_property
    def tried(self) -> frozenset[Point]:
        """Every point that need not be proposed again."""
        return frozenset([*map(tuple, self.points.tolist()), *self.pending, *self.others])

    def seed(self, seed: int) -> list[int]:
        """Entropy for a generator: the same for the same history."""
        text = hashlib.sha256(repr((self.pending, self.others)).encode())
        for part in (self.points, self.gains, self.costs):
            text.update(np.ascontiguousarray(part).tobytes())
        return [seed, int.from_bytes(text.digest()[:8], "little")]


def observed(study: Study, names: Sequence[str], besides: int | None = None) -> Observed:
    """Read a study.

    Args:
        study: with two or more objectives.
        names: of the parameters; trials that lack one are left out.
        besides: the number of a trial that is left out.
    """
    wanted = set(names)
    complete: dict[Point, list[FrozenTrial]] = {}
    pending: list[Point] = []
    others: list[Point] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.number == besides or not trial.params.keys() >= wanted:
            continue
        point = tuple(trial.params[name] for name in names)
        if trial.state == TrialState.COMPLETE:
            complete.setdefault(point, []).append(trial)
        else:
            (others if trial.state.is_finished() else pending).append(point)
    return _united(study, complete, sorted(pending), sorted(others), len(names))


def _united(
    study: Study, complete: dict[Point, list[FrozenTrial]], pending: list[Point], others: list[Point], width: int
) -> Observed:
    sign = 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0
    points = sorted(complete)
    values = [np.array([trial.values for trial in complete[point]], dtype=float) for point in points]
    counts = np.array([len(one) for one in values], dtype=float)
    means = np.array([one.mean(0) for one in values]).reshape(len(points), len(study.directions))
    degrees = counts.sum() - len(counts)
    squares = sum(float(((one[:, 0] - one[:, 0].mean()) ** 2).sum()) for one in values)
    return Observed(
        np.array(points, dtype=np.int64).reshape(-1, width),
        sign * means[:, 0],
        means[:, 1:],
        counts,
        squares / degrees if degrees > 0 else None,
        tuple(dict.fromkeys(pending)),
        tuple(dict.fromkeys(others)),
    )
