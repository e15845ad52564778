"""Shared fine-tuning: which policies are trained, for how long, and what candidates of a search inherit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import searches
from records import STRUCTURE, make_record

import autocompress as ac
from autocompress.config import SearchConfig
from autocompress.errors import ConfigError, DivergedError, RunFolderError, StageError, WorkerError
from autocompress.finals import LONGEST
from autocompress.frameworks.base import Candidate, framework_of
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.shared import ElasticTraining
from autocompress.policy import LayerPolicy, Policy
from autocompress.record import Plan, Stage, State
from autocompress.run_folder import RunFolder
from autocompress.setup import open_space
from autocompress.shared import (
    CYCLE,
    MOST_CYCLES,
    PROBES,
    SANDWICH,
    SHORTEST_CYCLE,
    PolicySampler,
    Screen,
    SharedState,
    SharedTuning,
    cycle_within,
    cycles_for,
    is_shared,
    nearest_shared,
)
from autocompress.sharing import CHECKED, PARTS, screening_in_words
from autocompress.space import SearchSpace, build_space, load_space_spec
from autocompress.trial import Inheritance, TrialRunner
from autocompress.watch import Watcher

SPACE = {"channel_step": 4, "pruning": [{"ratios": [0, 0.25, 0.5, 0.75]}], "precision": [{"weights": ["float", 8, 4, 2]}]}
EPOCHS = 5
"""Of a cycle."""
BITS = {"precision": [{"weights": ["float", 8, 4, 3, 2], "activations": [8]}]}
"""Of the model with one layer, and no group to prune: five policies."""


def space(spec: Any = SPACE) -> SearchSpace:
    return build_space(load_space_spec(spec), STRUCTURE)


def share_of(policy: Policy) -> float:
    """A latency that is easily predicted."""
    return STRUCTURE.macs_share(policy.pruning)


class Listening(Watcher):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


# Which policies are trained


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [
        (LayerPolicy(), LayerPolicy()),
        (LayerPolicy(8, 8), LayerPolicy(8, 8)),
        (LayerPolicy(4), LayerPolicy(4)),
        (LayerPolicy(2, 8, 0.5), LayerPolicy(3, 8, 0.5)),
        (LayerPolicy(1, 1), LayerPolicy(3, 8)),
        (LayerPolicy(8, 4, pattern="2:4"), LayerPolicy(8, 8, pattern="2:4")),
    ],
)
def test_widths_that_do_not_share_are_trained_as_wider_ones(layer: LayerPolicy, nearest: LayerPolicy) -> None:
    policy = Policy({"stem": 0.5}, {"head": layer})
    assert nearest_shared(policy) == Policy({"stem": 0.5}, {"head": nearest})
    assert is_shared(policy) == (layer == nearest)


def test_branches_that_go_whole_do_not_share() -> None:
    policy = Policy({"stem": 0.5, "layer1.conv1": 1.0}, {"head": LayerPolicy(8, 8)})
    assert not is_shared(policy)
    assert nearest_shared(policy) == Policy({"stem": 0.5}, {"head": LayerPolicy(8, 8)})


@pytest.mark.parametrize("epoch_steps", [4, 20 * SANDWICH])
def test_the_largest_and_the_smallest_are_among_the_policies_however_short_an_epoch_is(epoch_steps: int) -> None:
    sampler = PolicySampler(space(), share_of, None, seed=0)
    epochs = range(20 * SANDWICH // epoch_steps)
    steps = [policy for epoch in epochs for policy in itertools.islice(sampler.policies(0, epoch), epoch_steps)]
    assert steps.count(sampler.largest) >= 10
    assert steps.count(sampler.smallest) >= 10
    assert share_of(sampler.largest) == 1 > share_of(sampler.smallest)
    assert all(map(is_shared, steps))
    assert len({policy.key for policy in steps}) > 2 * SANDWICH


def test_policies_are_spread_over_the_latencies_up_to_the_limit() -> None:
    generator = np.random.default_rng(0)
    free, limited = (PolicySampler(space(), share_of, limit, seed=0) for limit in (None, 0.6))
    shares = {one: [share_of(one.draw(generator)) for _ in range(300)] for one in (free, limited)}
    assert np.mean(shares[limited]) < np.mean(shares[free]) - 0.1
    assert np.mean(np.array(shares[limited]) <= 0.65) > 0.8
    thirds = np.histogram(shares[free], 3, (free.fastest, free.slowest))[0]
    assert thirds.min() > 30
    assert thirds[0] > thirds[2]


def test_a_part_of_the_training_can_be_repeated() -> None:
    sampler = PolicySampler(space(), share_of, None, seed=3)
    first, again, other = (list(itertools.islice(sampler.policies(*place), 20)) for place in ((0, 1), (0, 1), (1, 1)))
    assert first == again != other


def test_parts_of_the_data_are_scored_as_the_whole() -> None:
    task = models.search_task()
    framework = framework_of(task.model)
    candidate = framework.compress(task, Policy(), "l2")
    screen = Screen(framework, task)
    assert np.mean(screen.gains(candidate, 10)) == pytest.approx(screen.score(candidate))
    few = Screen(framework, task, samples=64)
    assert sum(batch.size for batch in few.batches) == 64
    regression = models.regression_task()
    worse = Screen(framework, regression)
    assert max(worse.gains(framework.compress(regression, Policy(), "l2"), 5)) < 0  # less error is more gain


# How long it takes


class Scripted:
    """A training that reaches what it is told to after each cycle, and counts."""

    def __init__(self, reached: list[float]) -> None:
        self.reached, self.trained, self.cycles = reached, 0, 0
        self.masked_because: str | None = None

    def begin(self, epochs: int) -> None:
        self.length = epochs

    def epoch(self, policies: Iterator[Policy], progress: Any) -> None:
        self.trained += 1

    def candidate(self, policy: Policy, removed: Any = None) -> Candidate:
        return Candidate(self.trained // self.length - 1, policy, {})

    def save(self, path: Path) -> None:
        path.write_text(str(self.trained))

    def load(self, path: Path) -> None:
        self.trained = int(path.read_text())


class ScriptedScreen:
    """Scores what was scripted; the original has 0.9."""

    def __init__(self, reached: list[float]) -> None:
        self.reached, self.framework, self.task = reached, self, models.search_task()

    def compress(self, task: Any, policy: Policy, criterion: str) -> Candidate:
        return Candidate(None, policy, {})

    def reestimate(self, task: Any, candidate: Candidate) -> None:
        pass

    def score(self, candidate: Candidate) -> float:
        return 0.9 if candidate.model is None else self.reached[candidate.model]


def scripted(
    reached: list[float],
    folder: Path,
    training: Any = None,
    epochs: int = EPOCHS,
    watcher: Watcher | None = None,
    spec: Any = SPACE,
    **options: Any,
) -> tuple[SharedState, Scripted]:
    """How a training ends that reaches this."""
    made = RunFolder(folder)
    made.path.mkdir(exist_ok=True)
    training = training or Scripted(reached)
    sampler = PolicySampler(space(spec), share_of, None, seed=0)
    screen: Any = ScriptedScreen(reached)
    return SharedTuning(screen, training, sampler, epochs, made, watcher or Watcher(), **options).run(), training


@pytest.mark.parametrize(
    ("reached", "cycles", "reason"),
    [
        ([0.95], 1, "as good as the original"),
        ([0.8, 0.805], 2, "won little"),
        ([0.7, 0.8, 0.85], MOST_CYCLES, "long enough"),
    ],
)
def test_the_probes_tell_when_it_is_enough(reached: list[float], cycles: int, reason: str, tmp_path: Path) -> None:
    state, training = scripted(reached, tmp_path / "run")
    assert state.finished is not None
    assert reason in state.finished
    assert (state.cycle, training.trained) == (cycles, cycles * EPOCHS)
    assert [np.mean(scores) for scores in state.probes] == pytest.approx(reached)


@pytest.mark.parametrize(
    ("reason", "ratios", "is_said"),
    [("a reason", [0, 0.5], True), ("a reason", [0.5], True), ("a reason", [0, 1], False), (None, [0, 0.5], False)],
)
def test_a_training_that_is_only_masked_says_why(reason: str | None, ratios: list[float], is_said: bool, tmp_path: Path) -> None:
    watchers, training = (Listening(), Listening()), Scripted([0.95])
    training.masked_because = reason
    for watcher in watchers:  # the second time all is trained already
        scripted([0.95], tmp_path / "run", training, watcher=watcher, spec=SPACE | {"pruning": [{"ratios": ratios}]})
    said = [any("compute the channels that go" in line for line in watcher.lines) for watcher in watchers]
    assert said == [is_said, False]


def test_few_candidates_do_not_pay_for_many_cycles(tmp_path: Path) -> None:
    assert [cycles_for(count) for count in (1, 80, 170, 1000, None)] == [1, 1, 2, MOST_CYCLES, MOST_CYCLES]
    state, _ = scripted([0.1, 0.5, 0.8], tmp_path / "run", most_cycles=2)
    assert (state.cycle, state.finished) == (2, "more would not pay for so few candidates")
    assert list(map(len, state.probes)) == [PROBES, 1]  # the last cycle has nothing to decide


@pytest.mark.parametrize(
    ("candidates", "most", "own", "cycle"),
    [
        (None, None, 10.0, CYCLE),
        (1000, 1e9, 1.0, CYCLE),
        (1000, 45.0, 10.0, 4),
        (30, 1e9, 10.0, 6),
        (16, None, None, SHORTEST_CYCLE),
        (None, 1.0, 10.0, SHORTEST_CYCLE),
        (None, 1000.0, None, SHORTEST_CYCLE),
    ],
)
def test_a_cycle_is_as_long_as_time_and_candidates_pay_for(
    candidates: int | None, most: float | None, own: float | None, cycle: int
) -> None:
    assert cycle_within(candidates, most, own) == cycle


def test_a_training_of_an_older_version_is_not_taken_up(tmp_path: Path) -> None:
    scripted([0.95], tmp_path / "run")
    path = tmp_path / "run" / "shared" / "progress.json"
    path.write_text(path.read_text().replace("cycle_epochs", "length"))
    with pytest.raises(RunFolderError, match=r"progress.json.*Remove the folder shared"):
        scripted([0.95], tmp_path / "run")


def test_a_training_that_goes_on_keeps_the_length_of_its_cycles(tmp_path: Path) -> None:
    training = Cut([0.5, 0.505])
    training.cut = 2
    with pytest.raises(KeyboardInterrupt):
        scripted([0.5, 0.505], tmp_path / "run", training)
    made = RunFolder(tmp_path / "run")
    screen: Any = ScriptedScreen([0.5, 0.505])
    state = SharedTuning(
        screen, Scripted([0.5, 0.505]), PolicySampler(space(), share_of, None, 0), EPOCHS + 4, made, Watcher()
    ).run()
    assert state.cycle_epochs == EPOCHS


def test_no_cycle_begins_that_ends_too_late(tmp_path: Path) -> None:
    state, _ = scripted([0.1, 0.5, 0.8], tmp_path / "run", most_seconds=1e-9)
    assert (state.cycle, state.finished, state.probes) == (1, "the time for it is used up", [[0.1]])


class Cut(Scripted):
    """Ends with its process in some epoch."""

    def epoch(self, policies: Iterator[Policy], progress: Any) -> None:
        if self.trained == self.cut:
            raise KeyboardInterrupt
        super().epoch(policies, progress)


@pytest.mark.parametrize("cut", [0, 1, EPOCHS, EPOCHS + 2])
def test_nothing_but_the_last_epoch_is_repeated(cut: int, tmp_path: Path) -> None:
    reached = [0.5, 0.8, 0.805]
    whole, _ = scripted(reached, tmp_path / "whole")
    training = Cut(reached)
    training.cut = cut
    with pytest.raises(KeyboardInterrupt):
        scripted(reached, tmp_path / "run", training)
    resumed, again = scripted(reached, tmp_path / "run")
    assert again.trained == MOST_CYCLES * EPOCHS
    assert resumed.probes == whole.probes
    known, third = scripted(reached, tmp_path / "run")  # a finished one is only read
    assert known == resumed
    assert third.trained == again.trained
    assert len(list((tmp_path / "run" / "shared").iterdir())) == 2


# What a search makes of it


def shared_search(task: ac.Task, out: Path, watcher: Watcher, **options: Any) -> ac.Result:
    settings = {"mode": "shared", **options.pop("fine_tuning", {})}
    defaults = {"space": BITS, "keep_inert": True, "max_trials": 5, "calibration_samples": 5, "keep": "all"}
    return ac.search(task, out=out, watcher=watcher, **{**defaults, "fine_tuning": settings, **options})


@pytest.mark.usefixtures("steady_meter")
def test_candidates_inherit_and_the_front_is_trained_once_more(tmp_path: Path, monkeypatch: Any) -> None:
    listening = Listening()
    monkeypatch.setattr(TorchFramework, "fine_tune", noting(TorchFramework.fine_tune, heirs_of := []))
    task = models.search_task(models.linear(), epochs=2)
    shared_search(task, tmp_path / "run", listening)
    records = searches.candidates(tmp_path / "run")
    heirs = [r for r in records if not r.is_final and is_shared(r.policy)]
    others = [r for r in records if not r.is_final and not is_shared(r.policy)]
    final = [r for r in records if r.is_final]
    assert all(r.state == State.COMPLETE and Stage.INHERIT in r.done for r in records)
    assert len(heirs) >= 3
    assert all(Stage.FINE_TUNE not in r.done and Stage.EXPORT_UNTRAINED not in r.done for r in heirs)
    assert all(Stage.FINE_TUNE in r.done for r in [*others, *final])
    assert all(abs(r.accuracy_simulated - r.accuracy_valid) < 0.05 for r in heirs)
    assert {r.source for r in final} == {"final"}
    assert {r.policy for r in final} <= {r.policy for r in [*heirs, *others]}
    words = " ".join(listening.lines)
    assert "Candidates inherit from one shared training: fine_tuning.mode asks for it" in words
    assert "rank correlation" in words
    baselines = [r for r in searches.records(tmp_path / "run") if r.is_baseline]
    assert all(Stage.INHERIT not in r.done for r in baselines)
    assert [heir_of is None for heir_of in heirs_of].count(True) == sum(Stage.FINE_TUNE in r.done for r in baselines)
    assert len(heirs_of) == sum(Stage.FINE_TUNE in r.done for r in searches.records(tmp_path / "run"))


def noting(fine_tune: Any, heirs_of: list[Any]) -> Any:
    """A fine-tuning that notes from which training its candidate has inherited."""

    def noted(self: Any, task: Any, candidate: Any, settings: Any, progress: Any, heir_of: Any = None) -> Any:
        heirs_of.append(heir_of)
        return fine_tune(self, task, candidate, settings, progress, heir_of)

    return noted


@pytest.mark.usefixtures("steady_meter")
def test_an_heir_that_is_too_slow_ends_before_it_is_scored_and_can_be_run_on(tmp_path: Path) -> None:
    task, framework, policy = models.search_task(models.linear()), TorchFramework(), Policy({}, {"1": LayerPolicy(8, 8)})
    bench, _, _ = open_space(task, SearchConfig(space=BITS, keep_inert=True, calibration_samples=5), Watcher())
    training = framework.share(task, "l2", bench.tune_settings)
    runner = TrialRunner(bench, RunFolder(tmp_path), Watcher())
    runner.inheritance = Inheritance(training, Screen(framework, task), 0)
    record = runner.run(Plan.of(policy), "seed", gate_ms=0.0)
    assert record.state == State.OVER_BUDGET, record.error
    assert Stage.MEASURE in record.done
    assert Stage.EVALUATE not in record.done
    record = runner.run(Plan.of(policy), "seed")
    assert record.state == State.COMPLETE
    assert record.accuracy_valid is not None


@pytest.mark.usefixtures("steady_meter")
def test_a_search_that_was_cut_off_in_the_shared_training_goes_on_with_it(tmp_path: Path, monkeypatch: Any) -> None:
    task = models.search_task(models.linear(), epochs=2)
    trained: list[int] = []
    real = ElasticTraining.epoch

    def cut_off(self: ElasticTraining, *arguments: Any) -> None:
        if len(trained) == 3:
            trained.append(-1)
            raise KeyboardInterrupt
        real(self, *arguments)
        trained.append(self.epochs)

    monkeypatch.setattr(ElasticTraining, "epoch", cut_off)
    options: dict[str, Any] = {"max_trials": 1, "fine_tuning": {"final_epochs": 0}}
    with pytest.raises(KeyboardInterrupt):
        shared_search(task, tmp_path / "run", Watcher(), **options)
    shared_search(task, tmp_path / "run", Watcher(), resume=True, **options)
    assert trained[:5] == [1, 2, 3, -1, 4]
    assert not any(r.is_final for r in searches.records(tmp_path / "run"))


@pytest.mark.usefixtures("steady_meter")
def test_time_that_is_left_goes_into_the_models_of_the_front(tmp_path: Path) -> None:
    task = models.search_task(models.linear(), epochs=2)
    shared_search(task, tmp_path / "run", Watcher(), max_time="10m")
    final = [r for r in searches.records(tmp_path / "run") if r.is_final]
    assert {r.plan.epochs for r in final} == {LONGEST * 2}
    shared_search(task, tmp_path / "run", Watcher(), resume=True, max_time="5m")
    assert [r.key for r in searches.records(tmp_path / "run") if r.is_final] == [r.key for r in final]


@pytest.mark.usefixtures("steady_meter")
def test_few_candidates_are_tuned_each_by_itself(tmp_path: Path) -> None:
    listening = Listening()
    shared_search(models.search_task(models.linear()), tmp_path / "run", listening, fine_tuning={"mode": "auto"}, max_trials=1)
    assert any("tuned by itself" in line and "there are 1" in line for line in listening.lines)
    assert all(Stage.INHERIT not in record.done for record in searches.records(tmp_path / "run"))
    assert not (tmp_path / "run" / "shared").exists()


@pytest.mark.usefixtures("steady_meter")
def test_with_a_time_limit_auto_shares_only_where_the_front_is_not_trained(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("autocompress.sharing.PAYS_FROM", 2)
    monkeypatch.setattr("autocompress.sharing.MOST_TIME", 1.0)
    conv = models.search_task(models.build("conv"))
    for final_epochs in (None, 0):
        listening, out = Listening(), tmp_path / str(final_epochs)
        fine_tuning = {"mode": "auto", "final_epochs": final_epochs}
        options: dict[str, Any] = {"space": "int8-prune", "max_trials": 2, "max_time": "10m"}
        shared_search(conv, out, listening, fine_tuning=fine_tuning, **options)
        spent = any("tuned by itself: the time is better spent on the front" in line for line in listening.lines)
        assert spent == (final_epochs is None)
        assert (out / "shared/progress.json").exists() == (final_epochs == 0)
        shared_search(conv, out, Watcher(), fine_tuning=fine_tuning, max_trials=3, resume=True, space="int8-prune")
        assert (out / "shared/progress.json").exists() == (final_epochs == 0)  # without a limit too: it keeps to what it did


@pytest.mark.usefixtures("steady_meter")
@pytest.mark.parametrize("is_spoiled", [True, False])
def test_what_inheriting_costs_is_tried_before_it_is_done(is_spoiled: bool, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("autocompress.sharing.PAYS_FROM", 2)
    if is_spoiled:
        monkeypatch.setattr(ElasticTraining, "candidate", spoiled)
    listening = Listening()
    task = models.search_task(models.linear())
    options: dict[str, Any] = {"fine_tuning": {"mode": "auto", "final_epochs": 0}, "max_trials": 2}
    shared_search(task, tmp_path / "run", listening, **options)
    (words,) = [line for line in listening.lines if "over inheriting" in line]
    assert words.startswith("Every candidate is tuned by itself" if is_spoiled else "Candidates inherit")
    decision = RunFolder(tmp_path / "run").read_json("shared/decision.json")
    assert decision["shared"] is not is_spoiled
    assert [len(found) for found in decision["differences"]] == [PARTS] * CHECKED
    assert all((Stage.INHERIT in r.done) is not is_spoiled for r in searches.candidates(tmp_path / "run"))


def spoiled(training: ElasticTraining, policy: Policy, removed: Any = None) -> Candidate:
    """What would be inherited if the training had gone wrong."""
    candidate = training.elastic.candidate(policy, removed)
    for parameter in candidate.model.parameters():
        parameter.data.neg_()
    return candidate


def failing(error: Exception) -> Callable[..., None]:
    def fail(*arguments: Any) -> None:
        raise error

    return fail


@pytest.mark.usefixtures("steady_meter")
@pytest.mark.parametrize("error", [DivergedError("The loss became nan."), ValueError("The loss became nan.")])
def test_a_shared_training_that_fails_is_given_up_or_told(error: Exception, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ElasticTraining, "epoch", failing(error))
    monkeypatch.setattr("autocompress.sharing.PAYS_FROM", 2)
    task, listening = models.search_task(models.linear()), Listening()
    shared_search(task, tmp_path / "auto", listening, fine_tuning={"mode": "auto"}, max_trials=2)
    assert any(re.search("the shared training failed: .*The loss became nan", line) for line in listening.lines)
    assert RunFolder(tmp_path / "auto").read_json("shared/decision.json")["shared"] is False
    assert len(searches.candidates(tmp_path / "auto")) == 2
    with pytest.raises(StageError, match="The loss became nan"):
        shared_search(task, tmp_path / "shared", Watcher())


@pytest.mark.usefixtures("steady_meter")
def test_a_resumed_search_goes_on_with_a_shared_training_whose_process_died(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("autocompress.sharing.PAYS_FROM", 2)
    task, listening = models.search_task(models.linear()), Listening()
    with monkeypatch.context() as broken:
        broken.setattr(ElasticTraining, "epoch", failing(WorkerError("The worker process ended.")))
        shared_search(task, tmp_path / "run", listening, fine_tuning={"mode": "auto"}, max_trials=2)
    assert any("the shared training failed: The worker process ended" in line for line in listening.lines)
    shared_search(task, tmp_path / "run", listening, fine_tuning={"mode": "auto"}, max_trials=3, resume=True)
    assert any("The shared training is done" in line for line in listening.lines)


def test_a_loop_of_the_users_own_cannot_be_shared(tmp_path: Path) -> None:
    task = models.search_task(models.linear(), fine_tune=lambda model, *, teacher, epochs: None)
    with pytest.raises(ConfigError, match=r"mode: shared beside the task's fine_tune.*each or auto"):
        shared_search(task, tmp_path / "run", Watcher())


# What screening tells


@pytest.mark.parametrize(
    ("simulated", "words"),
    [([0.1, 0.2, 0.3], "3 candidates: rank correlation 1.00"), ([0.2, 0.2, 0.2], None), ([0.1, 0.2], None)],
)
def test_screening_is_told_where_there_is_something_to_compare(simulated: list[float], words: str | None) -> None:
    records = [make_record(number, accuracy) for number, accuracy in enumerate(simulated)]
    for record in records:
        record.accuracy_simulated = record.accuracy_valid
    found = screening_in_words(records)
    assert found is None if words is None else found is not None and words in found
