"""Policies that meet a target in one go, on real models with a meter without noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import pytest
import searches

import autocompress as ac
from autocompress.errors import ConfigError
from autocompress.global_mode import GlobalMode
from autocompress.record import State
from autocompress.watch import Watcher

FAST: dict[str, Any] = {"calibration_samples": 5}


class Told(Watcher):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def told(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.lines)


class Loop:
    """A training loop that leaves the model as it is and counts its calls."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.calls, self.failure = 0, failure

    def __call__(self, model: Any, *, teacher: Any, epochs: int) -> None:
        self.calls += 1
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure


def conv_task(**options: Any) -> ac.Task:
    """Two groups of 16 and 24 channels, in steps of 8: six models. Not trained."""
    return models.search_task(models.build("conv"), 60, **{"fine_tune": Loop(), **options})


def layer_bits(choice: Any) -> set[Any]:
    return {(layer.weights, layer.activations) for layer in choice.record.policy.layers.values()}


def test_half_of_the_macs(tmp_path: Path, steady_meter: None) -> None:
    """A trained network, fine-tuned: half the work, and it still knows its digits."""
    watcher = Told()
    choice = ac.compress(models.search_task(epochs=2), macs="50%", out=tmp_path / "run", watcher=watcher, **FAST)
    original = next(r for r in searches.records(tmp_path / "run") if r.source == "baseline:original")
    assert 0.3 < choice.record.macs / original.macs <= 0.5
    assert choice.record.state == State.COMPLETE
    assert choice.record.accuracy_valid > 0.8
    assert layer_bits(choice) == {(8, 8)}
    assert choice.record.int8_share == 1.0
    assert watcher.told("Pruned to", f"{choice.record.macs / original.macs:.1%}", *choice.record.policy.pruning)
    channels = {name: group["channels"] for name, group in searches.run_json(tmp_path / "run")["groups"].items()}
    for name, ratio in choice.record.policy.pruning.items():
        assert channels[name] * (1 - ratio) == pytest.approx(round(channels[name] * (1 - ratio) / 8) * 8, abs=1e-3)


def test_a_macs_target_that_nothing_reaches_names_the_smallest(tmp_path: Path, steady_meter: None) -> None:
    with pytest.raises(ConfigError, match=r"got 1\.0% of the original.*smallest.* \d+\.\d%"):
        ac.compress(conv_task(), macs="1%", out=tmp_path / "run", **FAST)
    assert not (tmp_path / "run" / "run.json").exists()


def weights_share(pruning: dict[str, float]) -> float:
    """What the steady meter says of the INT8 net: its weights, relative to the float original's."""
    first, second = 16 * (1 - pruning.get("conv1", 0.0)), 24 * (1 - pruning.get("conv2", 0.0))
    return (9 * first + 9 * first * second + 10 * second) / (9 * 16 + 9 * 16 * 24 + 240) / 2


@pytest.mark.parametrize("share", [0.3, 0.15])
def test_a_latency_is_met_by_the_least_pruned_on_the_path(share: float, tmp_path: Path, steady_meter: None) -> None:
    watcher = Told()
    choice = ac.compress(conv_task(), latency=f"{share:.0%}", out=tmp_path / "run", watcher=watcher, **FAST)
    record = choice.record
    assert record.latency.ratio <= share
    assert record.latency_untrained.ratio <= share
    assert searches.run_json(tmp_path / "run")["budget_ms"] == pytest.approx(share)
    assert record.policy.pruning
    less = [
        {name: ratio for name, ratio in {**record.policy.pruning, group: smaller}.items() if ratio}
        for group, ladder in {"conv1": (0.0, 0.5), "conv2": (0.0, 0.333333, 0.666667)}.items()
        for smaller in ladder
        if smaller < record.policy.pruning.get(group, 0.0)
    ]
    assert any(weights_share(pruning) > 0.95 * share for pruning in less)
    assert watcher.told("untrained", "predicted")


def test_a_latency_that_int8_alone_keeps_prunes_nothing(tmp_path: Path, steady_meter: None) -> None:
    choice = ac.compress(conv_task(), latency="80%", out=tmp_path / "run", **FAST)
    assert choice.record.policy.pruning == {}
    assert layer_bits(choice) == {(8, 8)}


def test_a_latency_that_nothing_reaches_names_the_smallest(tmp_path: Path, steady_meter: None) -> None:
    with pytest.raises(ConfigError, match=r"The fastest takes 0\.\d+ ms, \d+\.\d% of the original"):
        ac.compress(conv_task(), latency="1%", out=tmp_path / "run", **FAST)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_latency_just_below_the_most_pruned_names_it(tmp_path: Path, steady_meter: None) -> None:
    """So near that it might have been noise: refused only after the candidates were measured."""
    with pytest.raises(ConfigError, match=r"fastest takes (0\.\d+) ms") as caught:
        ac.compress(conv_task(), latency="1%", out=tmp_path / "run", **FAST)
    fastest = float(str(caught.value).split("fastest takes ")[1].split(" ms")[0])
    with pytest.raises(ConfigError, match=rf"most pruned takes {fastest} ms"):
        ac.compress(conv_task(), latency=f"{0.98 * fastest}ms", out=tmp_path / "run", **FAST)


def test_the_policy_that_was_found_is_used_again(tmp_path: Path, steady_meter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ac.compress(conv_task(fine_tune=Loop(KeyboardInterrupt())), latency="30%", out=out, **FAST)
    (found,) = json.loads((out / "policies.json").read_text()).values()

    def again(*arguments: Any) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(GlobalMode, "_least_pruned", again)
    loop = Loop()
    choice = ac.compress(conv_task(fine_tune=loop), latency="30%", out=out, resume=True, **FAST)
    assert choice.record.policy.to_dict() == found
    ac.compress(conv_task(fine_tune=loop), latency="30%", out=out, resume=True, **FAST)
    assert loop.calls == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Either a policy, or a MACs target"),
        (("--macs", "50%", "--latency", "50%"), "Either a policy, or a MACs target"),
        (("--macs", "half"), "'half'"),
        (("--macs", "0%"), "Write 50% or 0.5x"),
        (("--macs", "50% of int8"), "MACs target"),
        (("--latency", "soon"), "'soon'"),
    ],
)
def test_targets_that_cannot_be_used(arguments: tuple[str, ...], words: str, task_file: Path, tmp_path: Path) -> None:
    outcome = searches.cli("compress", task_file, *arguments, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_target_from_the_command_line(tmp_path: Path, steady_meter: None) -> None:
    task = searches.write_task(tmp_path / "task.py", "task = models.search_task(models.build('conv'), 60)")
    config = searches.write_config(tmp_path / "config.yaml", **FAST)
    common = ("compress", task, "--config", config, "--float")
    outcome = searches.cli(*common, "--macs", "60%", "--out", tmp_path / "macs")
    assert outcome.code == 0, outcome.err
    assert "Pruned to" in outcome.out
    (record,) = searches.candidates(tmp_path / "macs")
    assert record.policy.pruning
    assert record.policy.layers == {}
    outcome = searches.cli(*common, "--latency", "60%", "--out", tmp_path / "latency", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["plan"]["policy"]["pruning"]
    assert record["plan"]["policy"]["layers"] == {}
    assert record["latency_trained"]["ratio"] <= 0.6
