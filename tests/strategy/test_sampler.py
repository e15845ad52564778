"""The sampler by itself, in any study."""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from autocompress.decision import Decision
from autocompress.errors import ConfigError
from autocompress.strategy.mutation import silence_optuna
from autocompress.strategy.prospect import Limits
from autocompress.strategy.sampler import SurrogateSampler

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # the last: it has a module of models too
sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "search_benchmark"))
from replay import hypervolume
from synthetic_search import BUDGET, ORIGINAL, WORST_DROP, Problem

PROBLEM = Problem(2)
Point = tuple[int, ...]
TWO = ("maximize", "minimize")
WITHIN = Limits(latency=BUDGET)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    silence_optuna()


def sampler_of(problem: Problem = PROBLEM, limits: Limits = WITHIN, **options: Any) -> SurrogateSampler:
    return SurrogateSampler(problem.decisions, problem.latency, original=ORIGINAL, floor=0.1, limits=limits, **options)


def study_of(sampler: SurrogateSampler, storage: Any = None, directions: tuple[str, ...] = TWO) -> optuna.Study:
    return optuna.create_study(directions=list(directions), sampler=sampler, storage=storage)


def ask(study: optuna.Study, decisions: tuple[Decision, ...] = PROBLEM.decisions) -> tuple[optuna.Trial, Point]:
    trial = study.ask()
    return trial, tuple(trial.suggest_int(d.name, 0, len(d.choices) - 1) for d in decisions)


def search(study: optuna.Study, problem: Problem, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Ask and tell; what is over the budget ends at the gate."""
    draw, found = np.random.default_rng(seed), []
    for _ in range(count):
        trial, point = ask(study, problem.decisions)
        accuracy, latency = problem.measured(np.array(point), draw)
        if latency > BUDGET:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, [accuracy, latency])
        found.append(point)
    return np.array(found)


def reached(problem: Problem, points: NDArray[np.int64]) -> float:
    corner = problem.budget, problem.original - problem.worst_drop
    return hypervolume(*problem.truth(points), *corner) / hypervolume(*problem.best_front(), *corner)


def completed(point: Point, values: list[float]) -> optuna.trial.FrozenTrial:
    distributions = {d.name: IntDistribution(0, len(d.choices) - 1) for d in PROBLEM.decisions}
    return create_trial(
        params={d.name: int(i) for d, i in zip(PROBLEM.decisions, point, strict=True)}, distributions=distributions, values=values
    )


def test_most_of_the_front_of_an_enormous_space_is_found_in_40_trials() -> None:
    points = search(study_of(sampler_of(sensitivities=PROBLEM.sensitivities)), PROBLEM, 40)
    assert reached(PROBLEM, points) > 0.8
    random = np.random.default_rng(0).integers(0, [len(d.choices) for d in PROBLEM.decisions], (1000, 26))
    assert reached(PROBLEM, random) < 0.1


def test_no_seed_is_compressed_further_than_one_that_was_ruined() -> None:
    sampler = sampler_of()
    points = search(study_of(sampler), PROBLEM, 8).tolist()
    ruined = [i for i, point in enumerate(points) if PROBLEM.accuracy(np.array([point]))[0] < 0.6]
    seeds = [tuple(point) for point in points if tuple(point) in sampler.seeds()]
    assert ruined
    assert 2 <= len(seeds) < len(sampler.seeds())


@pytest.mark.parametrize(("accuracy", "drop", "is_destroyed"), [(0.3, None, True), (0.7, None, False), (0.3, 0.6, False)])
def test_nothing_is_worth_a_trial_beyond_what_destroyed_a_model(accuracy: float, drop: float | None, is_destroyed: bool) -> None:
    study = study_of(sampler := sampler_of(limits=Limits(BUDGET, drop), noise=0.05))
    tried, beyond, beside = np.zeros((3, len(PROBLEM.decisions)), dtype=np.int64)
    tried[:3], beyond[:4], beside[1:4] = 1, 1, 1
    for point, reached_by in ((tried * 0, ORIGINAL), (tried, accuracy)):
        study.add_trial(completed(tuple(point.tolist()), [reached_by, 0.9 * BUDGET]))
    worth = sampler.state(study).worth(np.array([tried, beyond, beside]), np.full(3, 0.4 * BUDGET))
    assert (worth[:2] == 0).all() == is_destroyed
    assert worth[2] > 0


def test_nothing_is_proposed_twice() -> None:
    points = search(study_of(sampler_of()), PROBLEM, 25)
    assert len({tuple(point) for point in points.tolist()}) == 25


def test_nearly_all_proposals_keep_the_budget() -> None:
    points = search(study_of(sampler_of()), PROBLEM, 25)
    assert (PROBLEM.latency(points) <= BUDGET).all()


def test_the_budget_is_not_searched_where_the_accuracy_is_below_the_allowed_drop() -> None:
    strict, free = (
        search(study_of(sampler_of(limits=Limits(BUDGET, drop), sensitivities=PROBLEM.sensitivities)), PROBLEM, 40)[20:]
        for drop in (0.01, 0.5)
    )
    assert np.median(PROBLEM.accuracy(strict)) > np.median(PROBLEM.accuracy(free)) + 0.02


def test_a_size_limit_is_kept() -> None:
    limit = 0.35 * float(PROBLEM.size(np.zeros((1, 26), dtype=np.int64))[0])
    sampler = sampler_of(limits=Limits(BUDGET, WORST_DROP, limit), size=PROBLEM.size)
    points = search(study_of(sampler), PROBLEM, 20)
    assert (PROBLEM.size(points) <= limit).all()


def test_size_can_be_a_third_objective() -> None:
    study = study_of(sampler_of(size=PROBLEM.size), directions=("maximize", "minimize", "minimize"))
    draw, sizes = np.random.default_rng(0), []
    for _ in range(25):
        trial, point = ask(study)
        sizes.append(float(PROBLEM.size(np.array([point]))[0]))
        study.tell(trial, [*PROBLEM.measured(np.array(point), draw), sizes[-1]])
    assert min(sizes) < 0.4 * max(sizes)
    assert len(study.best_trials) >= 5


def test_a_metric_that_is_minimised() -> None:
    sampler = SurrogateSampler(PROBLEM.decisions, PROBLEM.latency, original=0.07, floor=0.9, limits=Limits(BUDGET))
    study = study_of(sampler, directions=("minimize", "minimize"))
    draw, points = np.random.default_rng(0), []
    for _ in range(30):
        trial, point = ask(study)
        accuracy, latency = PROBLEM.measured(np.array(point), draw)
        study.tell(trial, [1 - accuracy, latency])
        points.append(point)
    assert reached(PROBLEM, np.array(points)) > 0.4


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that is possible: SQLite waits for the disk at every commit."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


def storages(path: Path) -> dict[str, Callable[[], Any]]:
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path / "journal")))
    return {"memory": lambda: None, "sqlite": lambda: f"sqlite:///{path / 'study.db'}", "journal": lambda: journal}


@pytest.mark.parametrize("name", ["sqlite", "journal"])
def test_any_storage_gives_the_same_proposals(name: str, folder: Path) -> None:
    expected = search(study_of(sampler_of()), PROBLEM, 10)
    assert search(study_of(sampler_of(), storages(folder)[name]()), PROBLEM, 10).tolist() == expected.tolist()


def test_the_same_history_in_another_order_and_process_gives_the_same_proposal() -> None:
    study = study_of(sampler_of())
    search(study, PROBLEM, 14)
    twin = study_of(sampler_of())
    for trial in reversed(study.get_trials()):
        twin.add_trial(trial)
    assert ask(twin)[1] == ask(study)[1]


def test_another_seed_proposes_something_else() -> None:
    first, second = (search(study_of(sampler_of(seed=seed)), PROBLEM, 14) for seed in (0, 1))
    assert first[:2].tolist() == second[:2].tolist()  # the knapsack's
    assert first.tolist() != second.tolist()


def test_four_workers_find_about_as_much_in_as_many_trials() -> None:
    study = study_of(sampler_of(sensitivities=PROBLEM.sensitivities))
    draw, points = np.random.default_rng(0), []
    for _ in range(10):
        running = [ask(study) for _ in range(4)]
        for trial, point in running:
            study.tell(trial, list(PROBLEM.measured(np.array(point), draw)))
            points.append(point)
    assert len(set(points)) == 40
    assert reached(PROBLEM, np.array(points)) > 0.75


def test_the_users_own_policies_warm_it() -> None:
    """Trials that were made elsewhere are learned from as if they had been its own."""
    draw = np.random.default_rng(5)
    good = search(study_of(sampler_of(sensitivities=PROBLEM.sensitivities)), PROBLEM, 40)[20:].tolist()
    warm = study_of(sampler_of())
    for point in good:
        warm.add_trial(completed(tuple(point), list(PROBLEM.measured(np.array(point), draw))))
    cold_points = search(study_of(sampler_of()), PROBLEM, 5)
    warm_points = search(warm, PROBLEM, 5)
    assert PROBLEM.accuracy(warm_points).mean() > PROBLEM.accuracy(cold_points).mean()


def test_measured_latencies_decide_among_a_shortlist() -> None:
    sampler = sampler_of()
    study = study_of(sampler)
    search(study, PROBLEM, 12)
    points = sampler.shortlist(study, 8)
    assert len(set(points)) == 8
    estimated = PROBLEM.latency(np.array(points))
    assert sampler.choose(study, points, estimated) == 0
    slower = [2.0, *estimated[1:]]
    assert sampler.choose(study, points, slower) != 0


def test_a_small_space_is_used_up_and_proposed_from_again() -> None:
    bits = Decision("bits", "a", ((8, 8), (4, 8), (2, 8)))
    decisions = (Decision("prune", "a", (0.0, 0.5)), bits, Decision("prune", "b", (0.5,)))
    sampler = SurrogateSampler(decisions, lambda points: 1 - 0.2 * points.sum(1) / 3, original=0.9)
    study = study_of(sampler)
    points = []
    for _ in range(8):
        trial, point = ask(study, decisions)
        study.tell(trial, [0.9 - 0.1 * sum(point), 1 - 0.2 * sum(point) / 3])
        points.append(point)
    assert len(set(points[:6])) == 6


def test_failed_and_over_budget_trials_do_not_stop_it() -> None:
    study = study_of(sampler_of())
    points = []
    for number in range(30):
        trial, point = ask(study)
        study.tell(trial, state=TrialState.PRUNED if number % 2 else TrialState.FAIL)
        points.append(point)
    assert len(set(points)) == 30


@pytest.mark.parametrize("directions", [("maximize",), ("maximize", "minimize", "minimize")])
def test_a_study_that_it_cannot_serve_is_refused(directions: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="accuracy and latency"):
        ask(study_of(sampler_of(), directions=directions))


def test_a_size_limit_without_an_estimate_is_refused() -> None:
    with pytest.raises(ConfigError, match="size=FUNCTION"):
        sampler_of(limits=Limits(size=1.0))


def seconds_of_a_proposal(study: optuna.Study) -> float:
    """CPU seconds of the quickest of three, so that other processes do not count."""
    found = []
    for _ in range(3):
        start = time.thread_time()
        ask(study)
        found.append(time.thread_time() - start)
    return min(found)


def test_a_proposal_is_quick_after_a_thousand_trials() -> None:
    study = study_of(sampler_of(sensitivities=PROBLEM.sensitivities))
    draw = np.random.default_rng(0)
    points = draw.integers(0, [len(d.choices) for d in PROBLEM.decisions], (1000, 26))
    accuracies, latencies = PROBLEM.accuracy(points), PROBLEM.latency(points)
    study.add_trials([completed(tuple(p), [float(a), float(t)]) for p, a, t in zip(points, accuracies, latencies, strict=True)])
    study.ask().suggest_int(PROBLEM.decisions[0].name, 0, 7)
    assert seconds_of_a_proposal(study) < 0.5


def test_a_proposal_is_quick_in_an_enormous_space() -> None:
    assert math.prod(len(d.choices) for d in PROBLEM.decisions) > 1e17
    study = study_of(sampler_of(sensitivities=PROBLEM.sensitivities))
    search(study, PROBLEM, 60)
    assert seconds_of_a_proposal(study) < 0.3
