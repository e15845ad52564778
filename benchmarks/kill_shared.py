"""Kill a search with SIGKILL in its shared training, resume it, and compare with a search that ran through.

    python benchmarks/kill_shared.py experiments/mnist_resnet8/task.py runs/kill_shared --kills 3 --epochs 1

Both searches end where their shared training does. Ends with exit code 1 if what random policies inherit from both differs on
average by more than the noise, or if a resumed training did not go on from the last epoch that had ended.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from autocompress.frameworks.base import TuneSettings, framework_of
from autocompress.shared import PROBE_SAMPLES, Screen
from autocompress.space import build_space, load_space_spec
from autocompress.task import Task, load_task

STATE = "shared/progress.json"
LOOK_S = 0.05
POLICIES = 8
SPACE = {"pruning": [{"ratios": [0, 0.25, 0.5, 0.75]}], "precision": [{"weights": [8]}]}


def state(run: Path) -> dict[str, Any]:
    """How far the shared training is; empty before its first epoch has ended."""
    path = run / STATE
    return json.loads(path.read_text()) if path.is_file() else {}


def steps_done(found: dict[str, Any]) -> tuple[int, int]:
    """Finished cycles, and finished epochs of the present one."""
    return found.get("cycle", 0), found.get("epoch", 0)


def search(options: argparse.Namespace, run: Path, delay: float | None) -> None:
    """Search until the shared training is done, or for some seconds after its next epoch has ended."""
    command = [sys.executable, "-m", "autocompress", "search", options.task, "--out", str(run), "--resume"]
    command += ["--fine-tuning", "shared", "--trials", "16", "--epochs", str(options.epochs), "--budget", "70% of int8"]
    before = steps_done(state(run))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not state(run).get("finished") and (delay is None or steps_done(state(run)) == before):
        time.sleep(LOOK_S)
    if process.poll() is not None:
        raise SystemExit(f"The search ended by itself with exit code {process.returncode}")
    time.sleep(delay or 0)
    process.kill()
    process.wait()


def inherited(task: Task, run: Path, epochs: int) -> list[float]:
    """The accuracies that random policies inherit from a shared training, with no training of their own."""
    framework, found = framework_of(task.model), state(run)
    training = framework.share(task, "l2", TuneSettings(epochs, task.learning_rate, task.distillation, 0))
    training.begin(found["cycle_epochs"])
    training.load(run / found["checkpoint"])
    space, generator = build_space(load_space_spec(SPACE), framework.inspect(task)), np.random.default_rng(0)
    screen, scores = Screen(framework, task, PROBE_SAMPLES), []
    for _ in range(POLICIES):
        policy = space.policy({d.name: int(generator.integers(len(d.choices))) for d in space.decisions})
        candidate = training.candidate(policy)
        framework.reestimate(task, candidate)
        scores.append(screen.score(candidate))
    return scores


def noise(scores: list[float]) -> float:
    """Two standard errors of the difference of two such means.

    Even two runs without a kill differ: each measures its own latencies, by which policies are drawn. And a loader with random
    state of its own, as the experiments have, begins anew in a resumed process.
    """
    share = mean(scores)
    return float(2 * (2 * share * (1 - share) / (len(scores) * PROBE_SAMPLES)) ** 0.5)


def main() -> int:
    """Both searches; 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("run", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    killed, whole = options.run / "killed", options.run / "whole"
    shutil.rmtree(options.run, ignore_errors=True)
    moments, faults = random.Random(options.seed), 0
    for kill in range(options.kills):
        before = steps_done(state(killed))
        search(options, killed, moments.uniform(0.1, 2.0))
        after = steps_done(state(killed))
        faults += after <= before
        print(f"kill {kill + 1}: (cycles, epochs) {before} before, {after} after", flush=True)
    for run in (killed, whole):
        search(options, run, None)
    task = load_task(Path(options.task))
    one, other = (inherited(task, run, options.epochs) for run in (killed, whole))
    difference, bound = mean(one) - mean(other), noise(other)
    print(f"{POLICIES} random policies inherit {mean(one):.4f} and {mean(other):.4f} on average, noise {bound:.4f}")
    print(f"seconds of the finished epochs and probes: {state(killed)['seconds']:.0f} and {state(whole)['seconds']:.0f}")
    return int(faults > 0 or abs(difference) > bound)


if __name__ == "__main__":
    sys.exit(main())
