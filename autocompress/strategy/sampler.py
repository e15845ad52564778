"""An Optuna sampler that knows what choices cost before they are tried.

Latency (and size) of a policy are known without training, accuracy is learned from the trials (`surrogate.py`). The sampler
begins with a knapsack over believed damages and then proposes what is expected to add most hypervolume (`acquisition.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from autocompress.decision import Decision
from autocompress.errors import ConfigError
from autocompress.strategy.breeding import best_bred
from autocompress.strategy.damages import blended, generic_damages, probed_damages
from autocompress.strategy.knapsack import Cost, knapsack_seeds
from autocompress.strategy.observed import Observed, Point, observed
from autocompress.strategy.prospect import Limits, Prospect
from autocompress.strategy.surrogate import Features, Scale

Array = NDArray[np.float64]

SEEDS = 8
"""Points of the knapsack that are tried before anything is learned."""
TRUST = (0.5, 1.0, 0.0)
"""How far probed sensitivities may be trusted; the first is believed where nothing speaks for another."""


class SurrogateSampler(BaseSampler):
    """Proposes points for a study over (accuracy, latency) or (accuracy, latency, size).

    The parameters are `trial.suggest_int(decision.name, 0, len(decision.choices) - 1)`. What it proposes depends on the seed and
    on the trials in the study only, whatever the storage; trials that run elsewhere are believed to end as expected. Where some
    models are trained for longer than others, the user attribute `fidelity` of their trials, a number, tells so: what other
    training costs is learned, and accuracy is predicted as at the commonest of them.

    Args:
        decisions: of the space, in the order of the model.
        latency: estimates the second objective of points, one a row.
        size: estimates the third one; needed where there is one, or a limit.
        original: first objective of the model without compression.
        floor: first objective of a model that knows nothing; by default 0, or below all that was seen where that is lower.
        limits: that a model has to keep.
        sensitivities: decision name → damage of each choice alone, without fine-tuning; NaN where unknown.
        noise: standard deviation of the first objective when a policy is tuned again; by default from repeats.
        seed: of the random choices.

    Raises:
        ConfigError: size is limited but not estimated.
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        latency: Cost,
        *,
        original: float,
        size: Cost | None = None,
        floor: float | None = None,
        limits: Limits = Limits(),  # noqa: B008, it is immutable
        sensitivities: Mapping[str, Sequence[float]] | None = None,
        noise: float | None = None,
        seed: int = 0,
    ) -> None:
        if limits.size is not None and size is None:
            raise ConfigError("A limit of the size needs an estimate of the size", None, "Pass size=FUNCTION.")
        self.decisions = tuple(decisions)
        self.limits = limits
        self._costs = [latency] if size is None else [latency, size]
        self._original, self._floor, self._noise, self._seed = original, floor, noise, seed
        self._names = [d.name for d in decisions]
        generic, probed = generic_damages(decisions), probed_damages(decisions, sensitivities or {})
        trusts = TRUST if sensitivities else (0.0,)
        self._beliefs = [blended(generic, probed, trust) for trust in trusts]
        self._features = [Features(decisions, damages) for damages in self._beliefs]
        self._independent = RandomSampler(seed)
        self._seeds: list[Point] | None = None

    def seeds(self) -> list[Point]:
        """The first candidates."""
        if self._seeds is None:
            limits = [np.inf if limit is None else limit for limit in (self.limits.latency, self.limits.size)]
            beliefs = self._beliefs[:: len(self._beliefs) - 1 or 1]  # as probed, and as if nothing had been
            found = [knapsack_seeds(one, self._costs, limits[: len(self._costs)], SEEDS // len(beliefs)) for one in beliefs]
            self._seeds = [point for point in dict.fromkeys(chain(*zip_longest(*found))) if point is not None]
        return self._seeds

    def shortlist(self, study: Study, count: int, besides: int | None = None) -> list[Point]:
        """The points that are most worth a trial, the best first, none of them tried.

        Args:
            study: what is known.
            count: how many, at most.
            besides: the number of a trial that is taken to be absent.
        """
        seen = self._read(study, besides)
        prospect = self._prospect(study, seen)
        seeds = np.array(self.seeds(), dtype=np.int64).reshape(-1, len(self.decisions))
        hopeful = [point for point, is_lost in zip(self.seeds(), prospect.is_hopeless(seeds), strict=True) if not is_lost]
        waiting = [point for point in hopeful if point not in seen.tried]
        if waiting and seen.is_judged.sum() < SEEDS:
            return waiting[:1]
        generator = np.random.default_rng(seen.seed(self._seed))
        start = [*self.seeds(), *map(tuple, prospect.front.tolist())]
        return best_bred([len(d.choices) for d in self.decisions], start, prospect.worth, seen.tried, count, generator)

    def choose(self, study: Study, points: Sequence[Point], latencies: Sequence[float]) -> int:
        """Which of some points is most worth a trial, now that their latencies were measured."""
        return int(self.state(study).worth(np.array(points, dtype=np.int64), np.asarray(latencies, dtype=float)).argmax())

    def state(self, study: Study) -> Prospect:
        """What is known, and what points are worth."""
        return self._prospect(study, self._read(study, None))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All decisions that are open."""
        return {d.name: IntDistribution(0, len(d.choices) - 1) for d in self.decisions if len(d.choices) > 1}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The first of the shortlist."""
        found = self.shortlist(study, 1, besides=trial.number)
        point = dict(zip(self._names, found[0], strict=True)) if found else {}
        return {name: value for name, value in point.items() if name in search_space}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """For a parameter that is not a decision, and where every point was tried."""
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Nothing to do: workers see each other's pending trials, and so propose different points."""

    def _read(self, study: Study, besides: int | None) -> Observed:
        objectives = len(study.directions)
        if objectives not in (2, 3) or (objectives == 3 and len(self._costs) == 1):
            raise ConfigError(
                "This sampler needs a study over accuracy and latency, and a size where it is estimated",
                f"{objectives} objectives",
                "Use optuna.create_study(directions=[..., 'minimize']), or size=FUNCTION for a third one.",
            )
        return observed(study, self._names, besides)

    def _prospect(self, study: Study, seen: Observed) -> Prospect:
        sign = 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0
        return Prospect(seen, self._scale(sign, seen.gains), self._features, self._costs, self.limits, self._noise)

    def _scale(self, sign: float, gains: Array) -> Scale:
        original = sign * self._original
        floor = sign * self._floor if self._floor is not None else min(0.0, original - abs(original))
        lowest = float(gains.min(initial=floor))
        if self._floor is None and lowest < floor:
            floor = lowest - 0.05 * (original - lowest)
        return Scale(original, min(floor, original - 1e-9))
