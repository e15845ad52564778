"""Whole searches on real digits: what lies in the folder, what is resumed, what happens when something goes wrong."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import openvino as ov
import pandas as pd
import pytest
import searches
import torch
import yaml

import autocompress as ac
from autocompress.errors import AutocompressError, ConfigError, DiskFullError, OutOfTimeError, RunFolderError
from autocompress.frameworks.base import Candidate, TuneSettings
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.outer_loop import Search
from autocompress.policy import Policy
from autocompress.record import Stage, State

FRONT_COLUMNS = [
    *("trial", "within_budget", "accuracy_valid", "accuracy_test", "latency_ms", "latency_low_ms", "latency_high_ms"),
    *("speedup", "size_bytes", "compressed_bytes", "int8_share", "policy"),
]
TRIALS_COLUMNS = [*FRONT_COLUMNS, "state", "stage", "error", "tune_seconds", "total_seconds", "source"]
BITS_ONLY = {"precision": [{"layers": "*", "weights": ["float", 8, 7, 4, 3, 2], "activations": [8]}]}
"""Of the model with one layer: five policies beside the original's, and no group to prune, so no uniform baselines."""
PRUNED = {
    "pruning": [{"groups": "*", "ratios": [0, 0.5]}],
    "precision": [{"layers": "*", "weights": [8]}],
    "channel_step": 8,
}
"""Of the small convolutional net: two groups, four policies."""

AS_BEFORE = {"latency_budget": "3x", "max_accuracy_drop": 0.5, "keep": "all", "calibration_samples": 20}
"""How the finished search was made."""


class Loop:
    """A training loop of the user's that counts its calls and may fail at some of them. It leaves the model as it is."""

    def __init__(self, failures: dict[int, BaseException] | None = None) -> None:
        self.calls = 0
        self.failures = failures or {}

    def __call__(self, model: Any, *, teacher: Any, epochs: int) -> None:
        self.calls += 1
        if self.calls in self.failures:
            raise self.failures[self.calls]


def linear_task(**options: Any) -> ac.Task:
    return models.search_task(models.linear(), **options)


def search_bits(task: ac.Task, out: Path, **options: Any) -> ac.Result:
    return ac.search(
        task, out=out, **{"space": BITS_ONLY, "keep_inert": True, "max_trials": 3, "calibration_samples": 5, **options}
    )


def unique_policies(folder: Path) -> bool:
    keys = [(record.policy.key, record.plan.tune, record.plan.precision) for record in searches.records(folder)]
    return len(set(keys)) == len(keys)


# A finished search


def test_the_folder_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir() if not path.name.startswith(".")}
    files = "config.yaml front.csv original.json pareto.png pareto.svg report.html run.json samples.npz study.db trials.csv"
    assert names == {*files.split(), "trials", "best"}
    for folder in (finished / "trials").iterdir():
        inside = {path.name for path in folder.iterdir()}
        assert {"policy.json", "record.json", "removed.json", "model.xml", "model.bin", "weights.safetensors"} <= inside
        assert not any(name.startswith(".") for name in inside)
    assert (finished / "best").is_symlink()
    assert [path.name for path in finished.glob(".best-*")] == [(finished / "best").readlink().name]


def test_the_tables_have_their_columns_and_agree(finished: Path) -> None:
    front, trials = pd.read_csv(finished / "front.csv"), pd.read_csv(finished / "trials.csv")
    assert set(FRONT_COLUMNS) <= set(front.columns)
    assert set(TRIALS_COLUMNS) <= set(trials.columns)
    assert set(front["trial"]) <= set(trials["trial"])
    rows = trials.set_index("trial").loc[front["trial"]]
    for column in ("accuracy_valid", "latency_ms", "size_bytes", "policy"):
        assert (rows[column].to_numpy() == front[column].to_numpy()).all()


def test_every_row_of_the_front_is_measured(finished: Path) -> None:
    front = pd.read_csv(finished / "front.csv")
    wanted = [column for column in FRONT_COLUMNS if column != "int8_share"]
    assert front[wanted].notna().all().all()
    assert (front["latency_low_ms"] <= front["latency_ms"]).all()
    assert (front["latency_ms"] <= front["latency_high_ms"]).all()
    reference_ms = searches.run_json(finished)["reference_ms"]
    np.testing.assert_allclose(front["speedup"], reference_ms / front["latency_ms"], rtol=1e-6)
    assert front["within_budget"].isin([True, False]).all()


def test_no_model_of_the_front_beats_another_in_everything(finished: Path) -> None:
    front = pd.read_csv(finished / "front.csv")
    assert front["latency_ms"].is_monotonic_increasing
    assert front["accuracy_valid"].is_monotonic_increasing


def test_the_baselines_are_there_and_the_trials_are_two(finished: Path) -> None:
    trials = pd.read_csv(finished / "trials.csv")
    sources = Counter(trials["source"].str.replace("baseline:", "", regex=False))
    precision = searches.run_json(finished)["fingerprint"]["default_precision"]
    wanted = {"original", "int8", "uniform-25", "uniform-50", "uniform-75"} | ({"f32"} if precision != "f32" else set())
    assert wanted <= set(sources) | {"uniform-25"}  # 25 % of 16 channels in steps of 8 is no pruning at all
    tuned = trials[~trials["source"].str.startswith("baseline:")]
    assert tuned["state"].isin(["COMPLETE", "FAILED"]).sum() == 2
    assert (trials["state"] == "COMPLETE").all()
    assert (tuned["tune_seconds"] > 0).all()
    assert (trials["total_seconds"] > 0).all()


def test_sizes_are_those_on_disk(finished: Path) -> None:
    for record in searches.records(finished):
        folder = finished / "trials" / f"{record.number:04d}"
        assert record.size_bytes == sum((folder / name).stat().st_size for name in ("model.xml", "model.bin"))
        assert 0 < record.compressed_bytes < record.size_bytes


def test_the_stored_policy_is_the_records(finished: Path) -> None:
    for record in searches.records(finished):
        text = (finished / "trials" / f"{record.number:04d}" / "policy.json").read_text()
        assert Policy.from_json(text) == record.policy


def accuracy_of(path: Path, split: str, samples: int = 200) -> float:
    """The accuracy of an IR with nothing but OpenVINO and NumPy."""
    images, classes = (array[:samples].numpy() for array in models.digits()[split])
    compiled = ov.Core().compile_model(path, "CPU")
    found = [next(iter(compiled([images[i : i + 1]]).values())).argmax() for i in range(samples)]
    return float((np.array(found) == classes).mean())


def test_accuracies_computed_again_from_the_ir_are_the_tables(finished: Path) -> None:
    front = pd.read_csv(finished / "front.csv")
    for row in front[~front["source"].isin(["baseline:f32"])].to_dict("records"):
        path = finished / "trials" / f"{row['trial']:04d}" / "model.xml"
        assert accuracy_of(path, "test") == pytest.approx(row["accuracy_test"], abs=0.001)
        assert accuracy_of(path, "valid") == pytest.approx(row["accuracy_valid"], abs=0.001)


def test_the_best_is_the_most_accurate_and_promises_what_the_table_says(finished: Path) -> None:
    front = pd.read_csv(finished / "front.csv")
    within = front[front["within_budget"]]
    promise = json.loads((finished / "best" / "promise.json").read_text())
    row = front.set_index("trial").loc[promise["trial"]]
    assert row["accuracy_valid"] == within["accuracy_valid"].max()
    assert promise["accuracy_valid"] == row["accuracy_valid"]
    assert promise["accuracy_test"] == row["accuracy_test"]
    assert promise["latency_ms"] == pytest.approx(row["latency_ms"], rel=1e-6)
    assert ac.Result(finished).best().record.number == promise["trial"]


def test_every_int8_layer_of_the_candidates_runs_in_int8(finished: Path) -> None:
    for record in searches.candidates(finished):
        assert record.int8_share == 1.0, record.notes
        assert record.notes == []


def test_the_report_holds_the_picture_and_every_trial(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "<svg" in page
    assert "<th>budget</th>" in page
    assert all(record.source.removeprefix("baseline:") in page for record in searches.records(finished))
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert (finished / "pareto.png").read_bytes()[:4] == b"\x89PNG"


def test_the_result_is_read_from_the_folder_alone(finished: Path, tmp_path: Path) -> None:
    result = ac.Result(finished)
    assert list(result.front["trial"]) == list(pd.read_csv(finished / "front.csv")["trial"])
    assert len(result.trials) == len(searches.records(finished))
    result.plot(tmp_path / "front.svg")
    assert (tmp_path / "front.svg").stat().st_size > 0


def test_the_configuration_records_what_the_result_depends_on(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["budget"] == "3x"
    assert config["recorded"]["metric"] == "accuracy"
    assert {"openvino", "torch", "nncf"} <= set(config["recorded"]["versions"])
    assert config["recorded"]["fingerprint"]["device_name"]


def test_a_folder_without_a_run_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"run\.json.*autocompress search"):
        ac.Result(tmp_path)


# Resuming


def test_a_resumed_search_runs_nothing_twice(run_copy: Path, task_file: Path) -> None:
    before = {record.number: record for record in searches.records(run_copy)}
    result = ac.search(task_file, out=run_copy, resume=True, max_trials=3, **AS_BEFORE)
    after = {record.number: record for record in searches.records(run_copy)}
    assert len(after) == len(before) + 1
    assert unique_policies(run_copy)
    for number, record in before.items():
        assert after[number].seconds == record.seconds  # not one stage was done again
        assert after[number].latency_trained == record.latency_trained
        assert after[number].accuracy_test == record.accuracy_test
    assert len(result.trials) == len(after)


@pytest.fixture(scope="module")
def pruned_task() -> ac.Task:
    """The small convolutional net, whose weights are nearly all in two groups. Not trained: only the budget counts here."""
    return models.search_task(models.build("conv"), 60, fine_tune=Loop())


def test_a_wider_budget_runs_what_was_over_it_and_a_narrower_one_judges_anew(
    pruned_task: ac.Task, tmp_path: Path, steady_meter: None
) -> None:
    """With 55 % of the weights two of the four policies are within the budget, and one is just below it."""
    out, options = tmp_path / "run", {"space": PRUNED, "calibration_samples": 5, "keep": "all", "sampler": "mutation"}
    ac.search(pruned_task, out=out, latency_budget="55% of int8", max_trials=1, **options)
    states = _states(out)
    over = {number for number, state in states.items() if state == State.OVER_BUDGET}
    assert len(over) >= 1
    assert all(Stage.FINE_TUNE not in record.done for record in searches.records(out) if record.number in over)

    ac.search(pruned_task, out=out, latency_budget="3x", max_trials=2, resume=True, **options)
    assert set(_states(out).values()) == {State.COMPLETE}
    assert _states(out).keys() >= states.keys()
    assert unique_policies(out)
    assert pd.read_csv(out / "trials.csv")["within_budget"].all()

    result = ac.search(pruned_task, out=out, latency_budget="55% of int8", max_trials=2, resume=True, **options)
    budget_ms = 0.55 * searches.run_json(out)["landmarks"]["int8_ms"]
    assert set(_states(out).values()) == {State.COMPLETE}
    assert (result.trials["within_budget"] == (result.trials["latency_ms"] <= budget_ms)).all()
    assert not result.trials["within_budget"].all()
    promise = json.loads((out / "best" / "promise.json").read_text())
    assert promise["budget_ms"] == pytest.approx(budget_ms)
    assert promise["latency_ms"] <= budget_ms


def _states(out: Path) -> dict[int, State]:
    return {record.number: record.state for record in searches.candidates(out)}


def test_a_budget_below_the_fastest_is_refused_and_names_it(pruned_task: ac.Task, tmp_path: Path, steady_meter: None) -> None:
    with pytest.raises(ConfigError, match=r"0\.001 ms.*fastest takes 0\.\d+ ms") as caught:
        ac.search(pruned_task, out=tmp_path / "run", latency_budget="0.001ms", space=PRUNED, calibration_samples=5)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "run.json").exists()


# When to stop


@pytest.mark.timing
def test_the_time_ends_a_search(tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.timed_run.FINAL_SECONDS", 1.0)
    monkeypatch.setattr("autocompress.timed_run.MAX_SECONDS", 0.1)
    start = time.monotonic()
    space = {"precision": [{"weights": ["float", 8, 7, 4, 3, 2]}], "sparsity": [{"levels": [0, 0.2, 0.4, 0.6]}]}
    result = search_bits(linear_task(fine_tune=Loop()), tmp_path / "run", space=space, max_trials=200, max_time="6s")
    assert 3 < time.monotonic() - start < 9
    assert set(result.trials["state"][:-1]) == {"COMPLETE"}  # the last one may be cut
    assert not result.front.empty


@pytest.mark.timing
def test_the_time_ends_a_training_and_a_resumed_run_goes_on_with_it(
    tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.timed_run.FINAL_SECONDS", 1.0)
    monkeypatch.setattr("autocompress.timed_run.MAX_SECONDS", 0.1)
    pause = 0.2

    def slow(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        time.sleep(pause)
        return torch.nn.functional.cross_entropy(outputs, targets)

    task, options = linear_task(loss=slow), {"fine_tuning": {"epochs": 200}, "max_trials": 1}
    start = time.monotonic()
    result = search_bits(task, tmp_path / "run", **options, max_time="6s")
    assert time.monotonic() - start < 9
    (begun,) = searches.candidates(tmp_path / "run")
    assert begun.state == State.RUNNING
    assert set(result.trials["state"]) == {"COMPLETE", "RUNNING"}
    assert not result.front.empty
    assert (tmp_path / "run" / "report.html").is_file()

    pause = 0.0
    search_bits(task, tmp_path / "run", **options, resume=True)
    assert [(record.number, record.state) for record in searches.candidates(tmp_path / "run")] == [(begun.number, State.COMPLETE)]


def test_a_time_that_is_too_short_still_gives_the_baselines(tmp_path: Path, steady_meter: None) -> None:
    result = search_bits(linear_task(), tmp_path / "run", max_time="1s")
    assert {"baseline:original", "baseline:int8"} <= set(result.trials["source"])
    assert result.trials["source"].str.startswith("baseline:").all()
    assert not result.front.empty


@pytest.mark.parametrize(("final_epochs", "loop", "trained"), [(None, None, True), (0, None, False), (None, Loop(), False)])
def test_time_that_is_left_is_spent_on_the_models_of_the_front(
    final_epochs: int | None, loop: Loop | None, trained: bool, tmp_path: Path, steady_meter: None
) -> None:
    task, tuning = linear_task(epochs=1, fine_tune=loop), {"mode": "each", "final_epochs": final_epochs}
    search_bits(task, tmp_path / "run", max_trials=2, max_time="10m", fine_tuning=tuning)
    final = [record for record in searches.records(tmp_path / "run") if record.is_final]
    assert bool(final) == trained
    assert all(record.state == State.COMPLETE and record.plan.epochs > 1 for record in final)
    candidates = [record for record in searches.candidates(tmp_path / "run") if not record.is_final]
    assert {record.policy for record in final} <= {record.policy for record in candidates}
    assert all(Stage.MEASURE_UNTRAINED not in record.done for record in final)


def test_a_final_training_that_fails_is_not_tried_again(
    tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TorchFramework.fine_tune

    def failing(self: TorchFramework, task: ac.Task, candidate: Candidate, settings: TuneSettings, *rest: Any) -> int:
        if settings.epochs > 1:
            raise ValueError("too long")
        return real(self, task, candidate, settings, *rest)

    monkeypatch.setattr(TorchFramework, "fine_tune", failing)
    options: dict[str, Any] = {"max_trials": 2, "max_time": "10m", "fine_tuning": {"mode": "each"}}
    search_bits(linear_task(epochs=1), tmp_path / "run", **options)
    final = [record for record in searches.records(tmp_path / "run") if record.is_final]
    assert final
    assert {record.state for record in final} == {State.FAILED}
    assert len({record.policy for record in final}) == len(final)
    search_bits(linear_task(epochs=1), tmp_path / "run", **options, resume=True)
    assert len([record for record in searches.records(tmp_path / "run") if record.is_final]) == len(final)


def test_a_final_training_is_shortened_where_the_time_runs_out(
    tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, deadlines = TorchFramework.fine_tune, dict[int, set[bool]]()

    def late(self: TorchFramework, task: ac.Task, candidate: Candidate, settings: TuneSettings, *rest: Any) -> int:
        deadlines.setdefault(settings.epochs, set()).add(settings.deadline is not None)
        past = None if settings.deadline is None else 0.0
        return real(self, task, candidate, replace(settings, deadline=past), *rest)

    monkeypatch.setattr(TorchFramework, "fine_tune", late)
    options: dict[str, Any] = {"max_trials": 2, "max_time": "10m", "fine_tuning": {"mode": "each"}}
    search_bits(linear_task(epochs=1), tmp_path / "run", **options)
    final = [record for record in searches.records(tmp_path / "run") if record.is_final]
    assert final
    for record in final:
        assert record.state == State.COMPLETE
        assert record.epochs == 1
        assert f"Trained for 1 of {record.plan.epochs} epochs" in record.notes
    assert deadlines.pop(1) == {False}  # candidates are compared with each other
    assert set(map(tuple, deadlines.values())) == {(True,)}


def test_a_candidate_that_takes_too_long_leaves_the_front_its_training(
    tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Search._try_candidates

    def cut_off(self: Search) -> None:
        real(self)
        raise OutOfTimeError

    monkeypatch.setattr(Search, "_try_candidates", cut_off)
    options: dict[str, Any] = {"max_trials": 2, "max_time": "10m", "fine_tuning": {"mode": "each"}}
    search_bits(linear_task(epochs=1), tmp_path / "run", **options)
    assert any(record.is_final and record.state == State.COMPLETE for record in searches.records(tmp_path / "run"))


# Trials that fail


def test_a_training_that_fails_is_recorded_and_the_search_goes_on(tmp_path: Path, steady_meter: None) -> None:
    loop = Loop({1: RuntimeError("no [luck] today"), 3: ValueError("nor now")})
    result = search_bits(linear_task(fine_tune=loop), tmp_path / "run", max_trials=4)
    failed = [record for record in searches.records(tmp_path / "run") if record.state == State.FAILED]
    assert [(record.stage, record.error) for record in failed] == [
        (Stage.FINE_TUNE, "RuntimeError: no [luck] today"),
        (Stage.FINE_TUNE, "ValueError: nor now"),
    ]
    rows = result.trials[result.trials["state"] == "FAILED"]
    assert rows["accuracy_valid"].isna().all()
    assert (rows["stage"] == "fine_tune").all()
    assert (result.trials["state"] == "COMPLETE").sum() >= 4
    assert not set(rows["trial"]) & set(result.front["trial"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "no [luck] today" in page
    assert "<th>budget</th>" not in page  # none was given


def test_a_loss_that_diverges_is_a_failed_trial(tmp_path: Path, steady_meter: None) -> None:
    task = linear_task(loss=lambda outputs, targets: outputs.sum() * float("inf"))
    search_bits(task, tmp_path / "run", max_trials=2)
    failed = [record for record in searches.candidates(tmp_path / "run") if record.state == State.FAILED]
    assert len(failed) == 2
    assert all("DivergedError" in record.error and "learning_rate" in record.error for record in failed)


@pytest.mark.parametrize("stage", ["export", "evaluate"])
def test_a_failure_in_any_stage_is_told_with_the_stage(
    stage: str, tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = {"export": "autocompress.target.precision.save", "evaluate": "autocompress.trial.score"}[stage]
    search_bits(linear_task(test=None, fine_tune=Loop()), tmp_path / "run", max_trials=1)

    def broken(*arguments: Any) -> None:
        raise OSError("broken on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(function, broken)
        search_bits(linear_task(test=None, fine_tune=Loop()), tmp_path / "run", max_trials=2, resume=True)
    (failed,) = (record for record in searches.candidates(tmp_path / "run") if record.state == State.FAILED)
    assert failed.stage == stage
    assert failed.error == "OSError: broken on purpose"


def test_an_interrupted_search_is_complete_and_goes_on(tmp_path: Path, steady_meter: None) -> None:
    loop, out = Loop({2: KeyboardInterrupt()}), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search_bits(linear_task(fine_tune=loop), out, max_trials=3)
    states = Counter(record.state for record in searches.candidates(out))
    assert states == {State.COMPLETE: 1, State.RUNNING: 1}
    assert (out / "report.html").is_file()
    assert len(pd.read_csv(out / "trials.csv")) == len(searches.records(out))
    done = {r.number: r.seconds for r in searches.records(out) if r.state == State.COMPLETE}

    search_bits(linear_task(fine_tune=loop), out, max_trials=3, resume=True)
    assert Counter(record.state for record in searches.candidates(out)) == {State.COMPLETE: 3}
    assert unique_policies(out)
    assert all(r.seconds == done[r.number] for r in searches.records(out) if r.number in done)
    assert loop.calls == 4  # three trials and the one that was interrupted


@pytest.mark.parametrize("when", [1, 4])
def test_a_full_disk_stops_the_search_and_leaves_a_readable_folder(
    when: int, tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, usage, asked = tmp_path / "run", shutil.disk_usage(tmp_path), []

    def nearly_full(path: Any) -> Any:
        asked.append(path)
        return usage._replace(free=1000 if len(asked) >= when else usage.free)

    with monkeypatch.context() as patch:
        patch.setattr("autocompress.run_folder.shutil.disk_usage", nearly_full)
        with pytest.raises(DiskFullError, match=r"full.*resume"):
            search_bits(linear_task(fine_tune=Loop()), out, max_trials=3)
    assert State.FAILED not in {record.state for record in searches.records(out)}
    assert len(pd.read_csv(out / "trials.csv")) == len(searches.records(out)) == len(ac.Result(out).trials)

    result = search_bits(linear_task(fine_tune=Loop()), out, max_trials=3, resume=True)
    assert (result.trials["state"] == "COMPLETE").all()
    assert len(searches.candidates(out)) == 3


def test_a_disk_that_fills_up_while_weights_are_written_is_said(
    tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("autocompress.frameworks.torch.framework.save_weights", no_space)
        with pytest.raises(DiskFullError):
            search_bits(linear_task(fine_tune=Loop()), tmp_path / "run", max_trials=2)
    assert searches.records(tmp_path / "run")[0].state == State.RUNNING


def test_a_model_that_cannot_run_is_refused_before_anything_is_tried(tmp_path: Path) -> None:
    with pytest.raises(AutocompressError, match="RuntimeError") as caught:
        ac.search(models.search_task(models.build("conv1d"), train=models.diabetes()["train"]), out=tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_metric_that_is_not_a_number_is_refused(tmp_path: Path, steady_meter: None) -> None:
    def strange(predictions: Any, targets: Any) -> float:
        return float("nan")

    task = linear_task(metric=strange, direction="maximize")
    with pytest.raises(AutocompressError, match=r"strange returns a finite number; got nan"):
        search_bits(task, tmp_path / "run")


# Other tasks and spaces


def test_mixed_precision_makes_smaller_models(tmp_path: Path, steady_meter: None) -> None:
    result = search_bits(linear_task(fine_tune=Loop()), tmp_path / "run", space="mixed-precision", keep="all")
    seeds = result.trials[result.trials["source"] == "seed"]
    bits = [json.loads(policy)["layers"]["1"]["weights"] for policy in seeds["policy"]]
    assert bits == [8, 4, 2]
    sizes = [(tmp_path / "run" / "trials" / f"{number:04d}" / "model.bin").stat().st_size for number in seeds["trial"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] - sizes[2] == pytest.approx(640 // 4, abs=16)  # 640 weights, two bits less each
    assert result.objectives == ["accuracy", "latency", "size"]


def test_a_metric_that_is_minimised_prefers_less(tmp_path: Path, steady_meter: None) -> None:
    result = ac.search(
        models.regression_task(), out=tmp_path / "run", space=PRUNED, max_trials=2, calibration_samples=5, keep="all"
    )
    front = result.front
    assert front["latency_ms"].is_monotonic_increasing
    assert front["accuracy_valid"].is_monotonic_decreasing
    complete = result.trials[result.trials["state"] == "COMPLETE"]
    assert result.best().record.accuracy_valid == complete["accuracy_valid"].min()
    assert result.best(prefer="latency").record.latency.ms == complete["latency_ms"].min()
    promise = json.loads((tmp_path / "run" / "best" / "promise.json").read_text())
    assert promise["accuracy_valid"] == complete["accuracy_valid"].min()


def test_an_allowed_drop_keeps_worse_models_from_being_chosen(finished: Path) -> None:
    result = ac.Result(finished)
    original = result.trials.set_index("source").loc["baseline:original", "accuracy_valid"]
    for drop in (0.0, 0.05, 0.2):
        chosen = result.best(max_accuracy_drop=drop, prefer="latency").record
        assert chosen.accuracy_valid >= original - drop
        allowed = result.trials[result.trials["accuracy_valid"] >= original - drop - 1e-12]
        assert chosen.latency.ms == allowed["latency_ms"].min()
    assert result.best("100%", prefer="latency").record.latency.ms == result.trials["latency_ms"].min()


def test_a_drop_that_nothing_keeps_leaves_the_original(tmp_path: Path, steady_meter: None) -> None:
    task = models.search_task(models.linear(), fine_tune=_ruin)
    search_bits(task, tmp_path / "run", max_accuracy_drop=0.3)
    promise = json.loads((tmp_path / "run" / "best" / "promise.json").read_text())
    assert searches.records(tmp_path / "run")[promise["trial"]].is_baseline


def _ruin(model: Any, *, teacher: Any, epochs: int) -> None:
    for parameter in model.parameters():
        parameter.data.zero_()


def test_a_search_without_test_data_says_nothing_of_it(tmp_path: Path, steady_meter: None) -> None:
    result = search_bits(linear_task(test=None, fine_tune=Loop()), tmp_path / "run", max_trials=1)
    assert result.front["accuracy_test"].isna().all()
    assert not result.run["has_test"]


def test_several_inputs_go_through_a_whole_search(tmp_path: Path, steady_meter: None) -> None:
    parts = {
        name: models.halves(tuple(a[:60] for a in arrays), named=name != "train") for name, arrays in models.digits().items()
    }
    task = ac.Task(models.seeded(models.TwoInputs), **parts, epochs=1)
    result = ac.search(task, out=tmp_path / "run", space="int8", max_trials=1, calibration_samples=10)
    assert (result.trials["state"] == "COMPLETE").all()
    result.best().export(tmp_path / "bundle")
    assert ac.verify(tmp_path / "bundle")[0].kept


def test_a_batch_of_the_target_is_deployed(tmp_path: Path, steady_meter: None) -> None:
    result = search_bits(linear_task(), tmp_path / "run", max_trials=1, target={"batch": 8})
    chosen = result.best()
    compiled = ov.Core().compile_model(chosen.folder.trial(chosen.record.number) / "model.xml", "CPU")
    assert tuple(compiled.inputs[0].shape) == (8, 1, 8, 8)
    assert chosen.record.accuracy_valid > 0.8


# One policy


def test_one_policy_goes_through_the_same_loop(tmp_path: Path, steady_meter: None) -> None:
    policy = ac.Policy({}, {"1": ac.LayerPolicy(4, 8)})
    choice = ac.compress(linear_task(), policy, out=tmp_path / "run", calibration_samples=5)
    assert choice.record.policy == policy
    assert choice.record.state == State.COMPLETE
    assert choice.record.int8_share == 1.0
    assert choice.record.accuracy_test is not None
    assert {"baseline:original", "baseline:int8", "user"} <= {r.source for r in searches.records(tmp_path / "run")}
    path = choice.export(tmp_path / "bundle") / "model.xml"
    assert accuracy_of(path, "valid") == pytest.approx(choice.record.accuracy_valid, abs=0.001)
    other = ac.Policy({}, {"1": ac.LayerPolicy(8, 8)})
    second = ac.compress(linear_task(), other, out=tmp_path / "run", calibration_samples=5, resume=True)
    users = [record.number for record in searches.records(tmp_path / "run") if record.source == "user"]
    assert users == [choice.record.number, second.record.number]


def test_a_policy_that_names_an_unknown_layer_is_refused(tmp_path: Path, steady_meter: None) -> None:
    with pytest.raises(AutocompressError, match=r"'nowhere'.*It has: 1"):
        ac.compress(linear_task(), ac.Policy({}, {"nowhere": ac.LayerPolicy(8, 8)}), out=tmp_path / "run", calibration_samples=5)


def test_the_model_that_was_asked_for_is_kept_even_if_another_is_better(tmp_path: Path, steady_meter: None) -> None:
    task, policy = linear_task(fine_tune=_ruin), ac.Policy({}, {"1": ac.LayerPolicy(sparsity=0.5)})
    choice = ac.compress(task, policy, out=tmp_path / "run", calibration_samples=5)
    choice.export(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "model.xml").is_file()


# A process that is killed


def _complete(out: Path) -> dict[int, str]:
    """The finished trials and their records, byte for byte up to what the final measurement adds."""
    if not (out / "trials").is_dir():
        return {}
    done = [record for record in searches.records(out) if record.state == State.COMPLETE]
    fields = {"latency_final", "accuracy_test"}
    return {record.number: record.model_dump_json(exclude=fields) for record in done}


def _wait_for_records(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Until more than `count` trials have begun, at most a minute."""
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end and len(list(out.glob("trials/*/record.json"))) <= count:
        time.sleep(0.02)


@pytest.fixture
def four_searches(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that wait for a line before they begin, or go on with, one and the same search."""
    out = tmp_path / "run"
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump(BITS_ONLY))
    config = tmp_path / "config.yaml"
    config.write_text("calibration_samples: 5\n")
    task = searches.write_task(tmp_path / "killed_task.py", "task = models.search_task(models.linear(), epochs=4)")
    arguments = ("search", task, "--config", config, "--space", space, "--trials", "5", "--keep-inert", "--resume", "--out", out)
    processes = [searches.start_cli(*arguments, waiting=True) for _ in range(4)]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_a_search_that_is_killed_again_and_again_loses_nothing(
    four_searches: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    out, generator = tmp_path / "run", random.Random(0)
    seen: dict[int, str] = {}
    for kill, process in enumerate(four_searches[:3]):
        process.stdin.write("go\n")
        process.stdin.flush()
        _wait_for_records(process, out, len(seen) + min(kill, 1))
        time.sleep(generator.uniform(0, 0.7))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        after = _complete(out)
        assert {number: after[number] for number in seen} == seen
        seen = after
    _, err = four_searches[3].communicate("go\n", timeout=120)
    assert four_searches[3].returncode == 0, err
    assert err == ""

    after = _complete(out)
    assert {number: after[number] for number in seen} == seen
    assert [record.number for record in searches.records(out)] == list(range(len(after)))
    assert len(searches.candidates(out)) == 5
    assert unique_policies(out)
    result = ac.Result(out)
    assert len(pd.read_csv(out / "trials.csv")) == len(result.trials) == len(after)
    assert accuracy_of(out / "best" / "model.xml", "valid") == pytest.approx(result.best().record.accuracy_valid, abs=0.001)
    leftovers = [str(p.relative_to(out)) for p in out.rglob(".*") if p.name != ".lock" and not p.name.startswith(".best-")]
    assert leftovers == []
