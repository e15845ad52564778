"""Kill a search with SIGKILL at random moments, resume it each time, and check that nothing was lost or done twice.

    python benchmarks/kill_resume.py experiments/mnist_resnet8/task.py runs/kill --kills 10 --trials 6 --epochs 1

A fine-tuning counts as done twice if its weights are written again after a record said that it was done.
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

STARTUP_S = 2.0


def records(run: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("trials/*/record.json"))}


def complete(run: Path) -> dict[str, dict]:
    return {name: record for name, record in records(run).items() if record["state"] == "COMPLETE"}


def same(before: dict, after: dict | None) -> bool:
    """The final latency may be measured anew; what was trained and scored may not change."""
    return after is not None and all(
        before[field] == after[field] for field in ("plan", "accuracy_valid", "size_bytes", "seconds")
    )


def tuned_at(run: Path) -> dict[str, float]:
    """When the weights of each trial that finished fine-tuning were written."""
    done = (name for name, record in records(run).items() if "fine_tune" in record["done"])
    weights = {name: run / "trials" / name / "weights.safetensors" for name in done}
    return {name: path.stat().st_mtime_ns for name, path in weights.items() if path.exists()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("run", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(options.run, ignore_errors=True)
    command = [sys.executable, "-m", "autocompress", "search", options.task, "--out", str(options.run), "--resume"]
    command += ["--trials", str(options.trials), "--epochs", str(options.epochs), "--keep", "all", "--budget", "70% of int8"]
    moments = random.Random(options.seed)
    faults = []
    for kill in range(options.kills):
        before, weights = complete(options.run), tuned_at(options.run)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        time.sleep(STARTUP_S + moments.uniform(0, 28))
        alive = process.poll() is None
        process.kill()
        process.wait()
        after = complete(options.run)
        faults += [f"lost {name}" for name in before if not same(before[name], after.get(name))]
        faults += [f"tuned again {name}" for name, when in weights.items() if tuned_at(options.run).get(name) != when]
        print(f"kill {kill + 1}: {'killed' if alive else 'already finished'}, {len(before)} → {len(after)} complete", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    keys = [json.dumps(record["plan"], sort_keys=True) for record in records(options.run).values()]
    faults += ["a plan was run twice"] if len(set(keys)) != len(keys) else []
    verified = subprocess.run([sys.executable, "-m", "autocompress", "verify", str(options.run / "best")], check=False).returncode
    states = [record["state"] for record in records(options.run).values()]
    finished = "RUNNING" not in states
    print(f"{len(states)} trials, all finished: {finished}; best verifies: {verified == 0}; faults: {faults or 'none'}")
    return int(bool(faults) or verified != 0 or not finished)


if __name__ == "__main__":
    sys.exit(main())
