"""`autocompress analyze`: what each choice alone costs and buys."""

import json
from pathlib import Path

import pytest
import searches

SPACE = """
channel_step: 4
pruning: [{groups: stem, ratios: [0, 0.5]}]
precision: [{layers: fc, weights: [float, 8, 4, 2]}]
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return path


def test_every_choice_is_shown_with_what_it_costs_and_buys(task_file: Path, space: Path, tmp_path: Path) -> None:
    picture = tmp_path / "heat.png"
    outcome = searches.cli("analyze", task_file, "--space", space, "--keep-inert", "--json", "--out", picture)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    choices = {(one["subject"], one["choice"]): one for one in found["choices"]}
    assert set(choices) == {("stem", "-50%"), ("fc", "8/8 bits"), ("fc", "4/8 bits"), ("fc", "2/8 bits")}
    for one in choices.values():
        assert one["loss"] == pytest.approx(found["original"] - one["score"])
    assert choices["stem", "-50%"]["loss"] > abs(choices["fc", "8/8 bits"]["loss"])
    assert all(one["latency_saved"] < 1 for one in choices.values())
    assert 0 < choices["fc", "8/8 bits"]["bytes_saved"] < choices["fc", "2/8 bits"]["bytes_saved"]
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_table_names_groups_and_layers_once(task_file: Path, space: Path) -> None:
    outcome = searches.cli("analyze", task_file, "--space", space, "--keep-inert")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert sum(line.strip().startswith("fc ") for line in lines) == 1
    assert sum("bits" in line for line in lines) == 3


def test_a_space_that_does_not_fit_is_refused(task_file: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("pruning: [{groups: nowhere, ratios: [0, 0.5]}]")
    outcome = searches.cli("analyze", task_file, "--space", tmp_path / "space.yaml")
    assert outcome.code == 2
    assert "nowhere" in outcome.err
