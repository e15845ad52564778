"""Replays of search strategies over problems whose outcomes are known, with the seconds that each trial would have taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from autocompress.decision import Decision
from autocompress.strategy.prospect import Limits
from autocompress.strategy.rivals import rival
from autocompress.strategy.sampler import SurrogateSampler

Array = NDArray[np.float64]
Points = NDArray[np.int64]
MOST_GATED = 2_000
"""So many candidates in a row that end at the gate end a replay."""


class Problem(Protocol):
    """A search problem whose truth is known."""

    decisions: tuple[Decision, ...]
    sensitivities: Mapping[str, Sequence[float]]
    original: float
    budget: float
    worst_drop: float
    probing_seconds: float
    gate_share: float
    """What a candidate that ends at the latency gate takes, relative to a trial that is scored."""

    def latency(self, points: Points) -> Array:
        """Estimated beforehand, relative to the original."""
        ...

    def measured(self, point: Points, draw: np.random.Generator) -> tuple[float, float]:
        """Accuracy and latency of one trial."""
        ...

    def seconds(self, point: Points) -> float:
        """Fine-tuning of one trial."""
        ...

    def truth(self, points: Points) -> tuple[Array, Array]:
        """Latencies and accuracies without noise."""
        ...

    def best_front(self) -> tuple[Array, Array]:
        """Latencies and accuracies of the best that there is."""
        ...


@dataclass(frozen=True)
class Curve:
    """How far a strategy came: after each fine-tuned trial, the seconds so far and the share of the best hypervolume."""

    strategy: str
    seed: int
    seconds: tuple[float, ...]
    shares: tuple[float, ...]


def ours(problem: Problem, seed: int, sensitivities: bool = True) -> SurrogateSampler:
    """The project's own sampler."""
    return SurrogateSampler(
        problem.decisions,
        problem.latency,
        original=problem.original,
        limits=Limits(problem.budget, problem.worst_drop),
        sensitivities=problem.sensitivities if sensitivities else None,
        seed=seed,
    )


def _seeded(name: str) -> Callable[[Problem, int], tuple[BaseSampler, list[tuple[int, ...]]]]:
    def build(problem: Problem, seed: int) -> tuple[BaseSampler, list[tuple[int, ...]]]:
        space = {d.name: IntDistribution(0, len(d.choices) - 1) for d in problem.decisions}
        return rival(name, space, seed), ours(problem, seed).seeds()

    return build


def uniform_grid(problem: Problem) -> list[tuple[int, ...]]:
    """Every group pruned alike, every layer in 8 bits."""
    levels = max(len(d.choices) for d in problem.decisions if d.kind == "prune")
    found = []
    for level in range(levels):
        point = [min(level, len(d.choices) - 1) if d.kind == "prune" else d.choices.index((8, 8)) for d in problem.decisions]
        found.append(tuple(point))
    return found


Strategy = Callable[[Problem, int], tuple[BaseSampler, list[tuple[int, ...]]]]
STRATEGIES: dict[str, Strategy] = {
    "autocompress": lambda problem, seed: (ours(problem, seed), []),
    "autocompress, not probed": lambda problem, seed: (ours(problem, seed, sensitivities=False), []),
    "mutation + seeds": _seeded("mutation"),
    "TPE + seeds": _seeded("tpe"),
    "NSGA-II + seeds, repaired": _seeded("nsga2"),
    "random": lambda problem, seed: (_seeded("random")(problem, seed)[0], []),
    "uniform grid": lambda problem, seed: (_seeded("random")(problem, seed)[0], uniform_grid(problem)),
}
UNPROBED = ("autocompress, not probed", "random", "uniform grid")


def replay(problem: Problem, strategy: str, seed: int, trials: int) -> Curve:
    """Run a strategy for so many fine-tuned trials; candidates over the budget end at the gate.

    A strategy that knows sensitivities begins with the seconds that probing took.
    """
    sampler, seeds = STRATEGIES[strategy](problem, seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for point in seeds:
        study.enqueue_trial({d.name: value for d, value in zip(problem.decisions, point, strict=True)})
    draw = np.random.default_rng(seed)
    clock = 0.0 if strategy in UNPROBED else problem.probing_seconds
    corner = problem.budget, problem.original - problem.worst_drop
    best = hypervolume(*problem.best_front(), *corner)
    points: list[tuple[int, ...]] = []
    seconds, shares = [], []
    gated = 0
    limit = len(seeds) if strategy == "uniform grid" else trials
    while len(points) < trials and gated < MOST_GATED and len(points) + gated * (strategy == "uniform grid") < limit:
        trial = study.ask()
        point = np.array([trial.suggest_int(d.name, 0, len(d.choices) - 1) for d in problem.decisions])
        accuracy, latency = problem.measured(point, draw)
        trial.set_constraint("latency", latency / problem.budget - 1)
        if latency > problem.budget:
            study.tell(trial, state=TrialState.PRUNED)
            clock, gated = clock + problem.gate_share * problem.seconds(point), gated + 1
            continue
        study.tell(trial, [accuracy, latency])
        clock += problem.seconds(point)
        points.append(tuple(point.tolist()))
        seconds.append(clock)
        shares.append(hypervolume(*problem.truth(np.array(points)), *corner) / best)
    return Curve(strategy, seed, tuple(seconds), tuple(shares))


def hypervolume(latencies: Array, accuracies: Array, budget: float, worst: float) -> float:
    """Between the front of some models and the corner (budget, worst accuracy)."""
    order = np.argsort(latencies, kind="stable")
    edges = np.minimum([*latencies[order], budget], budget)
    heights = np.maximum.accumulate(np.maximum(accuracies[order], worst)) - worst
    return float((np.diff(edges) * heights).sum())
