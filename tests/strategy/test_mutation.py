"""The sampler by itself, in studies that are held in memory."""

from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState

from autocompress.strategy.mutation import FrontMutationSampler, silence_optuna

Point = tuple[int, ...]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    silence_optuna()


def study_of(decisions: int, choices: int, seed: int | None = 0) -> tuple[optuna.Study, dict[str, IntDistribution]]:
    space = {f"d{i}": IntDistribution(0, choices - 1) for i in range(decisions)}
    sampler = FrontMutationSampler(space, seed)
    return optuna.create_study(directions=["maximize", "minimize"], sampler=sampler), space


def propose(study: optuna.Study, space: dict[str, IntDistribution]) -> tuple[optuna.Trial, Point]:
    trial = study.ask()
    return trial, tuple(trial.suggest_int(name, d.low, d.high) for name, d in space.items())


def complete(study: optuna.Study, trial: optuna.Trial, point: Point) -> None:
    """The smaller the model, the faster and the less accurate."""
    trial.set_constraint("over", sum(point) - 100)
    study.tell(trial, [-float(sum(point) ** 2), -float(sum(point))])


def prune(study: optuna.Study, trial: optuna.Trial, point: Point) -> None:
    trial.set_constraint("over", 0.5)
    study.tell(trial, state=TrialState.PRUNED)


def fail(study: optuna.Study, trial: optuna.Trial, point: Point) -> None:
    study.tell(trial, state=TrialState.FAIL)


Ending = Callable[[optuna.Study, optuna.Trial, Point], None]


def proposals(study: optuna.Study, space: dict[str, IntDistribution], count: int, end: Ending = complete) -> list[Point]:
    found = []
    for _ in range(count):
        trial, point = propose(study, space)
        end(study, trial, point)
        found.append(point)
    return found


@pytest.mark.parametrize(("decisions", "choices"), [(1, 7), (2, 3), (3, 3), (2, 6)])
@pytest.mark.parametrize("end", [complete, prune, fail])
def test_nothing_is_proposed_twice_while_something_is_untried(decisions: int, choices: int, end: Ending) -> None:
    found = proposals(*study_of(decisions, choices), count=choices**decisions, end=end)
    assert len(set(found)) == choices**decisions


def test_a_space_that_is_used_up_is_proposed_from_again() -> None:
    study, space = study_of(2, 2)
    found = proposals(study, space, 8)
    assert all(0 <= value <= 1 for point in found for value in point)


@pytest.mark.parametrize("end", [prune, fail])
def test_60_trials_over_the_budget_or_failed_do_not_stop_it(end: Ending) -> None:
    study, space = study_of(8, 4)
    found = proposals(study, space, 60, end)
    assert all(0 <= value <= 3 for point in found for value in point)
    assert len(set(found)) == 60
    trial, point = propose(study, space)
    complete(study, trial, point)
    assert [best.number for best in study.best_trials] == [60]


def test_a_trial_that_is_over_the_budget_is_not_on_the_front() -> None:
    study, space = study_of(3, 4)
    trial, point = propose(study, space)
    prune(study, trial, point)
    assert study.best_trials == []


def test_most_proposals_are_close_to_the_front() -> None:
    study, space = study_of(12, 6)
    parent = dict.fromkeys(space, 3)
    study.enqueue_trial(parent)
    proposals(study, space, 1)
    close = 0
    for _ in range(40):
        trial, point = propose(study, space)
        fail(study, trial, point)  # the front stays one point
        distances = [abs(value - 3) for value in point]
        close += max(distances) <= 1 and sum(distances) <= 3
    assert close >= 15


def test_the_same_seed_proposes_the_same() -> None:
    first, second, other = (proposals(*study_of(6, 4, seed), count=15) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_workers_with_fresh_randomness_propose_different_points() -> None:
    (study, space), (twin, _) = study_of(6, 4), study_of(6, 4)
    study.sampler.reseed_rng()
    assert proposals(study, space, 15) != proposals(twin, space, 15)


def test_a_decision_with_one_choice_is_left_alone() -> None:
    study, space = study_of(2, 3)
    space["d1"] = IntDistribution(0, 0)
    study.sampler = FrontMutationSampler(space, 0)
    assert {point[1] for point in proposals(study, space, 3)} == {0}


def test_it_can_be_used_with_any_study() -> None:
    space = {"x": IntDistribution(0, 3), "y": IntDistribution(0, 3)}
    study = optuna.create_study(direction="minimize", sampler=FrontMutationSampler(space, 0))
    study.optimize(lambda trial: trial.suggest_int("x", 0, 3) + trial.suggest_int("y", 0, 3), n_trials=16)
    assert study.best_value == 0
