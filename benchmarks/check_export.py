"""What the way from a policy to a compiled INT8 model costs, training and measuring apart.

    python benchmarks/check_export.py [task.py] [--policies 6]

Compress, convert, place INT8 with the run's own number of calibration samples, write the grids, save and compile, for random
ratios of every group. Prints the CPU seconds of each. Ends with exit code 1 if the median is above 4.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import autocompress as ac
from autocompress.config import CompressionConfig
from autocompress.frameworks.base import framework_of
from autocompress.target import precision
from autocompress.target.runtime import compile_model
from autocompress.task import load_task
from autocompress.trial import Workbench

TASK_FILE = Path(__file__).resolve().parents[1] / "experiments/mnist_resnet8/task.py"
MOST_SECONDS = 4.0
RATIOS = (0, 0.25, 0.5, 0.75)


def workbench(path: Path) -> Workbench:
    """As a search with its default settings has it."""
    task = load_task(path)
    framework = framework_of(task.model)
    return Workbench(task, framework, framework.inspect(task), CompressionConfig())


def cpu_seconds(bench: Workbench, policy: ac.Policy, folder: Path) -> dict[str, float]:
    """Of each step, for one policy."""
    found: dict[str, float] = {}
    clock = time.process_time()

    def lap(step: str) -> None:
        nonlocal clock
        found[step], clock = time.process_time() - clock, time.process_time()

    candidate = bench.candidate(policy)
    lap("compress")
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        model, _ = bench.deploy(candidate, bench.target, True, bench.samples)
    lap("export")
    precision.save(model, folder / "model.xml")
    compile_model(folder / "model.xml", bench.target)
    lap("save and compile")
    return found


def main(path: Path, policies: int) -> int:
    """Print the figures; 1 if they are above the bound."""
    bench, generator = workbench(path), random.Random(0)
    layers = {layer.name: ac.LayerPolicy(8, 8) for layer in bench.structure.layers}
    totals = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(policies + 1):
            policy = ac.Policy({group.name: generator.choice(RATIOS) for group in bench.structure.groups}, layers)
            found = cpu_seconds(bench, policy, Path(folder))
            if i:  # the first also traces the model and loads NNCF
                totals.append(sum(found.values()))
                print("   ".join(f"{step} {seconds:.2f} s" for step, seconds in found.items()), f"  in all {totals[-1]:.2f} s")
    median = statistics.median(totals)
    print(f"{bench.task.name}: {median:.2f} CPU seconds a policy, at most {MOST_SECONDS}")
    return int(median > MOST_SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", nargs="?", type=Path, default=TASK_FILE)
    parser.add_argument("--policies", type=int, default=6)
    arguments = parser.parse_args()
    sys.exit(main(arguments.task, arguments.policies))
