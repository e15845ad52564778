"""Does a bundle still do what it promises, here?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.bundle import check_integrity, model_inputs, read_promise, sample_outputs
from autocompress.device import Target
from autocompress.target.evaluate import score
from autocompress.target.meter import measure, reference_latency_ms
from autocompress.target.runtime import compile_model, fingerprint
from autocompress.target.yardstick import yardstick
from autocompress.task import Task

LATENCY_TOLERANCE = 0.25
"""A model may take this much longer, in yardsticks, than promised."""
ACCURACY_TOLERANCE = {True: 0.001, False: 0.01}
"""Of the metric (relative where it is larger than 1), on the promised fingerprint and on another one."""
OUTPUT_TOLERANCE = {True: 1e-3, False: 0.05}
"""Mean difference of outputs in standard deviations, on the promised fingerprint and on another one."""

SCORED = ("valid", "test")
UNMEASURED = "nothing, it was not measured"
"""Of a model that was exported from a training script, without a task."""


@dataclass(frozen=True)
class Check:
    """One promise and what was found."""

    name: str
    promised: str
    found: str
    kept: bool


def verify(path: str | Path, task: Task | None = None) -> list[Check]:
    """Measure a bundle again on this machine.

    Args:
        path: the bundle.
        task: with it the accuracies are computed again; without it only the stored samples' outputs.

    Raises:
        BundleError: it is not a bundle, or a file was changed.
    """
    path = Path(path)
    check_integrity(path)
    promise, promised = read_promise(path)
    target = promised.target.at(promise["precision"])
    differences = fingerprint(promised.target).differences(promised)
    checks = [_check_outputs(path, target, not differences)]
    if promise["latency_ms"] is None:
        found_ms = reference_latency_ms(compile_model(path / "model.xml", target))
        checks.append(Check("latency", UNMEASURED, f"{found_ms:.4g} ms", True))
    elif differences:
        checks.append(_check_budget(path, target, promise, differences))
    else:
        checks.append(_check_latency(path, target, promise))
    if task:
        checks += [
            _check_accuracy(path, target, promise, task, split, not differences) for split in SCORED if split in task.splits
        ]
    return checks


def _check_outputs(path: Path, target: Target, same_target: bool) -> Check:
    compiled = compile_model(path / "model.xml", target)
    with np.load(path / "expected.npz") as stored:
        expected = [stored[name] for name in stored]
    actual = sample_outputs(compiled, model_inputs(path))
    difference = max(float(np.abs(a - e).mean() / max(float(e.std()), 1e-12)) for a, e in zip(actual, expected, strict=True))
    allowed = OUTPUT_TOLERANCE[same_target]
    return Check("outputs of the samples", f"within {allowed:g} σ", f"{difference:.2g} σ", difference <= allowed)


def _check_accuracy(path: Path, target: Target, promise: dict[str, Any], task: Task, split: str, same_target: bool) -> Check:
    found = score(path / "model.xml", target, task.splits[split], task.scorer)
    expected, name = promise[f"accuracy_{split}"], f"{split} {task.scorer.name}"
    if expected is None:
        return Check(name, UNMEASURED, f"{found:.4f}", True)
    lost = task.scorer.gain(expected) - task.scorer.gain(found)
    kept = lost <= ACCURACY_TOLERANCE[same_target] * max(1.0, abs(expected))
    return Check(name, f"{expected:.4f}", f"{found:.4f}", kept)


def _check_latency(path: Path, target: Target, promise: dict[str, Any]) -> Check:
    compiled = compile_model(path / "model.xml", target)
    stick = yardstick(target)
    found = measure([compiled], stick, reference_latency_ms(stick))[0]
    expected = promise["latency_yardsticks"]
    kept = found.ratio_low <= expected * (1 + LATENCY_TOLERANCE)
    return Check(
        "latency",
        f"{promise['latency_ms']:.4g} ms, {expected:.3f} yardsticks",
        f"{found.ms:.4g} ms, {found.ratio:.3f} yardsticks",
        kept,
    )


def _check_budget(path: Path, target: Target, promise: dict[str, Any], differences: list[str]) -> Check:
    """On another target only the budget, in milliseconds, can be held against it."""
    found_ms = reference_latency_ms(compile_model(path / "model.xml", target))
    budget_ms = promise["budget_ms"]
    promised = f"{promise['latency_ms']:.4g} ms on another target ({'; '.join(differences)})"
    if budget_ms is None:
        return Check("latency", f"{promised}, no budget", f"{found_ms:.4g} ms", True)
    return Check("latency", f"{promised}, budget {budget_ms:.4g} ms", f"{found_ms:.4g} ms", found_ms <= budget_ms)
