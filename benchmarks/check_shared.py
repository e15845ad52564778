"""What shared fine-tuning wins over tuning every candidate by itself.

    python benchmarks/check_shared.py [NAME ...] [--space deep] [--policies 40]

NAME is an experiment; by default three in PyTorch and four in Keras. Random policies of a space, as many as a search tries by
default, are tuned one by one from the original, twice with different seeds, and inherit from one shared training: without any
training of their own, and with one epoch.
Accuracies are those of the simulation on validation and test data together: by one of them alone, chance moves an accuracy about
as far as heirs differ. Seconds are CPU seconds of this process. The spaces: `deep` (8-bit weights, up to 7/8 of the channels may
go), `channels` (up to 3/4: policies that hardly differ in the end), `branches` (whole ones may go too), `bits84` and `bits842` (a
width for each layer).

With the stage `long` the policies are also tuned for 20 epochs each, as the models of a front are in the end, and both ways are
ranked beside that: what a search wants to know is the accuracy of the model that it gives back.

Every result is kept in `runs/check_shared/` as soon as it is there, so that a run can be cut off anywhere and started again; a
row for each policy is written to `NAME-SPACE.csv` beside it. Ends with exit code 1 if a bound is broken: inherited at least as
accurate on average as tuned, in at most 1/3 of the seconds (the mean of both seeds); with one epoch at least 0.3 points better in
at most 0.6 of them; ranks as alike as those of two seeds, less 0.15.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # CPU seconds of threads that wait for each other tell nothing
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
from scipy.stats import spearmanr

import autocompress as ac
from autocompress.frameworks.base import Candidate, SharedTraining, TuneSettings, framework_of
from autocompress.run_folder import RunFolder
from autocompress.shared import PROBE_SAMPLES, PolicySampler, Screen, SharedTuning, cycle_within, cycles_for
from autocompress.space import SearchSpace, build_space, load_space_spec
from autocompress.task import load_task

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments" / "search_benchmark"))
from rows import Printing

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = (
    "mnist_resnet8",
    "mnist_mobilenet",
    "words_transformer",
    "mnist_keras_resnet8",
    "mnist_keras_mobilenet",
    "words_keras_convolution",
    "words_keras_transformer",
)
RATIOS: list[float] = [0, 0.25, 0.5, 0.75]
SPACES = {
    name: {"pruning": [{"ratios": ratios}], "precision": [{"weights": weights}]}
    for name, (ratios, weights) in {
        "channels": (RATIOS, [8]),
        "deep": ([*RATIOS, 0.875], [8]),
        "branches": ([*RATIOS, 1], [8]),
        "bits84": (RATIOS, [8, 4]),
        "bits842": (RATIOS, [8, 4, 2]),
    }.items()
}
WAYS = ("each", "again", "inherited", "short")
STAGES = ("shared", *WAYS)
LONG = "long"
"""A stage on request."""
SCORES, SCORED_ON = "scored_on", ["valid", "test"]
"""What is known of other data is not gone on with."""
TOGETHER = 8
"""Policies of which each way is taken before the next."""
EACH_EPOCHS, SHORT_EPOCHS, LONG_EPOCHS = 3, 1, 20
FEWEST_RANKS = 3
"""Policies that are ranked."""
SECONDS_SHARE, SHORT_SECONDS_SHARE, SHORT_GAIN, RANK_SLACK = 1 / 3, 0.6, 0.003, 0.15


class Comparison:
    """One experiment in one space; what is known is in `results` and on disk."""

    def __init__(self, name: str, space: str, policies: int, out: Path) -> None:
        self.folder = out / f"{name}-{space}"
        self.path = out / f"{name}-{space}.json"
        known = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.results: dict[str, Any] = {SCORES: SCORED_ON} | (known if known.get(SCORES) == SCORED_ON else {})
        self.task = load_task(ROOT / f"experiments/{name}/task.py")
        self.framework = framework_of(self.task.model)
        self.space = build_space(load_space_spec(SPACES[space]), self.framework.inspect(self.task))
        self.policies = [self._random(self.space, np.random.default_rng((7, i))) for i in range(policies)]
        self.screens = [Screen(self.framework, self.task, split=split) for split in SCORED_ON]
        self.samples = [sum(batch.size for batch in screen.batches) for screen in self.screens]

    def run(self, stages: Sequence[str]) -> None:
        """What is not known yet of some stages, a few policies after the others: seconds of another hour cannot be compared.

        The heirs of a few follow each other, as they do in a search. TensorFlow prepares every compiled step anew after each
        training that sets its seed.
        """
        inherits = {"shared", "inherited", "short"} & set(stages)
        ways = self._ways(self._shared() if inherits else None)
        for start, (key, make) in product(range(0, len(self.policies), TOGETHER), ways.items()):
            known = len(self.results.get(key, []))
            for policy in self.policies[max(start, known) : start + TOGETHER] if key in stages else ():
                self._one(key, partial(make, policy))

    def _ways(self, training: SharedTraining | None) -> dict[str, Callable[[ac.Policy], Candidate]]:
        """How a policy becomes a candidate."""
        ways: dict[str, Callable[[ac.Policy], Candidate]] = {
            key: partial(self._tuned_alone, epochs, seed)
            for key, epochs, seed in (("each", EACH_EPOCHS, 0), ("again", EACH_EPOCHS, 1), (LONG, LONG_EPOCHS, 2))
        }
        if training is not None:
            ways["inherited"] = partial(self._inherited, training)
            ways["short"] = partial(self._short, training)
        return ways

    def _shared(self) -> SharedTraining:
        """The shared training; one that was cut off begins anew, so that its seconds are known."""
        if "shared" not in self.results:
            shutil.rmtree(self.folder, ignore_errors=True)
        folder = RunFolder(self.folder)
        folder.path.mkdir(parents=True, exist_ok=True)
        settings = self._settings(EACH_EPOCHS, 0)
        training = self.framework.share(self.task, "l2", settings)
        structure = self.framework.inspect(self.task)
        sampler = PolicySampler(self.space, lambda policy: structure.macs_share(policy.pruning), None, 0)
        start = time.process_time()
        candidates = len(self.policies)
        epochs, cycles = cycle_within(candidates, None, None) * EACH_EPOCHS, cycles_for(candidates)
        probes = Screen(self.framework, self.task, PROBE_SAMPLES)
        state = SharedTuning(probes, training, sampler, epochs, folder, Printing(), cycles).run()
        if "shared" not in self.results:
            self._keep("shared", {"seconds": time.process_time() - start} | state.model_dump(include={"cycle", "finished"}))
        return training

    def _one(self, key: str, make: Callable[[], Candidate]) -> None:
        start = time.process_time()
        candidate = make()
        seconds = time.process_time() - start
        score = float(np.average([screen.score(candidate) for screen in self.screens], weights=self.samples))
        self._keep(key, [*self.results.get(key, []), {"score": score, "seconds": seconds}])
        print(f"  {key} {len(self.results[key])}: {score:.4f}, {seconds:.1f} s", flush=True)

    def _tuned_alone(self, epochs: int, seed: int, policy: ac.Policy) -> Candidate:
        candidate = self.framework.compress(self.task, policy, "l2")
        self.framework.fine_tune(self.task, candidate, self._settings(epochs, seed), lambda _: None)
        return candidate

    def _inherited(self, training: SharedTraining, policy: ac.Policy) -> Candidate:
        candidate = training.candidate(policy)
        self.framework.reestimate(self.task, candidate)
        return candidate

    def _short(self, training: SharedTraining, policy: ac.Policy) -> Candidate:
        candidate = training.candidate(policy)
        self.framework.fine_tune(self.task, candidate, self._settings(SHORT_EPOCHS, 0), lambda _: None, training)
        return candidate

    def _settings(self, epochs: int, seed: int) -> TuneSettings:
        return TuneSettings(epochs, self.task.learning_rate, self.task.distillation, seed)

    def _keep(self, key: str, value: Any) -> None:
        self.results[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.results, indent=1))

    @staticmethod
    def _random(space: SearchSpace, generator: np.random.Generator) -> ac.Policy:
        return space.policy({d.name: int(generator.integers(len(d.choices))) for d in space.decisions})

    def table(self) -> list[dict[str, Any]]:
        """A row for each way."""
        shared = self.results["shared"]["seconds"]
        rows = []
        for key, before in zip(WAYS, (0.0, 0.0, shared, shared), strict=True):
            scores, seconds = ([one[field] for one in self.results[key]] for field in ("score", "seconds"))
            alike = spearmanr(scores, [one["score"] for one in self.results["each"]]).statistic
            rows.append({"way": key, "mean": mean(scores), "seconds": before + sum(seconds), "spearman": alike})
        return rows

    def as_in_the_end(self) -> str:
        """How alike the ranks of each way are to those of a long training, over the policies that had one."""
        scores = {key: [one["score"] for one in self.results[key]] for key in (*WAYS, LONG)}
        tuned = scores.pop(LONG)
        alike = (f"{key} {spearmanr(found[: len(tuned)], tuned).statistic:.2f}" for key, found in scores.items())
        return f"ranks beside {LONG_EPOCHS} epochs each (mean {mean(tuned):.4f}, {len(tuned)} policies): {', '.join(alike)}"

    def broken(self) -> list[str]:
        """The bounds that are broken, in words."""
        each, again, inherited, short = self.table()
        alone = mean((each["seconds"], again["seconds"]))
        share, short_share = inherited["seconds"] / alone, short["seconds"] / alone
        found = {
            f"inherited {inherited['mean']:.4f} beside {each['mean']:.4f}": inherited["mean"] < each["mean"],
            f"in {share:.2f} of the seconds": share > SECONDS_SHARE,
            f"with an epoch {short['mean']:.4f} beside {each['mean']:.4f}": short["mean"] < each["mean"] + SHORT_GAIN,
            f"with an epoch in {short_share:.2f} of the seconds": short_share > SHORT_SECONDS_SHARE,
            f"ranks {inherited['spearman']:.2f}, of two seeds {again['spearman']:.2f}": inherited["spearman"]
            < again["spearman"] - RANK_SLACK,
        }
        return [words for words, is_broken in found.items() if is_broken]

    def write_csv(self) -> None:
        """A row for each policy; the last columns are empty where a policy had no long training."""
        keys = WAYS + ((LONG,) if LONG in self.results else ())
        with self.path.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["policy", *(f"{key}_{field}" for key in keys for field in ("score", "seconds"))])
            for i, policy in enumerate(self.policies):
                known = [self.results[key][i : i + 1] for key in keys]
                cells = [f"{one[0][field]:.4f}" if one else "" for one in known for field in ("score", "seconds")]
                writer.writerow([policy.to_json(), *cells])


def main(names: list[str], space: str, policies: int, stages: list[str], out: Path) -> int:
    """All comparisons; 1 if a bound is broken."""
    broken = []
    for name in names:
        print(f"{name}, {space}", flush=True)
        comparison = Comparison(name, space, policies, out)
        comparison.run(stages)
        if not set(STAGES) <= set(comparison.results):
            continue
        comparison.write_csv()
        for row in comparison.table():
            print(f"{row['way']:10} mean {row['mean']:.4f}  {row['seconds']:7.0f} s  ranks {row['spearman']:.2f}")
        if len(comparison.results.get(LONG, [])) >= FEWEST_RANKS:
            print(comparison.as_in_the_end())
        broken += [f"{name}: {words}" for words in comparison.broken()]
    print(*broken, sep="\n")
    return int(bool(broken))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(EXPERIMENTS))
    parser.add_argument("--space", choices=SPACES, default="deep")
    parser.add_argument("--policies", type=int, default=40)
    parser.add_argument("--stages", nargs="*", choices=(*STAGES, LONG), default=list(STAGES))
    parser.add_argument("--out", type=Path, default=ROOT / "runs/check_shared")
    arguments = parser.parse_args()
    sys.exit(main(arguments.names, arguments.space, arguments.policies, arguments.stages, arguments.out))
