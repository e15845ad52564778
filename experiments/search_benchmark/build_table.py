"""Score and measure every policy of a space once.

    python experiments/search_benchmark/build_table.py [tuned | inherited] [--minutes 60] [--out FILE] [--backwards]

The network is the ResNet-8 of `mnist_resnet8`, every layer in 8 bits. Tuned: three ratios for each of six groups, every policy
fine-tuned, those near the front with three seeds, and scored as IR; table.csv. Inherited: four ratios each, every policy inherits
from one shared training and is scored as IR; inherited.csv, whose seconds are those of inheriting.

A row is written as soon as it is known, in a shuffled order, so the builder can be cut off anywhere and goes on where it stopped;
a part of the table is a random sample of the whole. A second builder may begin at the other end, once the first one has begun.
Beside the table stands a .json: the space, the budget, the sensitivities and what they took. Best run on a machine that does
nothing else: latencies are measured as it goes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from rows import Heirs, Printing, Rows, Tuned, host

from autocompress.config import FineTuning, SearchConfig
from autocompress.foresight import Foresight
from autocompress.front import non_dominated
from autocompress.setup import open_space
from autocompress.space import uniform_policy
from autocompress.target.cache import VARIABLE
from autocompress.task import load_task

HERE = Path(__file__).resolve().parent
TASK = HERE.parent / "mnist_resnet8" / "task.py"
KEPT = HERE.parents[1] / "runs" / "search_benchmark"
"""Shared trainings."""
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
EPOCHS = {"tuned": 1, "inherited": 3}
"""Of a policy's own training, and what a shared one takes its length from."""
BUDGET_OF_INT8, WORST_DROP = 0.7, 0.05
NEAR = 0.003
"""Accuracy by which a policy may miss the front and still be tuned with every seed: twice what a repeated training differs by."""
FIGURES = ("seed", "accuracy_valid", "accuracy_test", "latency", "latency_low", "latency_high", "latency_predicted", "size_bytes")
COSTS = ("tune_seconds", "total_seconds", "host")


def main() -> None:
    """Go through the policies until all are known or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=SPACES, default="tuned")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--backwards", action="store_true", help="begin at the other end, beside another builder of the table")
    options = parser.parse_args()
    out: Path = options.out or HERE / ("table.csv" if options.kind == "tuned" else "inherited.csv")
    end = time.monotonic() + 60 * options.minutes
    task = load_task(TASK)
    config = SearchConfig(space=SPACES[options.kind], target={"threads": 1}, fine_tuning=FineTuning(epochs=EPOCHS[options.kind]))
    bench, space, fingerprint = open_space(task, config, Printing())
    foresight = Foresight(bench, space, fingerprint, Printing())
    names = [decision.name for decision in space.decisions]
    points = list(product(*(range(len(d.choices)) for d in space.decisions)))
    predicted = foresight.costs.latency_ms(np.array(points)) / bench.reference_ms
    latency_of = dict(zip(points, predicted.tolist(), strict=True))
    made: Rows = Tuned(bench) if options.kind == "tuned" else Heirs(bench, space, KEPT / out.stem)
    describe(foresight, made, out.with_suffix(".json"))
    order = [points[i] for i in np.random.default_rng(0).permutation(len(points))]
    print(f"{len(points)} policies of {len(names)} decisions", flush=True)
    for stage in (lambda: [(point, made.seeds[0]) for point in order], lambda: product(near_front(out, names), made.seeds)):
        wanted = list(stage())[:: -1 if options.backwards else 1]
        while (found := next_of(wanted, out, names)) and time.monotonic() < end:
            point, seed = found
            row = made.row(space.policy(dict(zip(names, point, strict=True))), seed)
            append(out, names, {**dict(zip(names, point, strict=True)), **row, "latency_predicted": latency_of[point]})


def describe(foresight: Foresight, made: Rows, path: Path) -> None:
    """What a replay has to know beside the table."""
    if path.is_file():
        return
    bench, space = foresight.bench, foresight.space
    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, {VARIABLE: empty}):  # what is remembered costs nothing
        start = time.process_time()
        probed = foresight.sensitivities()
        seconds = time.process_time() - start
    int8 = bench.untrained_latency(bench.candidate(uniform_policy(bench.structure)), half_width=0.01).ratio
    about = {
        "decisions": [[d.kind, d.subject, list(d.choices)] for d in space.decisions],
        "sensitivities": probed.damages,
        "probing_seconds": seconds,
        "budget": BUDGET_OF_INT8 * int8,
        "worst_drop": WORST_DROP,
        **made.facts(),
        "host": host(),
    }
    path.write_text(json.dumps(about, indent=1))


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
    """Policies within the budget and the drop that could be on the front if they were a little more accurate."""
    about = json.loads(path.with_suffix(".json").read_text())
    table = pd.read_csv(path).groupby(names, as_index=False)[["latency", "accuracy_valid"]].mean()
    of_interest = table["accuracy_valid"] >= about["original"] - about["worst_drop"]
    table = table[of_interest & (table["latency"] <= about["budget"])]
    figures = np.stack([table["latency"], -table["accuracy_valid"]], axis=1)
    kept = []
    for i in range(len(figures)):
        rivals = figures.copy()
        rivals[i, 1] -= NEAR
        if non_dominated(rivals)[i]:
            kept.append(tuple(map(int, table[names].iloc[i])))
    return kept


if __name__ == "__main__":
    main()
