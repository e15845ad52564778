import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from records import STRUCTURE, make_record

from autocompress.config import Objective
from autocompress.errors import RunFolderError
from autocompress.metrics import METRICS, Metric
from autocompress.policy import Policy
from autocompress.record import Plan, State, TrialRecord
from autocompress.space import SearchSpace, build_space, load_space_spec, uniform_policy
from autocompress.strategy.mutation import FrontMutationSampler
from autocompress.strategy.proposals import CONSTRAINT, STUDY_NAME, Proposals
from autocompress.strategy.seeds import seeds

BUDGET_MS = 2.0
TWO: list[Objective] = ["accuracy", "latency"]
RULES: dict[str, Any] = {
    "channel_step": 4,
    "pruning": [{"exclude": "layer2.*", "ratios": [0, 0.25, 0.5]}],
    "precision": [{"weights": [8]}],
}
SPACE = build_space(load_space_spec(RULES), STRUCTURE)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: SQLite waits for the disk at every commit."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


def begin(
    folder: Path,
    records: Sequence[TrialRecord] = (),
    budget_ms: float | None = BUDGET_MS,
    objectives: Sequence[Objective] = TWO,
    metric: Metric = METRICS["accuracy"],
    space: SearchSpace = SPACE,
) -> Proposals:
    proposals = Proposals(folder / "study.db", space, objectives, metric, budget_ms)
    proposals.begin(records, FrontMutationSampler(proposals.distributions, seed=0), list(seeds(space)))
    return proposals


def study_of(folder: Path) -> optuna.Study:
    """The study as anybody can open it."""
    return optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{folder / 'study.db'}")


def told(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials that were told, without the queue."""
    return [trial for trial in study_of(folder).get_trials() if trial.state != TrialState.WAITING]


def record_at(stem: int, conv1: int, number: int = 0, **what: Any) -> TrialRecord:
    point = {"prune:stem": stem, "prune:layer1.conv1": conv1}
    return make_record(number, policy=SPACE.policy(point), **what)


def run(proposals: Proposals, space: SearchSpace, count: int, state: State = State.COMPLETE) -> list[tuple[Policy, str]]:
    """Ask and tell; the further a model is compressed the faster and worse it is."""
    found = []
    for number in range(count):
        point, source = proposals.ask()
        policy, size = space.policy(point), sum(point.values())
        proposals.tell(make_record(number, 1 - size / 100, 9 - size, policy=policy, state=state, source=source))
        found.append((policy, source))
    return found


def test_the_seeds_come_first_then_the_sampler(folder: Path) -> None:
    expected = [SPACE.policy(point) for point in seeds(SPACE)]
    found = run(begin(folder), SPACE, len(expected) + 1)
    assert [policy for policy, _ in found[:-1]] == expected
    assert [source for _, source in found] == ["seed"] * len(expected) + ["sampler"]


def test_seeds_that_were_tried_are_not_asked_for_again(folder: Path) -> None:
    first = next(seeds(SPACE))
    proposals = begin(folder, [make_record(policy=SPACE.policy(first))])
    assert proposals.ask()[0] == list(seeds(SPACE))[1]


def test_a_space_without_decisions_proposes_its_only_policy(folder: Path) -> None:
    fixed = build_space(load_space_spec({"precision": [{"weights": [8]}]}), STRUCTURE)
    found = run(begin(folder, space=fixed), fixed, 2)
    assert {policy for policy, _ in found} == {uniform_policy(STRUCTURE)}


def test_every_ending_is_told_with_the_distance_from_the_budget(folder: Path) -> None:
    proposals = begin(folder)
    points = []
    for number, (state, ms) in enumerate([(State.COMPLETE, 1.5), (State.OVER_BUDGET, 3.0), (State.FAILED, 1.0)]):
        points.append(proposals.ask()[0])
        proposals.tell(make_record(number + 5, 0.9, ms, policy=SPACE.policy(points[-1]), state=state))
    complete, over, failed = told(folder)
    assert [trial.params for trial in (complete, over, failed)] == points
    assert [trial.user_attrs for trial in (complete, over, failed)] == [{"record": n} for n in (5, 6, 7)]
    assert (complete.state, complete.values, complete.constraints) == (TrialState.COMPLETE, [0.9, 1.5], {CONSTRAINT: -0.25})
    assert (over.state, over.values, over.constraints) == (TrialState.PRUNED, None, {CONSTRAINT: 0.5})
    assert (failed.state, failed.values, failed.constraints) == (TrialState.FAIL, None, {})
    assert [trial.number for trial in study_of(folder).best_trials] == [complete.number]


def test_the_search_goes_on_when_everything_is_over_the_budget(folder: Path) -> None:
    points = [(i, j) for i in range(3) for j in range(3)]
    records = [record_at(i, j, 3 * i + j, state=State.OVER_BUDGET, ms=9.0) for i, j in points[:-1]]
    found = run(begin(folder, records), SPACE, 1, State.OVER_BUDGET)
    assert found[0][0] == record_at(2, 2).policy
    assert {trial.state for trial in told(folder)} == {TrialState.PRUNED}


@pytest.mark.parametrize(
    ("metric", "directions"),
    [
        ("accuracy", [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]),
        ("mse", [StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]),
    ],
)
def test_the_study_holds_the_metric_as_it_is_with_its_direction(
    folder: Path, metric: str, directions: list[StudyDirection]
) -> None:
    records = [record_at(0, 0, 0, accuracy=0.9, ms=1.0), record_at(1, 1, 1, accuracy=0.5, ms=1.0)]
    begin(folder, records, metric=METRICS[metric])
    study = study_of(folder)
    assert study.directions == directions
    assert [trial.values for trial in told(folder)] == [[0.9, 1.0], [0.5, 1.0]]
    assert [trial.user_attrs["record"] for trial in study.best_trials] == [0 if metric == "accuracy" else 1]


def test_a_third_objective_is_minimised(folder: Path) -> None:
    begin(folder, [record_at(0, 0, size=1000)], objectives=["accuracy", "latency", "compressed_size"])
    study = study_of(folder)
    assert study.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
    assert told(folder)[0].values == [0.9, 1.0, 500.0]


def test_the_study_is_made_again_from_the_records_and_judged_by_todays_budget(folder: Path) -> None:
    records = [record_at(0, 0, 0, accuracy=0.9, ms=1.8), record_at(1, 1, 1, accuracy=0.8, ms=0.9)]
    for budget_ms, feasible in [(2.0, [0, 1]), (1.0, [1]), (None, [0, 1])]:
        begin(folder, records, budget_ms)
        assert [trial.user_attrs["record"] for trial in told(folder)] == [0, 1]
        assert [trial.user_attrs["record"] for trial in study_of(folder).best_trials] == feasible


def test_only_what_was_searched_enters_the_study(folder: Path) -> None:
    outside = make_record(1, policy=Policy({"stem": 0.3}))
    running = record_at(0, 1, 2, state=State.RUNNING)
    untrained = record_at(0, 0, 3, source="baseline:int8")
    untrained.plan = Plan.of(untrained.policy, tune=False)
    uniform = record_at(2, 2, 4, source="baseline:uniform-50")
    begin(folder, [outside, running, untrained, uniform])
    assert [trial.user_attrs["record"] for trial in told(folder)] == [4]


def test_a_record_that_was_not_asked_for_is_added(folder: Path) -> None:
    begin(folder).tell(record_at(2, 1, 8))
    assert [trial.params for trial in told(folder)] == [{"prune:stem": 2, "prune:layer1.conv1": 1}]


@pytest.mark.parametrize(
    "content", [b"not a database, not at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000], ids=["text", "damaged"]
)
def test_a_damaged_study_is_refused_with_the_remedy(folder: Path, content: bytes) -> None:
    (folder / "study.db").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"readable Optuna database; got .*study\.db.*Remove study\.db and resume"):
        begin(folder)


def test_a_study_that_was_removed_is_made_again(folder: Path) -> None:
    begin(folder, [record_at(0, 0)])
    (folder / "study.db").unlink()
    begin(folder, [record_at(0, 0)])
    assert len(told(folder)) == 1
