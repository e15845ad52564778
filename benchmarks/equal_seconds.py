"""Searches of as many trials, held against each other after equal seconds of fine-tuning.

    python benchmarks/equal_seconds.py mnist_resnet8 [--trials 40] [--ways shared each] [--search shared] [--out runs/live]

Reads the run folders that `compare_live.py NAME --trials 40` has left in OUT. Of each seed every search is cut off where the one
that trained least was done: what its trials have cost until then, the shared training first, is no more than that. Prints the
seconds and the hypervolumes on validation data (only what a front holds in the end is scored on test data) between the models and
the corner (the budget, the original's accuracy less 5 points), before and after the cut. Ends with exit code 1 if the mode that
`--search` names has less than another one with any seed.
"""

from __future__ import annotations

import argparse
import sys
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
from compare_live import MODES, ROOT, WORST_DROP, own_seconds, relative_budget, shared_seconds, tuning_seconds
from replay import hypervolume

from autocompress.baselines import ORIGINAL
from autocompress.record import TrialRecord
from autocompress.result import Result


def volume_within(result: Result, seconds: float = np.inf) -> float:
    """The hypervolume of what a search had found when it had trained for some seconds."""
    found = [r for r in found_within(result, seconds) if r.latency is not None and r.accuracy_valid is not None]
    original = next(r.accuracy_valid or 0.0 for r in found if r.source == ORIGINAL)
    latencies = np.array([r.latency.ratio for r in found if r.latency is not None])
    scores = np.array([r.accuracy_valid for r in found], dtype=float)
    return 100 * float(hypervolume(latencies, scores, relative_budget(result), original - WORST_DROP))


def found_within(result: Result, seconds: float) -> list[TrialRecord]:
    """The trials of a search that had ended by then, the shared training before all of them."""
    records = sorted(result.records, key=lambda record: record.number)
    spent = accumulate(map(own_seconds, records), initial=shared_seconds(result))
    return [record for record, after in zip(records, islice(spent, 1, None), strict=True) if after <= seconds]


def main(name: str, trials: int, seeds: int, ways: list[str], out: Path, search: str) -> int:
    """Print the comparison; 1 if the bound is broken."""
    less = []
    for seed in range(seeds):
        searches = {way: Result(out / f"{name}-{way}-{seed}-{trials}-trials") for way in ways}
        seconds = {way: tuning_seconds(one) for way, one in searches.items()}
        least = min(seconds.values())
        cut = {way: volume_within(one, least) for way, one in searches.items()}
        for way, one in searches.items():
            whole = f"{volume_within(one):.3f} in {seconds[way]:.0f} s"
            print(f"seed {seed}, {way:6} hypervolume {whole}, {cut[way]:.3f} in the first {least:.0f} s")
        less += [seed for way in ways if cut[search] < cut[way]]
    if less:
        print(f"{search} has less with the seeds {sorted(set(less))}")
    return int(bool(less))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=MODES, default=["shared", "each"])
    parser.add_argument("--search", choices=MODES, default="shared")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/live")
    asked = parser.parse_args()
    if asked.search not in asked.ways:
        parser.error(f"--search {asked.search} is not among --ways")
    sys.exit(main(asked.name, asked.trials, asked.seeds, asked.ways, asked.out, asked.search))
