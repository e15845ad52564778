"""Rows of a table of policies: how each is made, scored and measured."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import openvino as ov

from autocompress.policy import Policy
from autocompress.record import Latency
from autocompress.run_folder import RunFolder
from autocompress.shared import CYCLE, PROBE_SAMPLES, PolicySampler, Screen, SharedTuning
from autocompress.space import SearchSpace
from autocompress.target import precision
from autocompress.target.evaluate import evaluate, score
from autocompress.target.meter import measure
from autocompress.target.runtime import compile_model
from autocompress.trial import Workbench
from autocompress.watch import Watcher

Row = dict[str, Any]
GATE_SHARE = 0.05
"""What a candidate that ends at the latency gate takes, relative to a trial that is fine-tuned."""
RANGE_SAMPLES, HALF_WIDTH = 32, 0.02
"""Images from which the ranges of an heir's inputs are taken, and the precision to which its latency is measured."""


class Printing(Watcher):
    """Lines as they come."""

    def say(self, line: str) -> None:
        """Print it."""
        print(f"  {line}", flush=True)


class Rows(Protocol):
    """Makes rows.

    Attributes:
        seeds: of a policy near the front; others have the first alone.
    """

    seeds: tuple[int, ...]

    def facts(self) -> dict[str, Any]:
        """What a replay has to know of how they are made."""
        ...

    def row(self, policy: Policy, seed: int) -> Row:
        """Score and measure a policy; CPU seconds."""
        ...


class Tuned:
    """Every policy is fine-tuned from the original and scored as the IR that would be deployed."""

    seeds = (0, 1, 2)

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def facts(self) -> dict[str, Any]:
        """The original as IR, and how long policies are tuned."""
        original = evaluate(self.bench.reference, self.bench.task.splits["test"], self.bench.task.scorer)
        return {"original": original, "gate_share": GATE_SHARE, "epochs": self.bench.tune_settings.epochs}

    def row(self, policy: Policy, seed: int) -> Row:
        """Fine-tune, export, measure, score."""
        bench, task = self.bench, self.bench.task
        start = time.process_time()
        candidate = bench.candidate(policy)
        before = time.process_time()
        bench.framework.fine_tune(task, candidate, replace(bench.tune_settings, seed=seed), lambda fraction: None)
        tune_seconds = time.process_time() - before
        model, _ = bench.deploy(candidate, bench.target, trained=True, samples=bench.samples)
        latency: Latency = measure([compile_model(model, bench.target)], bench.reference, bench.reference_ms)[0]
        scores = {f"accuracy_{split}": score(model, bench.target, task.splits[split], task.scorer) for split in ("valid", "test")}
        with tempfile.TemporaryDirectory() as folder:
            precision.save(model, Path(folder) / "model.xml")
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        costs = _costs(tune_seconds, time.process_time() - start)
        return {"seed": seed, **scores, **_latency(latency), "size_bytes": size, **costs}


class Heirs:
    """Every policy inherits from one shared training and is scored as IR, without any training of its own.

    Args:
        bench: of the task.
        space: of the policies.
        kept: folder of the shared training, which is taken up again.
    """

    seeds = (0,)

    def __init__(self, bench: Workbench, space: SearchSpace, kept: Path) -> None:
        self.bench = bench
        kept.mkdir(parents=True, exist_ok=True)
        self.training = bench.framework.share(bench.task, bench.config.criterion, bench.tune_settings)
        self.sampler = PolicySampler(space, lambda policy: bench.structure.macs_share(policy.pruning), None, 0)
        probes, self.epochs = Screen(bench.framework, bench.task, PROBE_SAMPLES), CYCLE * bench.tune_settings.epochs
        tuning = SharedTuning(probes, self.training, self.sampler, self.epochs, RunFolder(kept), Printing(), most_cycles=1)
        self.seconds = tuning.run().seconds

    def facts(self) -> dict[str, Any]:
        """The original as IR, and what the shared training took."""
        start = time.process_time()
        self._measured(self.sampler.largest)
        gated, whole = time.process_time() - start, self.row(self.sampler.largest, 0)["tune_seconds"]
        return {
            "original": evaluate(self.bench.reference, self.bench.task.splits["test"], self.bench.task.scorer),
            "gate_share": round(gated / whole, 3),
            "shared_epochs": self.epochs,
            "shared_seconds": round(self.seconds, 1),
        }

    def row(self, policy: Policy, seed: int) -> Row:
        """Inherit, export, measure, score. Seconds of tuning are those of all but the test data."""
        bench, task = self.bench, self.bench.task
        start = time.process_time()
        model, latency = self._measured(policy)
        valid = score(model, bench.target, task.splits["valid"], task.scorer)
        seconds = time.process_time() - start
        scores = {"accuracy_valid": valid, "accuracy_test": score(model, bench.target, task.splits["test"], task.scorer)}
        return {"seed": seed, **scores, **_latency(latency), **_costs(seconds, time.process_time() - start)}

    def _measured(self, policy: Policy) -> tuple[ov.Model, Latency]:
        """An heir as IR and its latency, which is where one that is too slow ends."""
        bench, candidate = self.bench, self.training.candidate(policy)
        bench.framework.reestimate(bench.task, candidate)
        model, _ = bench.deploy(candidate, bench.target, trained=True, samples=bench.samples[:RANGE_SAMPLES])
        return model, measure([compile_model(model, bench.target)], bench.reference, bench.reference_ms, HALF_WIDTH)[0]


def _latency(latency: Latency) -> dict[str, float]:
    values = {"latency": latency.ratio, "latency_low": latency.ratio_low, "latency_high": latency.ratio_high}
    return {key: round(value, 5) for key, value in values.items()}


def _costs(tune_seconds: float, total_seconds: float) -> dict[str, Any]:
    return {"tune_seconds": round(tune_seconds, 3), "total_seconds": round(total_seconds, 3), "host": host()}


def host() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), sys.platform)
