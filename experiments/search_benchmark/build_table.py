"""Score and measure every policy of a space once.

    python experiments/search_benchmark/build_table.py [tuned | inherited] [--minutes 60] [--out FILE]

The network is the ResNet-8 of `mnist_resnet8`, every layer in 8 bits. Tuned: three ratios for each of six groups, every policy
fine-tuned, those near the front with three seeds, and scored as IR; table.csv. Inherited: four ratios each, every policy inherits
from one shared training and is scored in simulation; inherited.csv, whose seconds are those of inheriting.

A row is written as soon as it is known, in a shuffled order, so the builder can be cut off anywhere and goes on where it stopped;
a part of the table is a random sample of the whole. Beside it stands a .json: the space, the budget, the sensitivities and what
they took. Best run on a machine that does nothing else: latencies are measured as it goes.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autocompress.config import FineTuning, SearchConfig
from autocompress.foresight import Foresight
from autocompress.frameworks.base import TuneSettings
from autocompress.front import non_dominated
from autocompress.policy import Policy
from autocompress.record import Latency
from autocompress.run_folder import RunFolder
from autocompress.setup import open_space
from autocompress.shared import CYCLE, PROBE_SAMPLES, PolicySampler, Screen, SharedTuning
from autocompress.space import SearchSpace, uniform_policy
from autocompress.target import precision
from autocompress.target.evaluate import evaluate
from autocompress.target.meter import measure
from autocompress.target.runtime import compile_for_scoring, compile_model
from autocompress.task import Task, load_task
from autocompress.trial import Workbench
from autocompress.watch import Watcher

HERE = Path(__file__).resolve().parent
TASK = HERE.parent / "mnist_resnet8" / "task.py"
KEPT = HERE.parents[1] / "runs" / "search_benchmark"
"""The shared training."""
SPACES: dict[str, dict[str, Any]] = {
    "tuned": {
        "description": "Channels of a ResNet-8, every layer in INT8.",
        "channel_step": 8,
        "pruning": [{"ratios": [0, 0.5, 0.75]}, {"groups": "block1.conv1", "ratios": [0, 0.5, 1]}],
        "precision": [{"weights": [8]}],
    },
    "inherited": {
        "description": "Channels of a ResNet-8 in finer steps, every layer in INT8.",
        "channel_step": 8,
        "pruning": [{"ratios": [0, 0.25, 0.5, 0.75]}],
        "precision": [{"weights": [8]}],
    },
}
EPOCHS, SEEDS = {"tuned": 1, "inherited": 3}, {"tuned": (0, 1, 2), "inherited": (0,)}
BUDGET_OF_INT8, WORST_DROP = 0.7, 0.05
NEAR = 0.01
"""Accuracy by which a policy may miss the front and still be tuned with every seed."""
FIGURES = ("seed", "accuracy_valid", "accuracy_test", "latency", "latency_low", "latency_high", "latency_predicted", "size_bytes")
COSTS = ("tune_seconds", "total_seconds", "host")


class Printing(Watcher):
    """Lines as they come."""

    def say(self, line: str) -> None:
        """Print it."""
        print(f"  {line}", flush=True)


def main() -> None:
    """Go through the policies until all are known or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=SPACES, default="tuned")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out: Path = options.out or HERE / ("table.csv" if options.kind == "tuned" else "inherited.csv")
    end = time.monotonic() + 60 * options.minutes
    task = load_task(TASK)
    config = SearchConfig(space=SPACES[options.kind], target={"threads": 1}, fine_tuning=FineTuning(epochs=EPOCHS[options.kind]))
    bench, space, fingerprint = open_space(task, config, Printing())
    foresight = Foresight(bench, space, fingerprint, Printing())
    names = [decision.name for decision in space.decisions]
    points = list(itertools.product(*(range(len(d.choices)) for d in space.decisions)))
    predicted = foresight.costs.latency_ms(np.array(points)) / bench.reference_ms
    latency_of = dict(zip(points, predicted.tolist(), strict=True))
    describe(foresight, EPOCHS[options.kind], out.with_suffix(".json"))
    make = partial(tuned, task, bench) if options.kind == "tuned" else heirs(task, bench, space)
    first, *others = SEEDS[options.kind]
    order = [points[i] for i in np.random.default_rng(0).permutation(len(points))]
    wanted = [(point, first) for point in order]
    print(f"{len(points)} policies of {len(names)} decisions", flush=True)
    while (found := next_of(wanted, out, names)) and time.monotonic() < end:
        point, seed = found
        row = make(space.policy(dict(zip(names, point, strict=True))), seed)
        append(out, names, {**dict(zip(names, point, strict=True)), **row, "latency_predicted": latency_of[point]})
        if others and not next_of(wanted, out, names):
            wanted = [(point, seed) for point in near_front(out, names) for seed in (first, *others)]


def describe(foresight: Foresight, epochs: int, path: Path) -> None:
    """What a replay has to know beside the table."""
    if path.is_file():
        return
    bench, space = foresight.bench, foresight.space
    start = time.process_time()
    probed = foresight.sensitivities()
    seconds = time.process_time() - start
    original = evaluate(bench.reference, bench.task.splits["test"], bench.task.scorer)
    int8 = bench.untrained_latency(bench.candidate(uniform_policy(bench.structure)), half_width=0.01).ratio
    about = {
        "decisions": [[d.kind, d.subject, list(d.choices)] for d in space.decisions],
        "sensitivities": probed.damages,
        "probing_seconds": seconds,
        "original": original,
        "budget": BUDGET_OF_INT8 * int8,
        "worst_drop": WORST_DROP,
        "epochs": epochs,
        "host": host(),
    }
    path.write_text(json.dumps(about, indent=1))


def tuned(task: Task, bench: Workbench, policy: Policy, seed: int) -> dict[str, Any]:
    """Fine-tune a policy and measure all of it; CPU seconds."""
    start = time.process_time()
    candidate = bench.candidate(policy)
    settings: TuneSettings = replace(bench.tune_settings, seed=seed)
    before = time.process_time()
    bench.framework.fine_tune(task, candidate, settings, lambda fraction: None)
    tune_seconds = time.process_time() - before
    model, _ = bench.deploy(candidate, bench.target, trained=True, samples=bench.samples)
    latency: Latency = measure([compile_model(model, bench.target)], bench.reference, bench.reference_ms)[0]
    scoring = compile_for_scoring(model, bench.target)
    scores = {f"accuracy_{split}": evaluate(scoring, task.splits[split], task.scorer) for split in ("valid", "test")}
    with tempfile.TemporaryDirectory() as folder:
        precision.save(model, Path(folder) / "model.xml")
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    costs = _costs(tune_seconds, time.process_time() - start)
    return {"seed": seed, **scores, **_latency(latency), "size_bytes": size, **costs}


def heirs(task: Task, bench: Workbench, space: SearchSpace) -> Callable[[Policy, int], dict[str, Any]]:
    """Makes rows of policies that inherit from one shared training, which is kept and taken up again."""
    folder = RunFolder(KEPT)
    folder.path.mkdir(parents=True, exist_ok=True)
    training = bench.framework.share(task, bench.config.criterion, bench.tune_settings)
    sampler = PolicySampler(space, lambda policy: bench.structure.macs_share(policy.pruning), None, 0)
    probes = Screen(bench.framework, task, PROBE_SAMPLES)
    SharedTuning(probes, training, sampler, CYCLE * bench.tune_settings.epochs, folder, Printing(), most_cycles=1).run()
    screens = {split: Screen(bench.framework, task, split=split) for split in ("valid", "test")}

    def row(policy: Policy, seed: int) -> dict[str, Any]:
        start = time.process_time()
        candidate = training.candidate(policy)
        bench.framework.reestimate(task, candidate)
        valid = screens["valid"].score(candidate)
        seconds = time.process_time() - start
        figures = {"accuracy_valid": valid, "accuracy_test": screens["test"].score(candidate)}
        latency = bench.untrained_latency(candidate, half_width=0.01)
        return {"seed": seed, **figures, **_latency(latency), **_costs(seconds, time.process_time() - start)}

    return row


def _latency(latency: Latency) -> dict[str, float]:
    values = {"latency": latency.ratio, "latency_low": latency.ratio_low, "latency_high": latency.ratio_high}
    return {key: round(value, 5) for key, value in values.items()}


def _costs(tune_seconds: float, total_seconds: float) -> dict[str, Any]:
    return {"tune_seconds": round(tune_seconds, 3), "total_seconds": round(total_seconds, 3), "host": host()}


def append(path: Path, names: list[str], row: dict[str, Any]) -> None:
    """Write one row whole."""
    columns = [*names, *FIGURES, *COSTS]
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


Wanted = tuple[tuple[int, ...], int]
"""A point and a seed."""


def next_of(wanted: list[Wanted], path: Path, names: list[str]) -> Wanted | None:
    """The first that is not in the table."""
    done = set()
    if path.is_file():
        table = pd.read_csv(path)
        done = set(zip(map(tuple, table[names].to_numpy().tolist()), table["seed"], strict=True))
    return next((one for one in wanted if one not in done), None)


def near_front(path: Path, names: list[str]) -> list[tuple[int, ...]]:
    """Policies that could be on the front if they were a little more accurate."""
    table = pd.read_csv(path).groupby(names, as_index=False)[["latency", "accuracy_valid"]].mean()
    figures = np.stack([table["latency"], -table["accuracy_valid"]], axis=1)
    kept = []
    for i in range(len(figures)):
        rivals = figures.copy()
        rivals[i, 1] -= NEAR
        if non_dominated(rivals)[i]:
            kept.append(tuple(map(int, table[names].iloc[i])))
    return kept


def host() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), sys.platform)


if __name__ == "__main__":
    main()
