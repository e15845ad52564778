"""What a candidate costs that inherits its weights.

    python benchmarks/check_inheriting.py [NAME ...] [--policies 8]

NAME is an experiment, by default the ResNet-8 in PyTorch and in Keras. Random policies are run from the policy to the recorded
trial (made, gated, re-estimated, scored in simulation, exported, measured, scored as IR), and screened alone: made, re-estimated
and scored in simulation, beside forward passes of the same candidate over the same images. Medians of one thread's CPU seconds
in this process: a search runs Keras candidates in a worker, whose pipe is not counted here.

Ends with exit code 1 if a bound is broken: 4 seconds a trial, and 1.5 times the forward passes for screening.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # CPU seconds of threads that wait for each other tell nothing
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import numpy as np
from check_training import cpu_seconds

from autocompress.config import SearchConfig
from autocompress.frameworks.calibrating import CALIBRATION_BATCHES, for_batch_norms
from autocompress.policy import Policy
from autocompress.record import Plan, State
from autocompress.run_folder import RunFolder
from autocompress.setup import open_space
from autocompress.shared import PROBE_SAMPLES, Screen
from autocompress.task import load_task
from autocompress.trial import Inheritance, TrialRunner
from autocompress.watch import Watcher

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ("mnist_resnet8", "mnist_keras_resnet8")
SPACE = {"pruning": [{"ratios": [0, 0.25, 0.5, 0.75]}], "precision": [{"weights": [8]}]}
MOST_SECONDS, MOST_PASSES = 4.0, 1.5


def main(names: list[str], policies: int) -> int:
    """All experiments; 1 if a bound is broken."""
    broken = []
    for name in names:
        seconds, passes = costs(name, policies)
        print(f"{name}: a trial takes {seconds:.2f} s, at most {MOST_SECONDS}")
        print(f"{name}: screening takes {passes:.2f} forward passes, at most {MOST_PASSES}", flush=True)
        broken += [f"{name}: a trial takes {seconds:.2f} s"] if seconds > MOST_SECONDS else []
        broken += [f"{name}: screening takes {passes:.2f} forward passes"] if passes > MOST_PASSES else []
    print(*broken, sep="\n")
    return int(bool(broken))


def costs(name: str, policies: int) -> tuple[float, float]:
    """Seconds of a trial, and of screening relative to forward passes."""
    task = load_task(ROOT / f"experiments/{name}/task.py")
    bench, space, _ = open_space(task, SearchConfig(space=SPACE, isolate=False, keep_inert=True), Watcher())
    training = bench.framework.share(task, bench.config.criterion, bench.tune_settings)
    training.begin(1)  # what its weights are worth does not matter here
    screen = Screen(bench.framework, task, PROBE_SAMPLES)
    observed = islice(task.calibration_split.numpy(), CALIBRATION_BATCHES)
    images = [batch.inputs for batch in (*for_batch_norms(task.splits["train"].numpy()), *observed, *screen.batches)]
    generator = np.random.default_rng(0)
    trials, screened = [], []
    with tempfile.TemporaryDirectory() as folder:
        runner = TrialRunner(bench, RunFolder(folder), Watcher())
        runner.inheritance = Inheritance(training, screen, 0)
        for _ in range(policies + 1):
            policy = space.policy({d.name: int(generator.integers(len(d.choices))) for d in space.decisions})
            trials.append(cpu_seconds(lambda policy=policy: run(runner, policy)))
            start = time.process_time()
            candidate = training.candidate(policy)
            bench.framework.reestimate(task, candidate)
            screen.score(candidate)
            seconds = time.process_time() - start
            screened.append(seconds / cpu_seconds(lambda made=candidate: bench.framework.predict(task, made, images)))
    return median(trials[1:]), median(screened[1:])  # the first one pays for what is built once


def run(runner: TrialRunner, policy: Policy) -> None:
    """A whole trial."""
    record = runner.run(Plan.of(policy), "random", gate_ms=float("inf"))
    assert record.state == State.COMPLETE, record.error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(EXPERIMENTS))
    parser.add_argument("--policies", type=int, default=8)
    arguments = parser.parse_args()
    sys.exit(main(arguments.names, arguments.policies))
