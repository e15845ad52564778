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

FIDELITY, TUNED = "fidelity", 1
"""Attribute of a trial: how far its model was trained, more being further. A trial without it counts as tuned."""


@dataclass(frozen=True)
class Observed:
    """The trials of a study.

    Attributes:
        points: of each policy that was completed, (n, decisions), once for each of its fidelities.
        gains: average value of the first objective, its sign turned so that more is better, (n,).
        costs: average values of the other objectives, (n, k).
        counts: how often each was completed, (n,).
        fidelities: how far each was trained, (n,).
        repeat_variance: of a gain when a policy is repeated at one fidelity; None without repeats.
        pending: points that are being tried.
        others: points that were given up: over the budget, or failed.
    """

    points: Points
    gains: Array
    costs: Array
    counts: Array
    fidelities: NDArray[np.int64]
    repeat_variance: float | None
    pending: tuple[Point, ...]
    others: tuple[Point, ...]

    @cached_property
    def lower(self) -> Array:
        """A column for each fidelity below the highest, 1 where a policy was trained so far, (n, fidelities - 1)."""
        levels = np.unique(self.fidelities)[:-1]
        return np.asarray(self.fidelities[:, None] == levels, dtype=float)

    @cached_property
    def is_last(self) -> NDArray[np.bool_]:
        """True where a policy was not trained further as well; its fidelities stand next to each other, (n,)."""
        last = np.ones(len(self.points), dtype=bool)
        last[:-1] = (self.points[1:] != self.points[:-1]).any(1)
        return last

    @cached_property
    def tried(self) -> frozenset[Point]:
        """Every point that need not be proposed again."""
        return frozenset([*map(tuple, self.points.tolist()), *self.pending, *self.others])

    def seed(self, seed: int) -> list[int]:
        """Entropy for a generator: the same for the same history."""
        text = hashlib.sha256(repr((self.pending, self.others)).encode())
        for part in (self.points, self.gains, self.costs, self.lower):
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
    complete: dict[tuple[Point, int], list[FrozenTrial]] = {}
    pending: list[Point] = []
    others: list[Point] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.number == besides or not trial.params.keys() >= wanted:
            continue
        point = tuple(trial.params[name] for name in names)
        if trial.state == TrialState.COMPLETE:
            complete.setdefault((point, int(trial.user_attrs.get(FIDELITY, TUNED))), []).append(trial)
        else:
            (others if trial.state.is_finished() else pending).append(point)
    return _united(study, complete, sorted(pending), sorted(others), len(names))


def _united(
    study: Study,
    complete: dict[tuple[Point, int], list[FrozenTrial]],
    pending: list[Point],
    others: list[Point],
    width: int,
) -> Observed:
    sign = 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0
    kinds = sorted(complete)
    values = [np.array([trial.values for trial in complete[kind]], dtype=float) for kind in kinds]
    counts = np.array([len(one) for one in values], dtype=float)
    means = np.array([one.mean(0) for one in values]).reshape(len(kinds), len(study.directions))
    degrees = counts.sum() - len(counts)
    squares = sum(float(((one[:, 0] - one[:, 0].mean()) ** 2).sum()) for one in values)
    return Observed(
        np.array([point for point, _ in kinds], dtype=np.int64).reshape(-1, width),
        sign * means[:, 0],
        means[:, 1:],
        counts,
        np.array([fidelity for _, fidelity in kinds], dtype=np.int64),
        squares / degrees if degrees > 0 else None,
        tuple(dict.fromkeys(pending)),
        tuple(dict.fromkeys(others)),
    )
