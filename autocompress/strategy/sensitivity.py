"""How much each choice hurts when it is made alone, without fine-tuning.

Scores are kept on disk as they come, so a probe that was interrupted goes on where it stopped, and the next search of the same
model begins with them. Choices that were not probed are unknown (NaN), not harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autocompress.decision import Decision
from autocompress.metrics import Metric
from autocompress.policy import FLOAT, UNSTRUCTURED, LayerPolicy, Policy, sparsity_of
from autocompress.strategy.surrogate import Scale
from autocompress.target.cache import read_json, write_json

RUINED = 0.05
"""How far below the worst score a model that knows nothing is taken to be, relative to the original's advantage over it."""

LEAST_LOST = 0.1
"""Where nothing that was probed hurts, losses are relative to this share of the original's score."""

Score = Callable[[Policy], float]
"""The task's metric of a policy's candidate that was not fine-tuned."""


@dataclass(frozen=True)
class Sensitivities:
    """What was probed.

    Attributes:
        original: score of the model without compression, on the same samples.
        scores: decision name → score of each choice, NaN where it was not probed.
        metric: of the scores.
    """

    original: float
    scores: Mapping[str, tuple[float, ...]]
    metric: Metric

    @property
    def damages(self) -> dict[str, list[float]]:
        """Decision name → damage of each choice on the surrogate's scale, NaN where it was not probed."""
        gains = {name: np.array([self.metric.gain(score) for score in scores]) for name, scores in self.scores.items()}
        original = self.metric.gain(self.original)
        worst = min((float(np.nanmin(one)) for one in gains.values() if not np.isnan(one).all()), default=original)
        worst = min(worst, original - LEAST_LOST * max(abs(original), 1e-9))
        scale = Scale(original, worst - RUINED * (original - worst))
        return {name: np.maximum(scale.z(gain), 0.0).tolist() for name, gain in gains.items()}

    @property
    def probed(self) -> float:
        """The share of the choices that were probed."""
        known = [not np.isnan(score) for scores in self.scores.values() for score in scores]
        return sum(known) / len(known) if known else 1.0


def alone(decision: Decision, choice: int) -> Policy:
    """The policy that makes one choice and leaves everything else as it is."""
    value = decision.choices[choice]
    if decision.kind == "prune":
        return Policy({decision.subject: value})
    if decision.kind == "bits":
        return Policy({}, {decision.subject: LayerPolicy(*value)})
    pattern = value if isinstance(value, str) else UNSTRUCTURED
    return Policy({}, {decision.subject: LayerPolicy(FLOAT, FLOAT, sparsity_of(value), pattern)})


def probe(
    decisions: Sequence[Decision],
    score: Score,
    metric: Metric,
    path: Path,
    goes_on: Callable[[float], bool] = lambda fraction: True,
) -> Sensitivities:
    """Score every choice of every decision alone.

    The middle choices come first: if there is no time for all, each decision has some that are known.

    Args:
        decisions: of the space.
        score: a policy without fine-tuning. What it raises for a candidate that cannot be built leaves that choice unknown.
        metric: of the scores.
        path: of the file that keeps them; its name stands for all that they depend on.
        goes_on: called with the finished share before each choice; False ends the probe early.
    """
    known: dict[str, float] = read_json(path) or {}
    choices = [(decision, i) for decision in decisions for i in range(len(decision.choices))]
    wanted = {Policy().key: Policy()}
    for decision, i in sorted(choices, key=lambda one: abs(2 * one[1] - len(one[0].choices) + 1)):
        policy = alone(decision, i)
        wanted.setdefault(policy.key, policy)
    missing = [(key, policy) for key, policy in wanted.items() if key not in known]
    for done, (key, policy) in enumerate(missing):
        if not policy.is_identity and not goes_on(done / len(missing)):
            break
        known[key] = _scored(score, policy)
        write_json(path, known)
    found = {d.name: tuple(known.get(alone(d, i).key, np.nan) for i in range(len(d.choices))) for d in decisions}
    return Sensitivities(known[Policy().key], found, metric)


def _scored(score: Score, policy: Policy) -> float:
    """NaN for a candidate that cannot be built: its trial would fail as well, and the search goes on."""
    try:
        return score(policy)
    except Exception:  # pruning of user models fails in any way
        if policy.is_identity:
            raise
        return float("nan")
