"""A policy that meets a target in one go: which channels go is decided for all groups together, without any training.

For multiply-accumulates the target is met exactly. For latency the layer table says in which order channels go, and untrained
candidates are measured until the one is found that is pruned least of those within the budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.device import Fingerprint
from autocompress.errors import ConfigError
from autocompress.policy import Policy
from autocompress.record import Latency
from autocompress.run_folder import RunFolder
from autocompress.space import SearchSpace
from autocompress.strategy.global_pruning import Ladder, global_ratios, ladders_of, pruning_path
from autocompress.target.predict import Predictor
from autocompress.trial import Workbench
from autocompress.watch import Watcher

HALF_WIDTH = 0.01
"""How closely the latency of a candidate has to be known."""
CLOSE = 0.03
"""A latency that is below the budget by no more than this fraction is near enough."""
GUESSES = 4
"""Candidates that the predictor picks; those after them halve what is left, so that a poor predictor costs little."""
POLICIES = "policies.json"
"""What was found in a run, by target."""


@dataclass
class GlobalMode:
    """Finds policies for targets.

    Attributes:
        space: which groups are pruned, how far at most and in which steps; and what is fixed, for example INT8.
    """

    bench: Workbench
    space: SearchSpace
    fingerprint: Fingerprint
    watcher: Watcher

    def for_macs(self, share: float) -> Policy:
        """The policy that leaves this share of the original's multiply-accumulates.

        Raises:
            ConfigError: no policy leaves so few; the message tells the smallest share.
        """
        structure = self.bench.structure

        def cost(ratios: Mapping[str, float]) -> float:
            return structure.macs_share(self._policy(ratios).pruning)

        found = global_ratios(structure, self._scores, self.space.steps, cost, share, self._limits, self._branches)
        policy = self._policy(found)
        self._say_found(policy)
        return policy

    def for_latency(self, budget_ms: float, folder: RunFolder) -> Policy:
        """The policy that is pruned least of those whose untrained candidates are within a budget.

        It is kept in the run folder: measured again, another one might be found, and a resumed run would train it anew.

        Raises:
            ConfigError: even the most pruned candidate is over it; the message tells its latency.
        """
        policy = found_before(folder, budget_ms)
        if policy is None:
            policy = self._least_pruned(budget_ms)
            folder.write_json(POLICIES, {**_policies(folder), _target(budget_ms): policy.to_dict()})
        self._say_found(policy)
        return policy

    def _least_pruned(self, budget_ms: float) -> Policy:
        """Of those within the budget, by measuring untrained candidates on the path from the whole model to the smallest."""
        predictor = self._predictor()
        share = budget_ms / self.bench.reference_ms
        latency = self._measured(self._policy({}), predictor)
        if latency.ratio_high <= share:
            return self._policy({})
        path = [self._policy(ratios) for ratios in pruning_path(self._ladders, lambda p: predictor.ratio(self._policy(p)))]
        misses, fits, tried = 0, len(path), 0
        while fits - misses > 1:
            i = _next(path, misses, fits, predictor if tried < GUESSES else None, share)
            latency, tried = self._measured(path[i], predictor), tried + 1
            if latency.ratio_high > share:
                misses = i
                continue
            fits = i
            if latency.ratio >= (1 - CLOSE) * share:
                break
        if fits == len(path) and latency.ratio > share:
            raise _over_budget(budget_ms, latency)
        return path[min(fits, len(path) - 1)]

    def _measured(self, policy: Policy, predictor: Predictor) -> Latency:
        """The latency of an untrained candidate; the predictor learns from it."""
        predicted = predictor.ratio(policy)
        latency = self.bench.untrained_latency(self.bench.candidate(policy), HALF_WIDTH)
        predictor.observe(policy, latency.ratio)
        self.watcher.say(
            f"{self.bench.structure.macs_share(policy.pruning):.1%} of the multiply-accumulates, untrained: {latency.ms:.4g} ms, "
            f"{latency.ratio:.1%} of the original ({predicted:.1%} predicted)"
        )
        return latency

    def _say_found(self, policy: Policy) -> None:
        ratios = ", ".join(f"{name} {ratio:.3g}" for name, ratio in policy.pruning.items())
        self.watcher.say(
            f"Pruned to {self.bench.structure.macs_share(policy.pruning):.1%} of the multiply-accumulates: {ratios or 'nothing'}"
        )

    def _policy(self, ratios: Mapping[str, float]) -> Policy:
        return Policy({**self.base.pruning, **ratios}, self.base.layers)

    @cached_property
    def base(self) -> Policy:
        """What is fixed for every policy, and the least pruning."""
        return self.space.policy(self.space.level(0.0))

    @cached_property
    def _limits(self) -> dict[str, float]:
        """Group → the largest ratio that leaves any of it."""
        return {d.subject: max(r for r in d.choices if r < 1) for d in self.space.decisions if d.kind == "prune"}

    @cached_property
    def _branches(self) -> set[str]:
        return {d.subject for d in self.space.decisions if d.kind == "prune" and d.choices[-1] == 1}

    @cached_property
    def _scores(self) -> dict[str, NDArray[np.float64]]:
        """Of the groups that the space prunes."""
        found = self.bench.framework.importance(self.bench.task, self.bench.config.criterion)
        return {name: scores for name, scores in found.items() if name in self._limits}

    @cached_property
    def _ladders(self) -> dict[str, Ladder]:
        return ladders_of(self.bench.structure, self._scores, self.space.steps, self._limits, self._branches)

    def _predictor(self) -> Predictor:
        """Of the original's layers, timed at the widths that can be reached."""
        self.watcher.say("Timing the model's layers at several widths; they are remembered")
        ratios = {name: ladder.ratios for name, ladder in self._ladders.items()}
        return self.bench.predictor(ratios, self.fingerprint, self.watcher.progress)


def found_before(folder: RunFolder, budget_ms: float) -> Policy | None:
    """The policy that was found for a budget before the run was resumed."""
    known = _policies(folder).get(_target(budget_ms))
    return None if known is None else Policy.from_dict(known)


def _policies(folder: RunFolder) -> dict[str, Any]:
    return dict(folder.read_json(POLICIES)) if folder.file(POLICIES).is_file() else {}


def _target(budget_ms: float) -> str:
    return f"latency {budget_ms:.6g} ms"


def _next(path: Sequence[Policy], misses: int, fits: int, predictor: Predictor | None, share: float) -> int:
    """Which candidate between one that misses the budget and one that fits is measured next."""
    if predictor is None:
        return (misses + fits) // 2
    between = range(misses + 1, fits)
    return next((i for i in between if predictor.ratio(path[i]) <= share), fits - 1)


def _over_budget(budget_ms: float, latency: Latency) -> ConfigError:
    return ConfigError(
        "A budget is at least what the most pruned candidate takes",
        f"{budget_ms:.4g} ms",
        f"The most pruned takes {latency.ms:.4g} ms, {latency.ratio:.1%} of the original. Raise the budget.",
    )
