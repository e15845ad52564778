"""Whole searches on the device: shared fine-tuning, each candidate by itself, and the uniform grid, at equal seconds or trials.

    python benchmarks/compare_live.py mnist_resnet8 [--time 8m] [--seeds 3] [--ways auto shared each grid] [--search auto]
    python benchmarks/compare_live.py mnist_resnet8 --trials 40 --ways shared each --search shared

The search is that of the experiment's config.yaml, with another limit, seed and mode of fine-tuning (`auto` chooses one of
the other two); what counts is its front, as a user gets it, chosen on validation data and scored once on test data. The grid
prunes every group by one ratio, every layer in INT8, and spends the same seconds evenly on the ratios, as epochs of fine-tuning;
it needs a limit in time. Where trials are limited instead, what is trained takes as long as it takes: the seconds are printed,
all of a search and those in which something was trained (candidates, the front, the shared training). What is remembered of a
model and a device (the layers' times, what each choice alone costs) is made beforehand and not charged to the searches.

A row for each model is appended to OUT/live_NAME.csv; a way, seed and limit that stand in it are not run again. In the end all
models are timed side by side (`together`): on a busy machine latencies that were measured an hour apart differ by more than the
models do, also relative to the original's. Prints, on test data, the hypervolumes between each front and the corner (the budget,
the original's accuracy less 5 points) and for drops of 0.5, 1 and 2 points the latency of the fastest model that loses no more
beside the grid's (interpolated; medians over the seeds), and draws OUT/live_NAME.png. Ends with exit code 1 if the mode that
`--search` names has less hypervolume than another one with any seed or not more with most of them, or if its models are not 1.15
times (`--faster`) as fast as the grid's at two of the drops, or clearly slower at any.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what runs on the other core then costs nothing
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
import openvino as ov
import pandas as pd

from autocompress.baselines import INT8, ORIGINAL
from autocompress.config import CompressionConfig, SearchConfig, load_config
from autocompress.device import Fingerprint
from autocompress.foresight import Foresight
from autocompress.outer_loop import run_search
from autocompress.policy import Policy
from autocompress.record import Stage, TrialRecord
from autocompress.result import Result
from autocompress.run_folder import RunFolder
from autocompress.setup import open_space
from autocompress.shared import STATE, SharedState
from autocompress.space import SearchSpace, uniform_policy
from autocompress.target.meter import measure
from autocompress.target.runtime import compile_model
from autocompress.task import Task, load_task
from autocompress.trial import Workbench

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments" / "search_benchmark"))
from replay import hypervolume
from rows import Printing, Row, Tuned, host

ROOT = Path(__file__).resolve().parents[1]
Config = TypeVar("Config", bound=CompressionConfig)
COLUMNS = [
    *("way", "seed", "limit", "model", "latency", "accuracy_valid", "accuracy_test"),
    *("budget", "seconds", "tuning", "host", "together"),
]
MODES = ("auto", "shared", "each")
WAYS = (*MODES, "grid")
RATIOS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
WORST_DROP, DROPS = 0.05, (0.005, 0.01, 0.02)
TIE = 1.02
"""Latencies nearer than this are one."""


def main(
    name: str, limits: dict[str, str | int | None], seeds: int, ways: list[str], out: Path, faster: float, search: str
) -> int:
    """Run what is missing, compare; 1 if a bound is broken."""
    out.mkdir(parents=True, exist_ok=True)
    path, task = out / f"live_{name}.csv", load_task(ROOT / f"experiments/{name}/task.py")
    config = load_config(ROOT / f"experiments/{name}/config.yaml", {}).model_copy(update=limits)
    limit = limit_of(config)
    for way, seed in missing(path, ways, seeds, limit):
        print(f"{name}, {way}, seed {seed}", flush=True)
        fill_caches(task, config)
        folder = out / f"{name}-{way}-{seed}-{limit}"
        asked = config.model_copy(update={"seed": seed, "out": str(folder)})
        append(path, grid(task, asked) if way == "grid" else searched(task, asked, way))
    if set(of_limit(path, limit)["way"]) <= {"grid"}:
        print("Nothing to compare the grids with")
        return 0
    time_together(path, name, limit, task, config)
    models = of_limit(path, limit)
    models["latency"] = models["together"] / models.loc[is_original(models), "together"].mean()
    draw(models, name, out / f"live_{name}.png")
    return report(models, faster, search)


def limit_of(config: SearchConfig) -> str:
    """The time, or the number of trials."""
    return config.max_time or f"{config.max_trials}-trials"


def of_limit(path: Path, limit: str) -> pd.DataFrame:
    """The rows of searches of this length."""
    models = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=COLUMNS)
    return models[models["limit"] == limit]


def missing(path: Path, ways: list[str], seeds: int, limit: str) -> list[tuple[str, int]]:
    """The ways and seeds that are not in the file."""
    models = of_limit(path, limit)
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


def time_together(path: Path, name: str, limit: str, task: Task, config: SearchConfig) -> None:
    """Measure the models of all rows of this length side by side, relative to the original, unless that was done."""
    every = pd.read_csv(path)
    rows = every["limit"] == limit
    if "together" in every and every.loc[rows, "together"].notna().all():
        return
    with opened(task, config) as (bench, space, _):
        keys = sorted(set(map(identity, rows_of(every[rows]))))
        folders = {run: None if run == "grid" else path.parent / f"{name}-{run}-{limit}" for run, _ in keys}
        compiled = {(run, which): compiled_again(bench, space, folders[run], which) for run, which in keys}
        latencies = dict(zip(compiled, measure(list(compiled.values()), bench.reference, bench.reference_ms), strict=True))
    every.loc[rows, "together"] = [round(latencies[identity(one)].ratio, 5) for one in rows_of(every[rows])]
    every.to_csv(path, index=False)


def rows_of(models: pd.DataFrame) -> list[Row]:
    """The rows as dicts."""
    return [{str(name): value for name, value in one.items()} for one in models.to_dict("records")]


def identity(one: Row) -> tuple[str, str]:
    """A grid's ratio, the same for all seeds; or a run's folder and the number of a trial."""
    if one["way"] == "grid":
        return "grid", one["model"].split(",")[0].split()[1]
    return f"{one['way']}-{one['seed']}", one["model"].split()[1]


def compiled_again(bench: Workbench, space: SearchSpace, folder: Path | None, which: str) -> ov.CompiledModel:
    """A trial of a run's folder; or, where there is none, a ratio of the grid without its training, which changes no latency."""
    if folder is None:
        candidate = bench.candidate(uniform_policy(bench.structure, float(which), space.steps))
        return compile_model(bench.deploy(candidate, bench.target, False, bench.samples[:1])[0], bench.target)
    (record,) = [one for one in RunFolder(folder).records() if one.number == int(which)]
    target = bench.target.model_copy(update={"precision": record.plan.precision or bench.target.precision})
    return compile_model(RunFolder(folder).trial(record.number) / "model.xml", target)


def append(path: Path, rows: list[Row]) -> None:
    """Write the rows of one search at once; seconds are those of all of it, the budget is relative to the original's latency."""
    known = [pd.read_csv(path)] if path.is_file() else []
    pd.concat([*known, pd.DataFrame(rows, columns=COLUMNS)]).to_csv(path, index=False)


def searched(task: Task, config: SearchConfig, way: str) -> list[Row]:
    """The front of a search, and what everybody has without one."""
    tuning = config.fine_tuning.model_copy(update={"mode": way})
    start = time.monotonic()
    asked = config.model_copy(update={"fine_tuning": tuning})
    result = run_search(task, asked, resume=Path(config.out, "run.json").is_file(), watcher=Printing())
    seconds = time.monotonic() - start
    front = set(result.front["trial"])
    kept = [r for r in result.records if r.number in front or r.source in (ORIGINAL, INT8)]
    whole = {
        "budget": relative_budget(result),
        "seconds": round(seconds, 1),
        "tuning": round(tuning_seconds(result), 1),
    }
    return [
        row(config, way, f"{r.source} {r.number}", r.latency.ratio, r.accuracy_valid, r.accuracy_test) | whole
        for r in kept
        if r.latency is not None
    ]


def relative_budget(result: Result) -> float:
    """The budget in latencies of the original."""
    return (result.budget_ms or np.inf) / float(result.run["reference_ms"])


def tuning_seconds(result: Result) -> float:
    """Seconds in which something was trained, the baselines aside."""
    return shared_seconds(result) + sum(map(own_seconds, result.records))


def shared_seconds(result: Result) -> float:
    """Seconds of the shared training, if there was one."""
    is_shared = result.folder.file(STATE).is_file()
    return SharedState.model_validate(result.folder.read_json(STATE)).seconds if is_shared else 0.0


def own_seconds(record: TrialRecord) -> float:
    """Seconds in which a model was trained; none of a baseline."""
    return 0.0 if record.is_baseline else record.seconds.get(Stage.FINE_TUNE, 0.0)


def grid(task: Task, config: SearchConfig) -> list[Row]:
    """One model for each ratio, each trained for as many epochs as its share of the time that is left allows."""
    end = time.monotonic() + (config.time_limit_s or np.inf)
    found: list[Row] = []
    with opened(task, config.model_copy(update={"isolate": False})) as (bench, space, _):
        ratios = {uniform_policy(bench.structure, ratio, space.steps): ratio for ratio in reversed(RATIOS)}
        policies = sorted(ratios, key=lambda policy: ratios[policy])
        _, epoch, besides = trained(bench, policies[0], config.seed, 1)
        for policy in policies:
            share = (end - time.monotonic()) / (len(policies) - len(found))
            epochs = max(1, int((share - besides) / epoch))
            one, epoch, besides = trained(bench, policy, config.seed, epochs)
            print(f"  ratio {ratios[policy]}: {epochs} epochs", flush=True)
            scores = one["latency"], one["accuracy_valid"], one["accuracy_test"]
            found.append(row(config, "grid", f"ratio {ratios[policy]}, {epochs} epochs", *scores))
    seconds = (config.time_limit_s or np.inf) + time.monotonic() - end
    return [one | {"seconds": round(seconds, 1)} for one in found]


def trained(bench: Workbench, policy: Policy, seed: int, epochs: int) -> tuple[Row, float, float]:
    """What was measured of a model, the seconds of one of its epochs, and those of all else."""
    start = time.monotonic()
    bench.config = with_epochs(bench.config, epochs)
    one = Tuned(bench).row(policy, seed)
    seconds = time.monotonic() - start
    tuning = seconds * one["tune_seconds"] / one["total_seconds"]
    return one, tuning / epochs, seconds - tuning


def with_epochs(config: Config, epochs: int) -> Config:
    """The same, with another length of fine-tuning."""
    return config.model_copy(update={"fine_tuning": config.fine_tuning.model_copy(update={"epochs": epochs})})


def row(config: SearchConfig, way: str, model: str, latency: float, valid: float | None, test: float | None) -> Row:
    """A model; the latency is relative to the original's."""
    figures = {"latency": round(latency, 5), "accuracy_valid": valid, "accuracy_test": test}
    return {"way": way, "seed": config.seed, "limit": limit_of(config), "model": model, **figures, "host": host()}


def report(models: pd.DataFrame, faster: float, search: str) -> int:
    """Print the comparison; 1 if a bound is broken."""
    original = original_of(models)
    budget = float(models["budget"].mean())
    fronts = {way: {int(seed): one for seed, one in found.groupby("seed")} for way, found in models.groupby("way")}
    volumes = {way: {seed: volume(one, budget, original) for seed, one in found.items()} for way, found in fronts.items()}
    for way, found in volumes.items():
        of_way = models[models["way"] == way].groupby("seed")[["seconds", "tuning"]].first()
        print(f"{way:8} hypervolume {'  '.join(f'{value:.4f}' for value in found.values())}")
        print(of_way.T.to_string())
    broken = check_volumes(volumes, search) if search in volumes else [f"no searches of the mode {search}"]
    broken += check_latencies({way: list(found.values()) for way, found in fronts.items()}, original, faster, search)
    print(*broken, sep="\n")
    return int(bool(broken))


def original_of(models: pd.DataFrame) -> float:
    """The original's accuracy."""
    return float(models.loc[is_original(models), "accuracy_test"].mean())


def is_original(models: pd.DataFrame) -> pd.Series:
    """The rows of the original model."""
    return models["model"].str.startswith(ORIGINAL)


def volume(front: pd.DataFrame, budget: float, original: float) -> float:
    """Hypervolume on test data, in points of accuracy times the original's latency."""
    return 100 * hypervolume(front["latency"].to_numpy(), front["accuracy_test"].to_numpy(), budget, original - WORST_DROP)


def check_volumes(volumes: dict[str, dict[int, float]], search: str) -> list[str]:
    """The search has no less than the other modes with any seed, and more with most of them."""
    broken = []
    for other in sorted(set(MODES) & volumes.keys() - {search}):
        seeds = volumes[search].keys() & volumes[other].keys()
        less = sum(volumes[search][seed] < volumes[other][seed] for seed in seeds)
        more = sum(volumes[search][seed] > volumes[other][seed] for seed in seeds)
        if less or 2 * more <= len(seeds):
            broken.append(f"{search} has less hypervolume than {other} in {less} of {len(seeds)}, more in {more}")
    return broken


def check_latencies(fronts: dict[str, list[pd.DataFrame]], original: float, faster: float, search: str) -> list[str]:
    """Where there is a grid, the search's models are faster than its at two of the drops, and slower at none."""
    ratios = []
    for drop in DROPS:
        found = {way: latency_at(original - drop, way, of_way) for way, of_way in fronts.items()}
        words = ", ".join(f"{way} {value:.4f}" for way, value in found.items())
        print(f"at the original's accuracy less {100 * drop:g} points: {words}")
        if {search, "grid"} <= set(found):
            ratios.append(found["grid"] / found[search] if np.isfinite(found[search]) else 0.0)
            print(f"  {ratios[-1]:.2f}x as fast as the grid")
    if not ratios:
        return []
    reached = sum(ratio >= faster for ratio in ratios)
    broken = [f"{faster}x as fast at {reached} drops"] if reached < 2 else []
    return broken + ([f"slower than the grid: {min(ratios):.2f}x"] if min(ratios) < 1 / TIE else [])


def latency_at(least: float, way: str, fronts: list[pd.DataFrame]) -> float:
    """The median over the seeds of the latency at an accuracy."""
    latency = interpolated if way == "grid" else fastest
    return float(np.median([latency(one, least) for one in fronts]))


def fastest(front: pd.DataFrame, least: float) -> float:
    """The lowest latency at which a model is at least so accurate; infinity where none is."""
    return min(front.loc[front["accuracy_test"] >= least, "latency"], default=np.inf)


def interpolated(models: pd.DataFrame, least: float) -> float:
    """The latency at which the line through the front of a grid reaches an accuracy; infinity where it does not."""
    ordered = models.sort_values("latency")
    front = ordered[ordered["accuracy_test"] > ordered["accuracy_test"].cummax().shift(fill_value=-np.inf)]
    return float(np.interp(least, front["accuracy_test"], front["latency"], right=np.inf))


def draw(models: pd.DataFrame, name: str, path: Path) -> None:
    """Every model of every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for way, mark in zip(WAYS, "dosx", strict=True):
        found = models[models["way"] == way]
        if len(found):
            axes.plot(found["latency"], found["accuracy_test"], mark, label=way, alpha=0.7)
    budget, original = float(models["budget"].mean()), original_of(models)
    axes.axvline(budget, ls="--", lw=1, color="grey", label="budget")
    axes.set(xlabel="latency relative to the original", ylabel="accuracy on test data", title=name)
    axes.set(xlim=(None, 1.05 * budget), ylim=(original - 1.2 * WORST_DROP, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--time", default="8m", help="of each search and grid")
    limit.add_argument("--trials", type=int, help="of each search")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs/live")
    parser.add_argument("--faster", type=float, default=1.15)
    parser.add_argument("--search", choices=MODES, default="auto", help="the mode that is held against the others and the grid")
    asked = parser.parse_args()
    if asked.trials is not None and asked.trials < 1:
        parser.error("at least one trial")
    if asked.trials and "grid" in asked.ways:
        parser.error("the grid needs a limit in time: --ways shared each")
    limits = {"max_time": None if asked.trials else asked.time, "max_trials": asked.trials}
    sys.exit(main(asked.name, limits, asked.seeds, asked.ways, asked.out, asked.faster, asked.search))
