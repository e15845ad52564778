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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compare_live import MODES, ROOT, WORST_DROP
from replay import hypervolume

from autocompress.baselines import ORIGINAL
from autocompress.record import Stage, TrialRecord
from autocompress.result import Result
from autocompress.shared import STATE, SharedState


@dataclass
class Spent:
    """What a search has found, in the order in which it has found it.

    Attributes:
        result: the search.
        shared: seconds of the shared training, before any trial.
    """

    result: Result
    shared: float

    @classmethod
    def read(cls, path: Path) -> Spent:
        """A run folder."""
        result = Result(path)
        has_shared = result.folder.file(STATE).is_file()
        return cls(result, SharedState.model_validate(result.folder.read_json(STATE)).seconds if has_shared else 0.0)

    @property
    def seconds(self) -> float:
        """All in which something was trained, the baselines aside."""
        return self.shared + sum(map(seconds_of, self.result.records))

    def hypervolume(self, within: float = np.inf) -> float:
        """Of what was found within some seconds, in points of accuracy times the original's latency."""
        found = [r for r in self._found(within) if r.latency is not None and r.accuracy_valid is not None]
        original = next(r.accuracy_valid or 0.0 for r in found if r.source == ORIGINAL)
        latencies = np.array([r.latency.ratio for r in found if r.latency is not None])
        scores = np.array([r.accuracy_valid for r in found], dtype=float)
        budget = (self.result.budget_ms or np.inf) / self.result.run["reference_ms"]
        return 100 * float(hypervolume(latencies, scores, budget, original - WORST_DROP))

    def _found(self, within: float) -> list[TrialRecord]:
        found, spent = [], self.shared
        for record in sorted(self.result.records, key=lambda record: record.number):
            spent += seconds_of(record)
            if spent > within:
                break
            found.append(record)
        return found


def seconds_of(record: TrialRecord) -> float:
    """In which a candidate was trained."""
    return 0.0 if record.is_baseline else record.seconds.get(Stage.FINE_TUNE, 0.0)


def main(name: str, trials: int, seeds: int, ways: list[str], out: Path, search: str) -> int:
    """Print the comparison; 1 if the bound is broken."""
    less = []
    for seed in range(seeds):
        searches = {way: Spent.read(out / f"{name}-{way}-{seed}-{trials}-trials") for way in ways}
        least = min(one.seconds for one in searches.values())
        cut = {way: one.hypervolume(least) for way, one in searches.items()}
        for way, one in searches.items():
            whole = f"{one.hypervolume():.3f} in {one.seconds:.0f} s"
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
