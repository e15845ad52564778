"""The replay of search strategies, over a table that is a formula."""

import csv
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "search_benchmark"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import compare_search
from recorded import Recorded
from replay import STRATEGIES, replay

from autocompress.strategy.mutation import silence_optuna

NAMES = [f"prune:l{i}" for i in range(4)]
RATIOS = [0.0, 0.5, 0.75]
POINTS = list(itertools.product(range(3), repeat=4))
FRAGILE = np.array([0.002, 0.01, 0.03, 0.001])


@pytest.fixture(autouse=True)
def _quiet() -> None:
    silence_optuna()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """81 policies, each tuned twice."""
    draw = np.random.default_rng(0)
    path = tmp_path / "table.csv"
    with path.open("w", newline="") as file:
        columns = [*NAMES, "seed", "accuracy_valid", "accuracy_test", "latency", "latency_predicted", "tune_seconds"]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for point, seed in itertools.product(POINTS, range(2)):
            accuracy = 0.93 - float((FRAGILE * np.expm1(2 * np.array(RATIOS)[list(point)])).sum())
            latency = 1 - 0.2 * float(np.array(RATIOS)[list(point)].sum())
            scores = {f"accuracy_{split}": accuracy + draw.normal(0, 0.001) for split in ("valid", "test")}
            figures = {"latency": latency, "latency_predicted": latency * 1.02, "tune_seconds": 10.0, "seed": seed}
            writer.writerow({**dict(zip(NAMES, point, strict=True)), **scores, **figures})
    about = {
        "decisions": [["prune", name.removeprefix("prune:"), RATIOS] for name in NAMES],
        "sensitivities": {name: [0.0, 3 * fragile, 9 * fragile] for name, fragile in zip(NAMES, FRAGILE.tolist(), strict=True)},
        "probing_seconds": 8.0, "original": 0.93, "budget": 0.8, "worst_drop": 0.05, "gate_share": 0.05,
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


def test_a_table_is_a_problem_whose_whole_front_is_known(table: Path) -> None:
    problem = Recorded.read(table)
    latencies, accuracies = problem.best_front()
    assert len(latencies) == 81
    point = np.array([1, 0, 0, 2])
    scores = {problem.measured(point, np.random.default_rng(seed))[0] for seed in range(20)}
    assert len(scores) == 2
    assert accuracies[POINTS.index((1, 0, 0, 2))] == pytest.approx(np.mean(list(scores)), abs=0.005)
    assert problem.latency(point[None])[0] == pytest.approx(1.02 * problem.measured(point, np.random.default_rng(0))[1])


def test_a_table_with_a_hole_is_refused(table: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("2,2,2,2,")) + "\n")
    with pytest.raises(SystemExit, match="1 policies are missing"):
        Recorded.read(table)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_replayed_and_charged(strategy: str, table: Path) -> None:
    problem = Recorded.read(table)
    curve = replay(problem, strategy, seed=0, trials=8)
    assert 0 < len(curve.shares) <= 8
    assert list(curve.shares) == sorted(curve.shares)
    assert 0 <= curve.shares[-1] <= 1 + 1e-9
    probing = 0.0 if strategy in ("autocompress, not probed", "random", "uniform grid") else 8.0
    assert curve.seconds[0] >= 10 + probing
    assert np.diff(curve.seconds).min(initial=10) >= 10


def test_the_whole_table_has_the_whole_hypervolume(table: Path) -> None:
    curve = replay(Recorded.read(table), "autocompress", seed=0, trials=81)
    assert curve.shares[-1] == pytest.approx(1)


def test_a_comparison_that_was_cut_off_goes_on(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: STRATEGIES[name] for name in ("autocompress", "random")}
    monkeypatch.setattr(compare_search, "STRATEGIES", few)
    path, problem = tmp_path / "out.csv", Recorded.read(table)
    first = compare_search.run([problem], 5, path)
    text = path.read_text()
    again = compare_search.run([problem, problem], 5, path)
    assert path.read_text().startswith(text)
    assert len(first) == 2
    assert len(again) == 4
    compare_search.report(again, 10.0)
    compare_search.draw(again, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 0
