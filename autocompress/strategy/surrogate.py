"""What accuracy a policy will have after fine-tuning: Bayesian linear regression over the damages of its choices.

Accuracy is modelled as z = -log((gain - floor) / (original - floor)): what independent damages leave of a signal multiplies, so
their z add up. The regression's columns are the sum of the damages and its square, each decision's own damage, each choice,
and products of damages that meet: of neighbouring decisions, and of pruning and bits on one layer. How much each is believed at
first, the noise, and how far probed sensitivities are to be trusted are what makes the observations most likely (evidence, Bishop
2006, section 3.5).

Models that were trained for longer or shorter than most count too: what each other fidelity costs is one more column, and how
much less it tells a ratio of noises, both learned with the rest. What is predicted is the accuracy at the commonest fidelity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from autocompress.decision import Decision
from autocompress.strategy.damages import Damages

Array = NDArray[np.float64]
Points = NDArray[np.int64]
"""One row per policy, one column per decision: the index of the choice."""

LOWEST = 0.02
"""The smallest fraction of the original's gain that is told from none."""
SCALES = np.geomspace(0.02, 2.0, 12)
NOISES = np.geomspace(0.002, 0.2, 12)
"""Candidates for how much z damages of 1 cost, and for the standard deviation of z around the regression."""
LIKELY_SCALE, LIKELY_NOISE, DECADES = 0.3, 0.01, 2.0
"""Where both lie before anything was observed, and the standard deviation of their logarithms."""
CURVATURE = 0.3
"""Spread of the squared sum's weight, relative to that of the others: it must not make a ruined model look whole."""
OWN_SPREADS = (0.4, 1.2)
"""Candidates for how far single decisions and choices lie from their damages, relative to what damages cost."""
FIDELITY_SPREAD = 0.5
"""Spread of what another fidelity costs, relative to what damages cost."""
NOISE_RATIOS, FEW = (1.0, 2.0, 4.0), 5
"""Candidates for the noise of other fidelities relative to that of the commonest, of equals the first wins; so many observations
are too few to tell."""
MOST_COMPARED = 200
"""Observations on which beliefs are compared: the most accurate ones, for the front is what counts."""


@dataclass(frozen=True)
class Scale:
    """Gains on the regression's scale.

    Attributes:
        original: gain of the original model.
        floor: gain of a model that knows nothing.
    """

    original: float
    floor: float

    def fraction(self, gain: Array) -> Array:
        """How much of the original's advantage over the floor is left, at least LOWEST."""
        return np.maximum((gain - self.floor) / (self.original - self.floor), LOWEST)

    def z(self, gain: Array) -> Array:
        """Minus the logarithm of that."""
        return -np.log(self.fraction(gain))


@dataclass(frozen=True)
class Sample:
    """What was observed.

    Attributes:
        points: the policies, (n, decisions).
        z: of their gains, (n,).
        fraction: of the original's gain that they kept, (n,); noise of z grows as it falls.
        apart: a column for each fidelity but the commonest, 1 where an observation is of that one, (n, fidelities - 1).
    """

    points: Points
    z: Array
    fraction: Array
    apart: Array

    @property
    def is_apart(self) -> NDArray[np.bool_]:
        """Which observations are not of the commonest fidelity."""
        return np.asarray(self.apart.any(1))

    def certainty(self, noise_ratio: float) -> Array:
        """What each observation counts, where the noise of other fidelities is so many times that of the commonest."""
        return self.fraction / np.where(self.is_apart, noise_ratio, 1.0)

    def part(self, rows: NDArray[np.int64]) -> Sample:
        """Some of the observations."""
        return Sample(self.points[rows], self.z[rows], self.fraction[rows], self.apart[rows])


class Features:
    """The regression's columns for points of a space.

    Args:
        decisions: of the space.
        damages: of every choice.
    """

    def __init__(self, decisions: Sequence[Decision], damages: Damages) -> None:
        widths = [len(d.choices) for d in decisions]
        self._damages = np.zeros((len(decisions), max(widths, default=0)))
        for row, damage in zip(self._damages, damages, strict=True):
            row[: len(damage)] = damage
        self._first = np.concatenate([[0], np.cumsum([width - 1 for width in widths])]).astype(np.int64)
        self._pairs = np.array(_meeting(decisions), dtype=np.int64).reshape(-1, 2)
        self._typical = 1 / max(1, len(decisions))
        own = len(decisions) + int(self._first[-1]) + len(self._pairs)
        self.spreads = np.array([1.0, 2.0, CURVATURE, *[1.0] * own])
        self.is_own = np.array([False] * 3 + [True] * own)

    def __call__(self, points: Points) -> Array:
        """(policies, columns)."""
        damage = self._damages[np.arange(points.shape[1]), points]
        total = damage.sum(1, keepdims=True)
        pairs = np.sqrt(damage[:, self._pairs[:, 0]] * damage[:, self._pairs[:, 1]])
        return np.hstack([np.ones_like(total), total, total**2, damage, self._typical * self._choices(points), pairs])

    def _choices(self, points: Points) -> Array:
        """One column for each choice but the first of its decision."""
        found = np.zeros((len(points), int(self._first[-1])))
        rows, decisions = np.nonzero(points)
        found[rows, self._first[decisions] + points[rows, decisions] - 1] = 1.0
        return found


@dataclass(frozen=True)
class Belief:
    """What the observations make most likely.

    Attributes:
        features: with the damages that explain them best.
        scale: how much z damages of 1 cost.
        own: how far single choices lie from their damages.
        noise: standard deviation of z around the regression, where the gain is the original's and the fidelity the commonest.
        noise_ratio: that of other fidelities, relative to it.
        evidence: logarithm of their likelihood, up to a constant.
    """

    features: Features
    scale: float
    own: float
    noise: float
    noise_ratio: float
    evidence: float

    @property
    def spreads(self) -> Array:
        """Standard deviations of the weights of the features before anything was observed."""
        return self.scale * _spreads(self.features, self.own)


def best_belief(alternatives: Sequence[Features], seen: Sample) -> Belief:
    """The belief under which the observations are most likely.

    Args:
        alternatives: the columns with other damages each; of equals the first wins.
        seen: what was observed.
    """
    compared = seen.part(np.argsort(seen.z, kind="stable")[:MOST_COMPARED])
    ratios = NOISE_RATIOS if FEW < compared.is_apart.sum() < len(compared.z) - FEW else NOISE_RATIOS[:1]
    beliefs = [
        _most_likely(features, own, ratio, compared) for features in alternatives for own in OWN_SPREADS for ratio in ratios
    ]
    return max(beliefs, key=lambda belief: belief.evidence)


def _most_likely(features: Features, own: float, noise_ratio: float, seen: Sample) -> Belief:
    """Scale and noise for one choice of the others: one decomposition serves all of them."""
    certainty = seen.certainty(noise_ratio)
    rows = np.hstack([features(seen.points) * _spreads(features, own), FIDELITY_SPREAD * seen.apart]) * certainty[:, None]
    values, vectors = np.linalg.eigh(rows @ rows.T)
    found = (vectors.T @ (seen.z * certainty)) ** 2
    variances = np.maximum(values, 0) * SCALES[:, None, None] ** 2 + NOISES[None, :, None] ** 2
    evidence = -0.5 * (found / variances + np.log(variances)).sum(2) - seen.is_apart.sum() * np.log(noise_ratio)
    evidence -= 0.5 * (np.log(SCALES / LIKELY_SCALE)[:, None] / DECADES) ** 2
    evidence -= 0.5 * (np.log(NOISES / LIKELY_NOISE)[None, :] / DECADES) ** 2
    scale, noise = np.unravel_index(int(evidence.argmax()), evidence.shape)
    return Belief(features, float(SCALES[scale]), own, float(NOISES[noise]), noise_ratio, float(evidence[scale, noise]))


def _spreads(features: Features, own: float) -> Array:
    return features.spreads * np.where(features.is_own, own, 1.0)


class Surrogate:
    """The regression's posterior, of z at the commonest fidelity.

    Args:
        belief: what it starts from.
        seen: what was observed.
        repeat_noise: standard deviation of the fraction when the same policy is tuned again; None takes half the variance around
            the regression to be that.
    """

    def __init__(self, belief: Belief, seen: Sample, repeat_noise: float | None) -> None:
        self._features, self._apart = belief.features, seen.apart.shape[1]
        repeats = belief.noise**2 / 2 if repeat_noise is None else min(repeat_noise, belief.noise) ** 2
        self._misfit = belief.noise**2 - repeats  # what is a policy's own stays so when it is tuned again, or further
        self._repeats, self._repeats_apart = repeats, (belief.noise * belief.noise_ratio) ** 2 - self._misfit
        spreads = np.append(belief.spreads, [FIDELITY_SPREAD * belief.scale] * self._apart)
        certainty = seen.certainty(belief.noise_ratio) / belief.noise
        rows = np.hstack([self._features(seen.points), seen.apart]) * certainty[:, None]
        self._factor = cho_factor(rows.T @ rows + np.diag(spreads**-2.0), lower=True)
        self._weights: Array = cho_solve(self._factor, rows.T @ (seen.z * certainty))

    def predict(self, points: Points) -> tuple[Array, Array]:
        """Mean and standard deviation of z of policies that were not observed."""
        columns = np.hstack([self._features(points), np.zeros((len(points), self._apart))])
        half = solve_triangular(self._factor[0], columns.T, lower=True)
        mean = columns @ self._weights
        return mean, np.sqrt((half**2).sum(0) + self._misfit * np.exp(2 * np.clip(mean, -1, 4)))

    def mean_at(self, seen: Sample, counts: Array) -> Array:
        """Mean of z of policies that were observed, `counts` times each with the average z: between it and the regression."""
        columns = self._features(seen.points)
        mean = columns @ self._weights[: columns.shape[1]]
        total = self._misfit + np.where(seen.is_apart, self._repeats_apart, self._repeats) / counts
        return mean + (self.as_commonest(seen) - mean) * (self._misfit / total if self._misfit > 0 else 0.0)

    def as_commonest(self, seen: Sample) -> Array:
        """Z of what was observed, less what its fidelity costs."""
        return seen.z - seen.apart @ self._weights[len(self._weights) - self._apart :]


def _meeting(decisions: Sequence[Decision]) -> list[tuple[int, int]]:
    """Pairs of decisions whose damages meet: neighbours of one kind, and two kinds on one layer."""
    pairs: list[tuple[int, int]] = []
    last: dict[str, int] = {}
    for j, decision in enumerate(decisions):
        if decision.kind in last:
            pairs.append((last[decision.kind], j))
        pairs += [(i, j) for i, other in enumerate(decisions[:j]) if other.subject == decision.subject]
        last[decision.kind] = j
    return pairs
