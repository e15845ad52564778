"""Kill a search with SIGKILL in its shared training, resume it, and compare with a search that ran through.

    python benchmarks/kill_shared.py experiments/mnist_resnet8/task.py runs/kill_shared --kills 3 --epochs 1

Both searches end where their shared training does. Ends with exit code 1 if the probes' scores or the weights differ, or if a
resumed training did not go on from the last epoch that had ended.
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
from typing import Any

import torch

STATE = "shared/progress.json"
LOOK_S = 0.05


def state(run: Path) -> dict[str, Any]:
    """How far the shared training is; empty before its first epoch has ended."""
    path = run / STATE
    return json.loads(path.read_text()) if path.is_file() else {}


def steps_done(found: dict[str, Any]) -> tuple[int, int]:
    """Finished cycles, and finished epochs of the present one."""
    return found.get("cycle", 0), found.get("epoch", 0)


def search(options: argparse.Namespace, run: Path, delay: float | None) -> None:
    """Search until the shared training is done, or for some seconds after its next epoch has ended."""
    command = [
        sys.executable,
        "-m",
        "autocompress",
        "search",
        options.task,
        "--out",
        str(run),
        "--resume",
        "--fine-tuning",
        "shared",
    ]
    command += ["--trials", "16", "--epochs", str(options.epochs), "--budget", "70% of int8"]
    before = steps_done(state(run))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not state(run).get("finished") and (delay is None or steps_done(state(run)) == before):
        time.sleep(LOOK_S)
    if process.poll() is not None:
        raise SystemExit(f"The search ended by itself with exit code {process.returncode}")
    time.sleep(delay or 0)
    process.kill()
    process.wait()


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the elastic model."""
    found: dict[str, torch.Tensor] = torch.load(run / state(run)["checkpoint"], weights_only=True)["model"]
    return found


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
    one, other = state(killed), state(whole)
    largest = max(
        float((a.float() - b.float()).abs().max()) for a, b in zip(weights(killed).values(), weights(whole).values(), strict=True)
    )
    print(f"probes {one['probes']} and {other['probes']}; weights differ by {largest:.2g}")
    print(f"seconds of the finished epochs and probes: {one['seconds']:.0f} and {other['seconds']:.0f}")
    return int(faults > 0 or one["probes"] != other["probes"] or largest > 0)


if __name__ == "__main__":
    sys.exit(main())
