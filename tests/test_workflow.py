"""The ready workflow: every branch of its decisions, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pandas as pd
import pytest
import searches
from records import make_record
from test_global_mode import FAST, Loop, Told, conv_task

import autocompress as ac
from autocompress import baselines
from autocompress.config import SearchConfig
from autocompress.errors import ConfigError
from autocompress.global_mode import GlobalMode
from autocompress.record import State
from autocompress.trial import TrialRunner
from autocompress.workflow import PRUNE_QAT, QAT, Workflow

ORIGINAL, INT8 = baselines.ORIGINAL, baselines.INT8


# Decisions

# after         accuracy  budget   next
# INT8          kept      kept     –
# INT8          missed    kept     QAT
# INT8          kept      missed   pruning and QAT
# INT8          missed    missed   pruning and QAT (QAT alone has the same latency)
# QAT           kept      kept     –
# QAT           missed    kept     – (pruning mends no accuracy)
# QAT           any       missed   pruning and QAT
# pruning, QAT  any       any      –
TRUTHS = [
    (INT8, 0.99, 1.0, None, "done"),
    (INT8, 0.97, 1.0, QAT, "next: INT8, fine-tuned"),
    (INT8, 0.99, 1.2, PRUNE_QAT, "next: pruning"),
    (INT8, 0.97, 1.2, PRUNE_QAT, "next: pruning"),
    (QAT, 0.99, 1.0, None, "done"),
    (QAT, 0.97, 1.0, None, "no step kept"),
    (QAT, 0.99, 1.2, PRUNE_QAT, "next: pruning"),
    (QAT, 0.97, 1.2, PRUNE_QAT, "next: pruning"),
    (PRUNE_QAT, 0.99, 1.0, None, "done"),
    (PRUNE_QAT, 0.97, 1.0, None, "no step kept"),
    (PRUNE_QAT, 0.99, 1.2, None, "no step kept"),
]


def deciding(budget_ms: float | None, tmp_path: Path, drop: str = "0.02") -> tuple[Workflow, Told]:
    """A workflow of an original at 1.0, which only decides."""
    watcher = Told()
    config = SearchConfig(strategy="workflow", max_accuracy_drop=drop, out=str(tmp_path / "run"))
    workflow = Workflow(models.search_task(models.linear(), 20), config, watcher)
    workflow.original_score, workflow.budget_ms = 1.0, budget_ms
    return workflow, watcher


@pytest.mark.parametrize(("source", "accuracy", "ms", "following", "words"), TRUTHS)
def test_each_step_is_taken_only_if_it_can_help(
    source: str, accuracy: float, ms: float, following: str | None, words: str, tmp_path: Path
) -> None:
    workflow, watcher = deciding(1.1, tmp_path)
    assert workflow._step_after(source, make_record(accuracy=accuracy, ms=ms)) == following
    (line,) = watcher.lines
    assert words in line
    for figure in (f"{accuracy:.4f}", "0.9800", f"{ms:.4g} ms", "1.1 ms"):
        assert figure in line


@pytest.mark.parametrize(("accuracy", "following"), [(0.985, None), (0.97, QAT)])
def test_without_a_budget_only_the_accuracy_counts(accuracy: float, following: str | None, tmp_path: Path) -> None:
    workflow, watcher = deciding(None, tmp_path)
    assert workflow._step_after(INT8, make_record(accuracy=accuracy, ms=50.0)) == following
    assert "budget" not in watcher.lines[0]
    assert workflow._step_after(QAT, make_record(accuracy=0.1)) is None


@pytest.mark.parametrize(("source", "budget_ms"), [(INT8, None), (QAT, 1.0), (PRUNE_QAT, 1.0)])
def test_a_step_that_failed_kept_nothing(source: str, budget_ms: float | None, tmp_path: Path) -> None:
    workflow, watcher = deciding(budget_ms, tmp_path)
    following = workflow._step_after(source, make_record(state=State.FAILED))
    assert following == {INT8: QAT, QAT: PRUNE_QAT, PRUNE_QAT: None}[source]
    assert "failed" in watcher.lines[0]
    assert "done" not in watcher.lines[0]


def test_a_workflow_allows_one_percent_where_nothing_is_said() -> None:
    assert SearchConfig(strategy="workflow").max_accuracy_drop == "1%"
    assert SearchConfig(strategy="workflow", max_accuracy_drop=0.2).max_accuracy_drop == 0.2
    assert SearchConfig().max_accuracy_drop is None


# Whole runs


def run_workflow(task: ac.Task, out: Path, **options: Any) -> tuple[ac.Result, Told]:
    watcher = Told()
    return ac.search(task, out=out, strategy="workflow", watcher=watcher, **{**FAST, **options}), watcher


def sources(out: Path) -> list[str]:
    return [record.source for record in searches.candidates(out)]


def scored(monkeypatch: pytest.MonkeyPatch, **scores: float) -> None:
    """Let trials score what is given here, by source; exported and measured they are for real."""
    by_source = {ORIGINAL: 0.95, "baseline:f32": 0.95, INT8: scores["int8"]}
    by_source |= {QAT: scores.get("qat", 0.0), PRUNE_QAT: scores.get("pruned", 0.0)}
    monkeypatch.setattr(TrialRunner, "score", lambda self, record, split: by_source[record.source])


def test_int8_after_training_is_enough(tmp_path: Path, steady_meter: None) -> None:
    loop = Loop()
    result, watcher = run_workflow(models.search_task(models.linear(), fine_tune=loop), tmp_path / "run", max_accuracy_drop="5%")
    assert sources(tmp_path / "run") == []
    assert loop.calls == 0
    assert watcher.told("INT8 after training", "accuracy", "→ done")
    assert watcher.told("Workflow", "allowed accuracy drop 5%")
    assert not result.front.empty
    assert {"report.html", "pareto.png", "front.csv", "best"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_int8_is_fine_tuned_where_it_lost_too_much(tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, int8=0.9, qat=0.948)
    result, watcher = run_workflow(models.search_task(models.linear(), fine_tune=Loop()), tmp_path / "run")
    assert sources(tmp_path / "run") == [QAT]
    assert watcher.told("INT8 after training", "0.9000 missed", "next: INT8, fine-tuned")
    assert watcher.told("INT8, fine-tuned:", "0.9480 kept", "done")
    assert result.best(prefer="latency").record.source == QAT


def test_no_step_recovers_the_accuracy(tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, int8=0.9, qat=0.91)
    result, watcher = run_workflow(models.search_task(models.linear(), fine_tune=Loop()), tmp_path / "run")
    assert sources(tmp_path / "run") == [QAT]
    assert watcher.told("no step kept the accuracy and the budget")
    assert result.best().record.source in (ORIGINAL, "baseline:f32")  # without a budget that is always there


@pytest.mark.parametrize("pruned", [0.945, 0.5])
def test_pruning_comes_where_int8_is_too_slow(
    pruned: float, tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, int8=0.9, pruned=pruned)
    result, watcher = run_workflow(conv_task(), tmp_path / "run", latency_budget="30%")
    assert sources(tmp_path / "run") == [PRUNE_QAT]
    assert watcher.told("INT8 after training", "missed (budget", "next: pruning and INT8, fine-tuned")
    (record,) = searches.candidates(tmp_path / "run")
    assert record.latency.ms <= result.budget_ms
    assert record.policy.pruning
    assert all((layer.weights, layer.activations) == (8, 8) for layer in record.policy.layers.values())
    if pruned > 0.9:
        assert watcher.told("pruning and INT8, fine-tuned:", "0.9450 kept", "done")
        assert json.loads((tmp_path / "run" / "best" / "promise.json").read_text())["trial"] == record.number
    else:
        assert watcher.told("pruning and INT8, fine-tuned:", "0.5000 missed", "no step kept")
        assert not (tmp_path / "run" / "best").exists()
        assert len(pd.read_csv(tmp_path / "run" / "front.csv")) >= 2


def test_a_whole_workflow_for_real(tmp_path: Path, steady_meter: None) -> None:
    """A trained network that has to be pruned and trained to be within the budget; resumed, it does nothing again."""
    out, task = tmp_path / "run", models.search_task(epochs=8)
    options = {"latency_budget": "75% of int8", "max_accuracy_drop": 0.1}
    result, watcher = run_workflow(task, out, **options)
    (record,) = searches.candidates(out)
    assert (record.source, record.state) == (PRUNE_QAT, State.COMPLETE)
    assert record.latency.ms <= result.budget_ms
    assert record.accuracy_valid > 0.85
    assert record.accuracy_test is not None
    assert watcher.told("done")
    assert result.best().record.number == record.number
    result.best().export(tmp_path / "bundle")
    assert ac.verify(tmp_path / "bundle", task)[0].kept

    before = {r.number: r.seconds for r in searches.records(out)}
    _, watcher = run_workflow(task, out, resume=True, max_time="1s", **options)
    assert {r.number: r.seconds for r in searches.records(out)} == before
    assert watcher.told("pruning and INT8, fine-tuned:", "done")  # although there is no time for another trial


def test_an_interrupted_workflow_goes_on_with_the_same_policy(
    tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, loop = tmp_path / "run", Loop(KeyboardInterrupt())
    options = {"latency_budget": "30%", "max_accuracy_drop": "100%"}
    with pytest.raises(KeyboardInterrupt):
        run_workflow(conv_task(fine_tune=loop), out, **options)
    (begun,) = searches.candidates(out)
    assert begun.state == State.RUNNING

    def again(*arguments: Any) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(GlobalMode, "_least_pruned", again)
    run_workflow(conv_task(fine_tune=loop), out, resume=True, **options)
    (ended,) = searches.candidates(out)
    assert (ended.state, ended.policy) == (State.COMPLETE, begun.policy)
    assert loop.calls == 2


def test_another_budget_takes_another_step(tmp_path: Path, steady_meter: None) -> None:
    out = tmp_path / "run"
    for budget in ("30%", "15%", "80%"):
        run_workflow(conv_task(), out, latency_budget=budget, max_accuracy_drop="100%", resume=True)
    found = [(record.source, record.latency.ratio) for record in searches.candidates(out)]
    assert [source for source, _ in found] == [PRUNE_QAT, PRUNE_QAT]  # INT8 after training is within 80 %
    assert found[0][1] <= 0.3
    assert found[1][1] <= 0.15


def test_without_time_no_step_begins(tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(monkeypatch, int8=0.5)
    result, watcher = run_workflow(models.search_task(models.linear(), fine_tune=Loop()), tmp_path / "run", max_time="1s")
    assert sources(tmp_path / "run") == []
    assert watcher.told("No trials or time left for INT8, fine-tuned")
    assert not result.front.empty


@pytest.mark.parametrize(("space", "words"), [("mixed-precision", "bits"), ({"pruning": [{"ratios": [0, 0.5]}]}, "no bits")])
def test_a_space_that_decides_on_more_is_refused(space: Any, words: str, tmp_path: Path, steady_meter: None) -> None:
    with pytest.raises(ConfigError, match=rf"decides on pruning alone; got .*{words}"):
        run_workflow(conv_task(), tmp_path / "run", space=space, keep_inert=True)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_workflow_from_the_command_line(task_file: Path, tmp_path: Path, steady_meter: None) -> None:
    config = searches.write_config(tmp_path / "config.yaml", **FAST)
    arguments = ("search", task_file, "--config", config, "--strategy", "workflow", "--out", tmp_path / "run")
    dry = searches.cli(*arguments, "--dry-run", "--budget", "3x")
    assert dry.code == 0, dry.err
    assert "at most 2 candidates" in dry.out
    assert not (tmp_path / "run").exists()
    outcome = searches.cli(*arguments, "--max-accuracy-drop", "100%")
    assert outcome.code == 0, outcome.err
    assert "→ done" in outcome.out
    assert ac.Result(tmp_path / "run").config.strategy == "workflow"
    wrong = searches.cli("search", task_file, "--strategy", "guess", "--out", tmp_path / "other")
    assert wrong.code == 2
    assert "strategy" in wrong.err
    assert "'workflow'" in wrong.err
