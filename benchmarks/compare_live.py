"""Whole searches on the device: shared fine-tuning, each candidate by itself, and the uniform grid, at equal seconds.

    python benchmarks/compare_live.py mnist_resnet8 [--time 8m] [--seeds 3] [--ways shared each grid] [--out runs/live]

The search is that of the experiment's config.yaml, with another time limit, seed and mode of fine-tuning; what counts is its
front, as a user gets it, scored once on test data. The grid prunes every group by one ratio, every layer in INT8, and spends the
same seconds evenly on the ratios, as epochs of fine-tuning. What searches remember of a model is made beforehand.

A row for each model is appended to OUT/live_NAME.csv; a way and seed that stands in it is not run again. Prints the hypervolumes
between each front and the corner (the budget, the original's accuracy less 5 points) and, for drops of 0.5, 1 and 2 points, the
latencies of the fastest models that lose no more beside the grid's (interpolated; medians over the seeds), and draws
OUT/live_NAME.png. Ends with exit code 1 if sharing has less hypervolume with any seed or not more with most of them, or if its
models are not 1.15 times (`--faster`) as fast as the grid's at two of the drops, or clearly slower at any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what runs on the other core then costs nothing
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
import pandas as pd

from autocompress.baselines import INT8, ORIGINAL
from autocompress.config import SearchConfig, load_config
from autocompress.device import Fingerprint
from autocompress.foresight import Foresight
from autocompress.outer_loop import run_search
from autocompress.setup import open_space
from autocompress.space import SearchSpace, uniform_policy
from autocompress.task import Task, load_task
from autocompress.trial import Workbench
from autocompress.watch import Watcher

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments" / "search_benchmark"))
from build_table import host, tuned
from replay import hypervolume

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
WAYS = ("shared", "each", "grid")
RATIOS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
WORST_DROP, DROPS = 0.05, (0.005, 0.01, 0.02)
TIE = 1.02
"""Latencies nearer than this are one."""


class Printing(Watcher):
    """Lines as they come."""

    def say(self, line: str) -> None:
        """Print it."""
        print(f"  {line}", flush=True)


def main(name: str, limit: str, seeds: int, ways: list[str], out: Path, faster: float) -> int:
    """Run what is missing, compare; 1 if a bound is broken."""
    out.mkdir(parents=True, exist_ok=True)
    path, task = out / f"live_{name}.csv", load_task(ROOT / f"experiments/{name}/task.py")
    config = load_config(ROOT / f"experiments/{name}/config.yaml", {"max_time": limit})
    for way, seed in missing(path, ways, seeds):
        print(f"{name}, {way}, seed {seed}", flush=True)
        fill_caches(task, config)
        asked = config.model_copy(update={"seed": seed, "out": str(out / f"{name}-{way}-{seed}")})
        append(path, grid(task, asked) if way == "grid" else searched(task, asked, way))
    models = pd.read_csv(path)
    draw(models, name, out / f"live_{name}.png")
    return report(models, faster)


def missing(path: Path, ways: list[str], seeds: int) -> list[tuple[str, int]]:
    """The ways and seeds that are not in the file."""
    models = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["way", "seed"])
    known = set(zip(models["way"], models["seed"], strict=True))
    return [(way, seed) for seed in range(seeds) for way in ways if (way, seed) not in known]


def fill_caches(task: Task, config: SearchConfig) -> None:
    """Time the layers and probe the choices, unless that was done before."""
    with opened(task, config) as (bench, space, fingerprint):
        foresight = Foresight(bench, space, fingerprint, Printing())
        _ = foresight.predictor, foresight.sensitivities()


@contextmanager
def opened(task: Task, config: SearchConfig) -> Iterator[tuple[Workbench, SearchSpace, Fingerprint]]:
    """The workbench of a task; its process is ended."""
    bench, space, fingerprint = open_space(task, config, Printing())
    try:
        yield bench, space, fingerprint
    finally:
        bench.framework.close()


def append(path: Path, rows: list[Row]) -> None:
    """Write the rows of one search at once."""
    pd.DataFrame(rows).to_csv(path, mode="a", header=not path.is_file(), index=False)


def searched(task: Task, config: SearchConfig, way: str) -> list[Row]:
    """The front of a search, and what everybody has without one."""
    tuning = config.fine_tuning.model_copy(update={"mode": way})
    start = time.monotonic()
    result = run_search(task, config.model_copy(update={"fine_tuning": tuning}), watcher=Printing())
    seconds = time.monotonic() - start
    front = set(result.front["trial"])
    kept = [r for r in result.records if r.number in front or r.source in (ORIGINAL, INT8)]
    budget = (result.budget_ms or np.inf) / result.run["reference_ms"]
    return [
        row(way, config.seed, f"{r.source} {r.number}", r.latency.ratio, r.accuracy_valid, r.accuracy_test, budget, seconds)
        for r in kept
        if r.latency is not None
    ]


def grid(task: Task, config: SearchConfig) -> list[Row]:
    """One model for each ratio, trained for as many epochs as the time allows."""
    start = time.monotonic()
    with opened(task, config) as (bench, space, _):
        policies = list(dict.fromkeys(uniform_policy(bench.structure, ratio, space.steps) for ratio in RATIOS))
        first = tuned(task, with_epochs(bench, 1), policies[len(policies) // 2], config.seed)
        rest = (config.time_limit_s or np.inf) - (time.monotonic() - start)
        besides = first["total_seconds"] - first["tune_seconds"]
        epochs = max(1, int((rest / len(policies) - besides) / first["tune_seconds"]))
        print(f"  {len(policies)} ratios, {epochs} epochs each", flush=True)
        found = [tuned(task, with_epochs(bench, epochs), policy, config.seed) for policy in policies]
    seconds = time.monotonic() - start
    return [
        row("grid", config.seed, f"ratio {ratio}", one["latency"], one["accuracy_valid"], one["accuracy_test"], np.nan, seconds)
        for ratio, one in zip(RATIOS, found, strict=True)
    ]


def with_epochs(bench: Workbench, epochs: int) -> Workbench:
    """The same, with another length of fine-tuning."""
    tuning = bench.config.fine_tuning.model_copy(update={"epochs": epochs})
    return replace(bench, config=bench.config.model_copy(update={"fine_tuning": tuning}))


def row(way: str, seed: int, model: str, latency: float, valid: float, test: float, budget: float, seconds: float) -> Row:
    """A model; latencies and the budget relative to the original, seconds of the whole search or grid."""
    figures = {"latency": latency, "accuracy_valid": valid, "accuracy_test": test, "budget": budget, "seconds": seconds}
    return (
        {"way": way, "seed": seed, "model": model} | {key: round(value, 5) for key, value in figures.items()} | {"host": host()}
    )


def report(models: pd.DataFrame, faster: float) -> int:
    """Print the comparison; 1 if a bound is broken."""
    original = float(models.loc[models["model"].str.startswith(ORIGINAL), "accuracy_test"].mean())
    budget = float(models["budget"].mean())
    by_way = {way: [one for _, one in found.groupby("seed")] for way, found in models.groupby("way")}
    broken = check_volumes({way: [volume(one, budget, original) for one in found] for way, found in by_way.items()})
    if {"shared", "grid"} <= set(by_way):
        broken += check_latencies(by_way, original, faster)
    print(*broken, sep="\n")
    return int(bool(broken))


def volume(front: pd.DataFrame, budget: float, original: float) -> float:
    """Hypervolume on test data, in points of accuracy times the original's latency."""
    return 100 * hypervolume(front["latency"].to_numpy(), front["accuracy_test"].to_numpy(), budget, original - WORST_DROP)


def check_volumes(volumes: dict[str, list[float]]) -> list[str]:
    """Sharing has no less with any seed and more with most of them."""
    for way, found in volumes.items():
        print(f"{way:8} hypervolume {'  '.join(f'{value:.4f}' for value in found)}")
    pairs = list(zip(volumes.get("shared", []), volumes.get("each", []), strict=False))
    less, more = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    return [f"sharing has less hypervolume in {less} of {len(pairs)}, more in {more}"] if less or 2 * more <= len(pairs) else []


def check_latencies(by_way: dict[str, list[pd.DataFrame]], original: float, faster: float) -> list[str]:
    """The search's models are faster than the grid's at two of the drops, and slower at none."""
    ratios = []
    for drop in DROPS:
        least = original - drop
        own = {way: float(np.median([fastest(one, least) for one in by_way[way]])) for way in by_way if way != "grid"}
        of_grid = float(np.median([interpolated(one, least) for one in by_way["grid"]]))
        ratios.append(of_grid / own["shared"])
        words = ", ".join(f"{way} {value:.4f}" for way, value in own.items())
        print(f"at the original's accuracy less {100 * drop:g} points: {words}, grid {of_grid:.4f}: {ratios[-1]:.2f}x as fast")
    broken = [f"{faster}x as fast at {sum(r >= faster for r in ratios)} drops"] if sum(r >= faster for r in ratios) < 2 else []
    return broken + ([f"slower than the grid: {min(ratios):.2f}x"] if not min(ratios) > 1 / TIE else [])


def fastest(front: pd.DataFrame, least: float) -> float:
    """The lowest latency at which a model is at least so accurate."""
    return float(front.loc[front["accuracy_test"] >= least, "latency"].min())


def interpolated(models: pd.DataFrame, least: float) -> float:
    """The latency at which the line through the front of a grid reaches an accuracy."""
    ordered = models.sort_values("latency")
    front = ordered[ordered["accuracy_test"] > ordered["accuracy_test"].cummax().shift(fill_value=-np.inf)]
    return float(np.interp(least, front["accuracy_test"], front["latency"], right=np.nan))


def draw(models: pd.DataFrame, name: str, path: Path) -> None:
    """Every model of every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for way, mark in zip(WAYS, "osx", strict=True):
        found = models[models["way"] == way]
        axes.plot(found["latency"], found["accuracy_test"], mark, label=way, alpha=0.7)
    axes.axvline(float(models["budget"].mean()), ls="--", lw=1, color="grey", label="budget")
    original = float(models.loc[models["model"].str.startswith(ORIGINAL), "accuracy_test"].mean())
    axes.set(xlabel="latency relative to the original", ylabel="accuracy on test data", title=name)
    axes.set(
        ylim=(original - 2 * WORST_DROP, None), xlim=(None, 1.05 * float(models.loc[models["way"] == "grid", "latency"].max()))
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--time", default="8m", help="of each search and grid")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs/live")
    parser.add_argument("--faster", type=float, default=1.15)
    arguments = parser.parse_args()
    sys.exit(main(arguments.name, arguments.time, arguments.seeds, arguments.ways, arguments.out, arguments.faster))
