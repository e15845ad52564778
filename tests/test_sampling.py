"""Who proposes in a search, what it is told beforehand, and that this is said."""

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import searches
from searches import candidates

import autocompress as ac
from autocompress.errors import PolicyError
from autocompress.foresight import Foresight
from autocompress.watch import Watcher

SPACE = {"channel_step": 4, "pruning": [{"ratios": [0, 0.25, 0.5, 0.75]}], "precision": [{"weights": [8]}]}
pytestmark = pytest.mark.usefixtures("steady_meter")


class Loop:
    """A training that takes no time."""

    def __call__(self, model: Any, **_: Any) -> None:
        return


class Listener(Watcher):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def search(out: Path, **options: Any) -> tuple[ac.Result, list[str]]:
    listener = Listener()
    task = models.search_task(models.build("conv"), samples=60, fine_tune=Loop())
    settings = {"space": SPACE, "calibration_samples": 5, "keep": "all", "max_trials": 3, **options}
    return ac.search(task, out=out, watcher=listener, **settings), listener.lines


def proposed(out: Path) -> list[str]:
    return [record.policy.to_json() for record in candidates(out)]


def test_a_search_knows_its_choices_before_it_proposes(tmp_path: Path) -> None:
    _, lines = search(tmp_path / "run")
    sources = [record.source for record in candidates(tmp_path / "run")]
    assert sources[0] == "seed"  # how many more there are depends on how far the timed layers set them apart
    assert sources == sorted(sources, key=["seed", "sampler"].index)
    assert not any("instead" in line for line in lines)


def test_interrupted_and_resumed_it_proposes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.strategy.sampler.SEEDS", 4)
    search(tmp_path / "whole", max_trials=5)
    for trials in (1, 4, 5):
        search(tmp_path / "parts", max_trials=trials, resume=True)
    assert proposed(tmp_path / "parts") == proposed(tmp_path / "whole")
    assert "sampler" in {record.source for record in candidates(tmp_path / "whole")}


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_another_sampler_can_propose(name: str, tmp_path: Path) -> None:
    search(tmp_path / "run", sampler=name, max_trials=1)
    sources = {record.source for record in candidates(tmp_path / "run")}
    assert sources == {"sampler" if name == "random" else "seed"}


def test_without_time_for_the_layer_table_it_says_who_proposes_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Foresight, "table_seconds", 1000.0)
    _, lines = search(tmp_path / "run", max_time="60s", max_trials=1)
    (said,) = [line for line in lines if "instead" in line]
    assert said.startswith("Skipped for lack of time: the layer table (about 1000 s) and sensitivities")
    assert "multivariate TPE" in said
    assert len(candidates(tmp_path / "run")) == 1


def test_without_time_a_new_target_is_not_probed_and_the_run_keeps_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.setup.probed_before", lambda target: None)
    _, lines = search(tmp_path / "run", max_time="60s", max_trials=1)
    assert [line for line in lines if line.startswith("Skipped for lack of time: probing the target")]
    _, lines = search(tmp_path / "run", max_trials=2, resume=True)
    assert searches.run_json(tmp_path / "run")["capabilities"] is None
    assert not [line for line in lines if "robing the target" in line]
    assert len(candidates(tmp_path / "run")) == 2


def test_a_limit_of_the_size_is_kept_by_the_proposals_and_by_the_best(tmp_path: Path) -> None:
    whole, _ = search(tmp_path / "whole", max_trials=1)
    sizes_of = whole.trials.set_index("source")["size_bytes"]
    limit = int(sizes_of["baseline:int8"] + sizes_of["baseline:uniform-75"]) // 2  # most of a tiny model's file is its graph
    result, _ = search(tmp_path / "small", max_size=limit, max_trials=4)
    sizes = [record.size_bytes for record in candidates(tmp_path / "small")]
    assert np.mean(np.array(sizes) <= limit) > 0.6
    assert result.best().record.size_bytes <= limit


def test_a_search_starts_from_a_policy_and_from_another_run(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("pruning: {conv1: 0.75}\nlayers: {'*': {weights: 8, activations: 8}}\n")
    search(tmp_path / "before", max_trials=2, sampler="random")
    front = {record.policy.to_json() for record in candidates(tmp_path / "before")}
    search(tmp_path / "run", start_from=[str(mine), str(tmp_path / "before")], max_trials=4)
    first = candidates(tmp_path / "run")[0]
    assert first.policy.pruning == {"conv1": 0.75}
    assert set(proposed(tmp_path / "run")) & front


def test_a_policy_outside_the_space_is_named_and_passed_over(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("pruning: {conv1: 0.3}\n")
    _, lines = search(tmp_path / "run", start_from=[str(mine)], max_trials=1)
    assert any("not in the space" in line and "conv1" in line for line in lines)


def test_a_start_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="A policy is a file or a template"):
        search(tmp_path / "run", start_from=["nowhere.yaml"])
    assert not (tmp_path / "run" / "run.json").exists()
