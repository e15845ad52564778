"""The inner loop: what is done to one policy, stage by stage.

Every stage writes its result under the plan's content key before the next one begins. A killed search therefore loses one stage
at most, and a retried trial goes on after the last finished stage.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import openvino as ov

from autocompress.config import CompressionConfig
from autocompress.data import Inputs, map_arrays
from autocompress.device import Target
from autocompress.errors import DiskFullError
from autocompress.frameworks.base import Candidate, Framework, TuneSettings
from autocompress.policy import Policy
from autocompress.record import Latency, Plan, Stage, State, TrialRecord
from autocompress.run_folder import RunFolder
from autocompress.structure import Structure
from autocompress.target import precision
from autocompress.target.evaluate import evaluate
from autocompress.target.executed import kernels
from autocompress.target.meter import measure, reference_latency_ms
from autocompress.target.runtime import compile_for_scoring, compile_model
from autocompress.task import Task
from autocompress.watch import Watcher

GATE_HALF_WIDTH = 0.03
"""The gate has 10 % slack; it need not know an untrained latency better than this."""


@dataclass
class Workbench:
    """What every trial of a run needs: the task, the way to compress it, and the reference to measure against."""

    task: Task
    framework: Framework
    structure: Structure
    config: CompressionConfig
    reference_ms: float = 0.0

    def __post_init__(self) -> None:
        if not self.reference_ms:
            self.reference_ms = reference_latency_ms(self.reference)

    @property
    def target(self) -> Target:
        """Where the models run."""
        return self.config.target

    @cached_property
    def reference(self) -> ov.CompiledModel:
        """The original model at the target's default precision: what the user would deploy today."""
        original = self.framework.compress(self.task, Policy(), self.config.criterion)
        return compile_model(self.framework.to_openvino(self.task, original, self.target.batch).model, self.target)

    @cached_property
    def samples(self) -> list[Inputs]:
        """Inputs for calibration, each with the deployed batch size."""
        singles = self.task.calibration_split.take(self.config.calibration_samples)
        return [map_arrays(sample, lambda a: np.repeat(a, self.target.batch, axis=0)) for sample in singles]

    @property
    def tune_settings(self) -> TuneSettings:
        """How candidates are fine-tuned."""
        return tune_settings(self.task, self.config)

    def candidate(self, policy: Policy) -> Candidate:
        """The model under a policy, untrained."""
        return self.framework.compress(self.task, policy, self.config.criterion)

    def deploy(
        self, candidate: Candidate, target: Target, trained: bool, samples: Sequence[Inputs]
    ) -> tuple[ov.Model, list[str]]:
        """The candidate as the IR that will be shipped, and notes.

        Low-bit codes whose packed storage would cost their layer its integer kernel are stored in 8 bits.
        """
        converted = self.framework.to_openvino(self.task, candidate, target.batch)
        compact = self.config.storage == "compact"
        correct_bias = not trained and len(samples) > 1
        model = precision.place_precision(converted, candidate.policy, samples, correct_bias=correct_bias, compact=compact)
        packed = [
            name
            for name, grid in converted.grids.items()
            if compact and grid.bits <= 4 and candidate.policy.layer(name).is_integer
        ]
        if packed:
            running = kernels(compile_model(model, target), packed)
            wide = [name for name in packed if name in running and not running[name].is_low]
            if wide:
                model = precision.place_precision(
                    converted, candidate.policy, samples, wide=wide, correct_bias=correct_bias, compact=compact
                )
                converted.notes.append(f"stored in 8 bits to keep an integer kernel: {', '.join(wide)}")
        return model, converted.notes

    def untrained_latency(self, candidate: Candidate, half_width: float = GATE_HALF_WIDTH) -> Latency:
        """The latency that a candidate will have once it is trained, measured before any training."""
        model, _ = self.deploy(candidate, self.target, trained=False, samples=self.samples[:1])
        return measure([compile_model(model, self.target)], self.reference, self.reference_ms, half_width)[0]


def tune_settings(task: Task, config: CompressionConfig) -> TuneSettings:
    """The task's settings with the configuration's on top."""
    override = config.fine_tuning
    return TuneSettings(
        epochs=override.epochs or task.epochs,
        learning_rate=override.learning_rate or task.learning_rate,
        distillation=task.distillation if override.distillation is None else override.distillation,
        seed=config.seed,
        feature_distillation=override.feature_distillation,
        binarization=override.binarization,
        arithmetic=override.arithmetic,
        stop_hopeless=override.stop_hopeless,
    )


class TrialRunner:
    """Runs trials one after the other in a run folder."""

    def __init__(self, bench: Workbench, folder: RunFolder, watcher: Watcher) -> None:
        self.bench = bench
        self.folder = folder
        self.watcher = watcher

    def run(self, plan: Plan, source: str, gate_ms: float | None = None) -> TrialRecord:
        """Run a plan, or what is left of it, and return its record.

        Args:
            plan: what to do.
            source: who proposed it; "baseline:…" trials are never ended by the gate.
            gate_ms: an untrained candidate slower than this ends here.

        Raises:
            DiskFullError: nothing more can be written. Any other failure is recorded and returned.
        """
        record = self.folder.open_trial(plan, source)
        if record.state in (State.COMPLETE, State.FAILED):
            return record
        record.state = State.RUNNING
        self.folder.require_space()
        try:
            with self.folder.disk_guard():
                self._stages(record, None if record.is_baseline else gate_ms)
        except DiskFullError:
            raise
        except Exception as error:  # user code, training and conversion fail in any way; the search goes on
            self.folder.require_space()  # OpenVINO says of a full disk only that it could not write
            record.state, record.error = State.FAILED, f"{type(error).__name__}: {error}"
        self.folder.save(record)
        return record

    def _stages(self, record: TrialRecord, gate_ms: float | None) -> None:
        candidate = self._compress(record)
        if record.plan.tune:
            self._measure_untrained(record, candidate)
            if gate_ms is not None and record.latency_untrained and record.latency_untrained.ms > gate_ms:
                record.state = State.OVER_BUDGET
                return
            self._fine_tune(record, candidate)
        self._export(record, candidate)
        self._measure(record)
        self._evaluate(record)
        record.state = State.COMPLETE

    def _compress(self, record: TrialRecord) -> Candidate | None:
        """The candidate, made again on a retry (it is not stored), unless its IR is already there."""
        if Stage.EXPORT in record.done and self.folder.has_model(record.number):
            return None
        record.done = [stage for stage in record.done if stage not in (Stage.EXPORT, Stage.MEASURE)]
        with self._stage(record, Stage.COMPRESS):
            candidate = self.bench.candidate(record.policy)
            record.macs = sum(candidate.macs.values())
        return candidate

    def _measure_untrained(self, record: TrialRecord, candidate: Candidate | None) -> None:
        if Stage.MEASURE_UNTRAINED in record.done or candidate is None:
            return
        with self._stage(record, Stage.EXPORT_UNTRAINED):
            model, _ = self.bench.deploy(candidate, self._target(record), trained=False, samples=self.bench.samples[:1])
            compiled = compile_model(model, self._target(record))
        with self._stage(record, Stage.MEASURE_UNTRAINED):
            record.latency_untrained = measure([compiled], self.bench.reference, self.bench.reference_ms, GATE_HALF_WIDTH)[0]

    def _fine_tune(self, record: TrialRecord, candidate: Candidate | None) -> None:
        if candidate is None:
            return
        weights = self.folder.trial(record.number) / "weights.safetensors"
        if Stage.FINE_TUNE in record.done and weights.is_file():
            self.bench.framework.load(candidate, weights)
            return
        with self._stage(record, Stage.FINE_TUNE):
            self.bench.framework.fine_tune(self.bench.task, candidate, self.bench.tune_settings, self.watcher.progress)
            self.bench.framework.save(candidate, weights)

    def _export(self, record: TrialRecord, candidate: Candidate | None) -> None:
        if candidate is None:
            return
        path, target = self._model_path(record), self._target(record)
        with self._stage(record, Stage.EXPORT):
            model, record.notes = self.bench.deploy(candidate, target, trained=record.plan.tune, samples=self.bench.samples)
            precision.save(model, path)
            record.size_bytes, record.compressed_bytes = _sizes(path)
            self._read_kernels(record, compile_model(path, target), candidate.macs)

    def _read_kernels(self, record: TrialRecord, compiled: ov.CompiledModel, macs: dict[str, int]) -> None:
        """How much of what the policy quantizes really runs in INT8."""
        asked = [name for name in macs if record.policy.layer(name).is_integer]
        running = kernels(compiled, asked)
        integer = [name for name in asked if name in running and running[name].is_low]
        record.int8_share = len(integer) / len(asked) if asked else None
        record.int8_macs_share = sum(macs[name] for name in integer) / max(1, sum(macs.values()))
        record.notes += [f"{name} was to run in INT8 and does not" for name in asked if name not in integer]

    def _measure(self, record: TrialRecord) -> None:
        if Stage.MEASURE in record.done:
            return
        with self._stage(record, Stage.MEASURE):
            compiled = compile_model(self._model_path(record), self._target(record))
            record.latency_trained = measure([compiled], self.bench.reference, self.bench.reference_ms)[0]

    def _evaluate(self, record: TrialRecord) -> None:
        with self._stage(record, Stage.EVALUATE):
            record.accuracy_valid = self.score(record, "valid")

    def score(self, record: TrialRecord, split: str) -> float:
        """The task's metric of a trial's IR on a split."""
        compiled = compile_for_scoring(self._model_path(record), self._target(record))
        return evaluate(compiled, self.bench.task.splits[split], self.bench.task.scorer)

    def measure_again(self, records: Sequence[TrialRecord]) -> None:
        """Measure trials interleaved with the reference and with each other, and save it as their final latency."""
        compiled = [compile_model(self._model_path(record), self._target(record)) for record in records]
        for record, latency in zip(records, measure(compiled, self.bench.reference, self.bench.reference_ms), strict=True):
            record.latency_final = latency
            self.folder.save(record)

    def _model_path(self, record: TrialRecord) -> Path:
        return self.folder.trial(record.number) / "model.xml"

    def _target(self, record: TrialRecord) -> Target:
        """The target, with the trial's own float precision if it has one."""
        return (
            self.bench.target.model_copy(update={"precision": record.plan.precision})
            if record.plan.precision
            else self.bench.target
        )

    @contextmanager
    def _stage(self, record: TrialRecord, stage: Stage) -> Iterator[None]:
        record.stage = stage
        self.watcher.stage(record, stage)
        start = time.perf_counter()
        yield
        record.seconds[stage] = round(time.perf_counter() - start, 3)
        if stage not in record.done:
            record.done.append(stage)
        self.folder.save(record)


def _sizes(path: Path) -> tuple[int, int]:
    """Bytes of an IR as it lies on disk, and compressed."""
    contents = [path.read_bytes(), path.with_suffix(".bin").read_bytes()]
    return sum(map(len, contents)), sum(len(zlib.compress(content, 6)) for content in contents)
