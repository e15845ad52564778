"""What a study holds, as arrays in an order that does not depend on when the trials were made."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autocompress.errors import ConfigError

Array = NDArray[np.float64]
Points = NDArray[np.int64]
Point = tuple[int, ...]

FIDELITY = "fidelity"
"""Attribute of a trial: a number for how far its model was trained, more being further."""


@dataclass(frozen=True)
class Observed:
    """The trials of a study.

    Attributes:
        points: of each policy that was completed, (n, decisions), once for each of its fidelities.
        gains: average value of the first objective, its sign turned so that more is better, (n,).
        costs: average values of the other objectives, (n, k).
        counts: how often each was completed, (n,).
        fidelities: how far each was trained, (n,).
        commonest: fidelity of most trials; those that do not tell theirs count as such.
        repeat_variance: of a gain when a policy is repeated at one fidelity; None without repeats.
        pending: points that are being tried.
        others: points that were given up: over the budget, or failed.
    """

    points: Points
    gains: Array
    costs: Array
    counts: Array
    fidelities: Array
    commonest: float
    repeat_variance: float | None
    pending: tuple[Point, ...]
    others: tuple[Point, ...]

    @cached_property
    def apart(self) -> Array:
        """A column for each fidelity but the commonest, 1 where a policy was trained that far, (n, fidelities - 1)."""
        levels = np.unique(self.fidelities)
        return np.asarray(self.fidelities[:, None] == levels[levels != self.commonest], dtype=float)

    @cached_property
    def is_judged(self) -> NDArray[np.bool_]:
        """One row for each policy: that of the commonest fidelity, else of the highest, (n,)."""
        order = np.lexsort((self.fidelities, self.fidelities == self.commonest))
        last = {tuple(self.points[row].tolist()): row for row in order}
        return np.isin(np.arange(len(self.points)), list(last.values()))

    @cached_property
    def tried(self) -> frozenset[Point]:
        """Every point that need not be proposed again."""
        return frozenset([*map(tuple, self.points.tolist()), *self.pending, *self.others])

    def seed(self, seed: int) -> list[int]:
        """Entropy for a generator: the same for the same history."""
        text = hashlib.sha256(repr((self.pending, self.others)).encode())
        for part in (self.points, self.gains, self.costs, self.apart):
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
    complete: list[tuple[Point, FrozenTrial]] = []
    pending: list[Point] = []
    others: list[Point] = []
    for trial in study.get_trials(deepcopy=False):
        if trial.number == besides or not trial.params.keys() >= wanted:
            continue
        point = tuple(trial.params[name] for name in names)
        if trial.state == TrialState.COMPLETE:
            complete.append((point, trial))
        else:
            (others if trial.state.is_finished() else pending).append(point)
    levels = [_fidelity(trial) for _, trial in complete]
    commonest = _commonest([level for level in levels if level is not None])
    kinds: dict[tuple[Point, float], list[FrozenTrial]] = {}
    for (point, trial), level in zip(complete, levels, strict=True):
        kinds.setdefault((point, commonest if level is None else level), []).append(trial)
    ordered = dict(sorted(kinds.items(), key=lambda item: item[0]))
    return _united(study, ordered, commonest, sorted(pending), sorted(others), len(names))


def _fidelity(trial: FrozenTrial) -> float | None:
    """What a trial tells.

    Raises:
        ConfigError: it is not a number.
    """
    told = trial.user_attrs.get(FIDELITY)
    if told is None:
        return None
    if not isinstance(told, int | float) or not math.isfinite(told):
        raise ConfigError(f"The attribute {FIDELITY!r} of a trial is a finite number", repr(told), "Set another, or none.")
    return float(told)


def _commonest(levels: Sequence[float]) -> float:
    """The highest of the most frequent ones."""
    return max(Counter(levels).items(), key=lambda found: (found[1], found[0]), default=(0.0, 0))[0]


def _united(
    study: Study,
    complete: Mapping[tuple[Point, float], list[FrozenTrial]],
    commonest: float,
    pending: list[Point],
    others: list[Point],
    width: int,
) -> Observed:
    sign = 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0
    values = [np.array([trial.values for trial in trials], dtype=float) for trials in complete.values()]
    counts = np.array([len(one) for one in values], dtype=float)
    means = np.array([one.mean(0) for one in values]).reshape(len(complete), len(study.directions))
    degrees = counts.sum() - len(counts)
    squares = sum(float(((one[:, 0] - one[:, 0].mean()) ** 2).sum()) for one in values)
    return Observed(
        np.array([point for point, _ in complete], dtype=np.int64).reshape(-1, width),
        sign * means[:, 0],
        means[:, 1:],
        counts,
        np.array([level for _, level in complete], dtype=float),
        commonest,
        squares / degrees if degrees > 0 else None,
        tuple(dict.fromkeys(pending)),
        tuple(dict.fromkeys(others)),
    )
