"""How far the meter's ratios can be trusted, quiet and with two busy processes beside it.

    python benchmarks/check_meter.py

1. A model of 0.15 ms and one of 5 ms against themselves (compiled twice), 40 times each: how many ratios lie within
   1 ± 0.005 (quiet) and 1 ± 0.015 (under load), and how many of the stated 95 % intervals hold 1.
2. Twelve models whose times differ by 3 % a step: the rank correlation of what is measured with how they were built.
3. How long a measurement of the small model takes.

Ends with exit code 1 if fewer than 38 ratios or 34 intervals of 40, a correlation below 0.99 or a quiet time above 1 s is found.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import openvino as ov
from models import F32, of_latency
from openvino import opset13 as ops
from scipy.stats import spearmanr

from autocompress.target.meter import Timer, measure, reference_latency_ms
from autocompress.target.runtime import compile_model

REPEATS = 40
SMALL, LARGE = (0.15, 24, 24), (5.0, 64, 56)
STEPS, STEP = 12, 1.03


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """Busy processes beside the measurement."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    time.sleep(0.5)
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def against_itself(model: ov.Model, name: str, busy: int) -> bool:
    tolerance = 0.015 if busy else 0.005
    ratios, covered, seconds = [], 0, []
    with load(busy):
        for _ in range(REPEATS):
            one, other = compile_model(model, F32), compile_model(model, F32)
            start = time.perf_counter()
            (latency,) = measure([one], other, 1.0)
            seconds.append(time.perf_counter() - start)
            ratios.append(latency.ratio)
            covered += latency.ratio_low <= 1 <= latency.ratio_high
    errors = np.abs(np.array(ratios) - 1)
    within = int((errors <= tolerance).sum())
    quick = busy > 0 or name != "0.15 ms" or np.median(seconds) <= 1
    print(
        f"{name} against itself, {busy} busy beside it: {within} of {REPEATS} within 1 ± {tolerance}, {covered} hold 1, "
        f"largest error {errors.max():.4f}, {np.median(seconds):.2f} s a measurement (largest {max(seconds):.2f})",
        flush=True,
    )
    return within >= 38 and covered >= 34 and quick


def staircase() -> list[ov.Model]:
    """Twelve models, each about 3 % slower than the one before: a fixed part, and a matrix product of growing length."""
    return [_with_rows(round(rows)) for rows in _rows()]


def _rows() -> list[float]:
    """Rows of the products, so that the latencies (linear in the rows, fitted here) grow by 3 % a step."""
    few, many = 64, 512
    times = [
        np.median([reference_latency_ms(compile_model(_with_rows(rows), F32), 0.3) for _ in range(3)]) for rows in (few, many)
    ]
    slope = (times[1] - times[0]) / (many - few)
    fixed = times[0] - slope * few
    return [(times[0] * 2 * STEP**k - fixed) / slope for k in range(STEPS)]


def _with_rows(rows: int) -> ov.Model:
    generator = np.random.default_rng(0)
    parameter = ops.parameter([1, rows, 128], np.float32)
    node = parameter
    for _ in range(4):
        node = ops.relu(
            ops.matmul(node, ops.constant(generator.standard_normal((128, 128)).astype(np.float32) / 11), False, True)
        )
    return ov.Model([node], [parameter])


def ordered(models: list[ov.Model], busy: int) -> bool:
    """Each measured on its own against the first, as a search does it."""
    reference = compile_model(models[0], F32)
    with load(busy):
        ratios = [measure([compile_model(model, F32)], reference, 1.0)[0].ratio for model in models]
    correlation = float(spearmanr(range(STEPS), ratios).statistic)
    steps = ", ".join(f"{b / a - 1:.1%}" for a, b in pairwise(ratios))
    print(f"{STEPS} models with steps of {steps}; {busy} busy processes: Spearman {correlation:.4f}", flush=True)
    return correlation >= 0.99


def main() -> int:
    kept = []
    for wanted, channels, side in (SMALL, LARGE):
        model = of_latency(wanted, channels, side)
        print(f"A model of {reference_latency_ms(Timer(compile_model(model, F32))):.3f} ms")
        kept += [against_itself(model, f"{wanted:g} ms", busy) for busy in (0, 2)]
    models = staircase()
    kept += [ordered(models, busy) for busy in (0, 2)]
    print("kept" if all(kept) else "BROKEN")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
