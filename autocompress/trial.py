"""The inner loop: what is done to one policy, stage by stage.

Every stage writes its result under the plan's content key before the next one begins. A killed search therefore loses one stage
at most, and a retried trial goes on after the last finished stage.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import openvino as ov

from autocompress.config import CompressionConfig
from autocompress.data import Inputs
from autocompress.deploy import calibration_inputs, deploy, integer_layers, not_as_asked
from autocompress.device import Fingerprint, Target
from autocompress.errors import DiskFullError, OutOfTimeError
from autocompress.frameworks.base import Candidate, Framework, SharedTraining, TuneSettings
from autocompress.policy import Policy
from autocompress.record import Latency, Plan, Stage, State, TrialRecord
from autocompress.run_folder import RunFolder
from autocompress.shared import Screen, is_shared
from autocompress.structure import Structure
from autocompress.target import precision
from autocompress.target.evaluate import score
from autocompress.target.layer_table import build_table
from autocompress.target.meter import measure, reference_latency_ms
from autocompress.target.predict import Predictor
from autocompress.target.runtime import compile_model
from autocompress.task import Task
from autocompress.watch import Watcher

GATE_HALF_WIDTH = 0.03
"""The gate has 10 % slack; it need not know an untrained latency better than this."""
CANDIDATE_HALF_WIDTH = 0.02
"""What could be on the front is measured once more at the end, and more precisely."""


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
        return calibration_inputs(self.task, self.config)

    @property
    def tune_settings(self) -> TuneSettings:
        """How candidates are fine-tuned."""
        return tune_settings(self.task, self.config)

    def candidate(self, policy: Policy, removed: Mapping[str, Sequence[int]] | None = None) -> Candidate:
        """The model under a policy, untrained; without the channels that an earlier candidate lost, if they are given."""
        return self.framework.compress(self.task, policy, self.config.criterion, removed)

    def deploy(
        self, candidate: Candidate, target: Target, trained: bool, samples: Sequence[Inputs]
    ) -> tuple[ov.Model, list[str]]:
        """The candidate as the IR that will be shipped, and notes."""
        compact = self.config.storage == "compact"
        return deploy(self.framework, self.task, candidate, target, samples, trained=trained, compact=compact)

    def predictor(
        self, ratios: Mapping[str, Sequence[float]], found: Fingerprint, progress: Callable[[float], None]
    ) -> Predictor:
        """Predicts latencies; the original's layers are timed at the widths that the groups' ratios leave, once per machine."""
        original = self.framework.compress(self.task, Policy(), self.config.criterion)
        graph = self.framework.to_openvino(self.task, original, self.target.batch).model
        return Predictor(build_table(graph, self.structure, ratios, found, progress), self.structure, graph)

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
        pruning_schedule=override.pruning_schedule,
    )


@dataclass
class Inheritance:
    """What candidates inherit from.

    Attributes:
        training: the shared training, finished.
        screen: scores them in simulation.
        epochs: of their own training.
    """

    training: SharedTraining
    screen: Screen
    epochs: int

    def settings(self, plan: Plan, alone: TuneSettings) -> TuneSettings:
        """How a candidate is trained after it has inherited.

        It gets all epochs where the shared training could not train what its policy does. Its channels are gone from the start:
        another schedule would begin with the original.

        Args:
            plan: of the candidate.
            alone: how it would be trained by itself.
        """
        shared = self.epochs if is_shared(Policy.from_dict(plan.policy)) else alone.epochs
        return replace(alone, epochs=shared if plan.epochs is None else plan.epochs, pruning_schedule="one_shot")


class TrialRunner:
    """Runs trials one after the other in a run folder.

    Attributes:
        inheritance: what tuned candidates, other than baselines, inherit from; None where each is tuned from the original.
        deadline: `time.monotonic()` for which the trainings of the front's models are shortened; those of candidates are not, as
            they are compared with each other.
    """

    def __init__(self, bench: Workbench, folder: RunFolder, watcher: Watcher) -> None:
        self.bench = bench
        self.folder = folder
        self.watcher = watcher
        self.inheritance: Inheritance | None = None
        self.deadline: float | None = None

    def run(self, plan: Plan, source: str, gate_ms: float | None = None) -> TrialRecord:
        """Run a plan, or what is left of it, and return its record.

        Args:
            plan: what to do.
            source: who proposed it; "baseline:…" trials are never ended by the gate.
            gate_ms: a candidate slower than this ends before it is trained, or before its IR is scored where it is not trained.

        Raises:
            DiskFullError: nothing more can be written.
            OutOfTimeError: the watcher's time is up; the trial can be run on. Any other failure is recorded and returned.
        """
        record = self.folder.open_trial(plan, source)
        if record.state in (State.COMPLETE, State.FAILED):
            return record
        record.state = State.RUNNING
        self.folder.require_space()
        try:
            with self.folder.disk_guard():
                self._stages(record, None if record.is_baseline else gate_ms)
        except (DiskFullError, OutOfTimeError):
            raise
        except Exception as error:  # user code, training and conversion fail in any way; the search goes on
            self.folder.require_space()  # OpenVINO says of a full disk only that it could not write
            record.state, record.error = State.FAILED, f"{type(error).__name__}: {error}"
        self.folder.save(record)
        return record

    def _stages(self, record: TrialRecord, gate_ms: float | None) -> None:
        candidate, tuned = self._compress(record), record.plan.tune
        trains = tuned and self._settings(record).epochs > 0
        if trains and not record.is_final:  # what is trained once more was measured before
            self._measure_untrained(record, candidate)
            if self._ends_at_the_gate(record, record.latency_untrained, gate_ms):
                return
        if tuned:
            self._inherit(record, candidate)
            self._fine_tune(record, candidate)
        self._measure(record, self._export(record, candidate))
        if tuned and not trains and self._ends_at_the_gate(record, record.latency_trained, gate_ms):
            return
        self._evaluate(record)
        record.state = State.COMPLETE

    def _ends_at_the_gate(self, record: TrialRecord, latency: Latency | None, gate_ms: float | None) -> bool:
        """Whether a candidate is too slow for what comes next: a training, or scoring it where there is none."""
        slow = gate_ms is not None and latency is not None and latency.ms > gate_ms
        if slow:
            record.state = State.OVER_BUDGET
        return slow

    def _settings(self, record: TrialRecord) -> TuneSettings:
        """How a candidate is trained."""
        alone, inheritance, epochs = self.bench.tune_settings, self._inheritance_of(record), record.plan.epochs
        alone = replace(alone, deadline=self.deadline) if record.is_final else alone
        if inheritance is not None:
            return inheritance.settings(record.plan, alone)
        return alone if epochs is None else replace(alone, epochs=epochs)

    def _compress(self, record: TrialRecord) -> Candidate | None:
        """The candidate, made again on a retry (it is not stored), unless its IR is already there."""
        if Stage.EXPORT in record.done and self.folder.has_model(record.number):
            return None
        record.done = [stage for stage in record.done if stage not in (Stage.EXPORT, Stage.MEASURE)]
        with self._stage(record, Stage.COMPRESS):
            inheritance, removed = self._inheritance_of(record), self.folder.removed(record.number)
            make = self.bench.candidate if inheritance is None else inheritance.training.candidate
            candidate = make(record.policy, removed)
            self.folder.save_removed(record.number, candidate.removed)
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

    def _inheritance_of(self, record: TrialRecord) -> Inheritance | None:
        """Baselines are what there is without this tool's help, so they are tuned by themselves."""
        return self.inheritance if record.plan.tune and not record.is_baseline else None

    def _inherit(self, record: TrialRecord, candidate: Candidate | None) -> None:
        """Statistics of a candidate that has inherited its weights, and its score in simulation."""
        inheritance = self._inheritance_of(record)
        if inheritance is None or candidate is None:
            return
        with self._stage(record, Stage.INHERIT):
            self.bench.framework.reestimate(self.bench.task, candidate)
            record.accuracy_simulated = inheritance.screen.score(candidate)

    def _fine_tune(self, record: TrialRecord, candidate: Candidate | None) -> None:
        settings, weights = self._settings(record), self._weights_path(record)
        if candidate is None:
            return
        if Stage.FINE_TUNE in record.done and weights.is_file():
            self.bench.framework.load(candidate, weights)
            return
        record.epochs = settings.epochs
        if not settings.epochs:
            return
        with self._stage(record, Stage.FINE_TUNE):
            inheritance = self._inheritance_of(record)
            heir_of = None if inheritance is None else inheritance.training
            train = self.bench.framework.fine_tune
            record.epochs = train(self.bench.task, candidate, settings, self.watcher.progress, heir_of)
            self.bench.framework.save(candidate, weights)

    def _export(self, record: TrialRecord, candidate: Candidate | None) -> ov.CompiledModel | None:
        """The IR, compiled; None where it was exported before."""
        if candidate is None:
            return None
        path, target = self._model_path(record), self._target(record)
        with self._stage(record, Stage.EXPORT):
            model, record.notes = self.bench.deploy(candidate, target, trained=record.plan.tune, samples=self.bench.samples)
            if Stage.FINE_TUNE not in record.done:
                self.bench.framework.save(candidate, self._weights_path(record))
            precision.save(model, path)
            record.size_bytes, record.compressed_bytes = _sizes(path)
            compiled = compile_model(path, target)
            self._read_kernels(record, compiled, candidate.macs)
            record.notes += _shortened(record)
        return compiled

    def _read_kernels(self, record: TrialRecord, compiled: ov.CompiledModel, macs: dict[str, int]) -> None:
        """How much of what the policy quantizes really runs in INT8."""
        is_integer = integer_layers(compiled, record.policy, macs)
        record.int8_share = sum(is_integer.values()) / len(is_integer) if is_integer else None
        record.int8_macs_share = sum(macs[name] for name in is_integer if is_integer[name]) / max(1, sum(macs.values()))
        record.notes += not_as_asked(is_integer)

    def _measure(self, record: TrialRecord, compiled: ov.CompiledModel | None) -> None:
        if Stage.MEASURE in record.done:
            return
        with self._stage(record, Stage.MEASURE):
            compiled = compiled or compile_model(self._model_path(record), self._target(record))
            record.latency_trained = measure([compiled], self.bench.reference, self.bench.reference_ms, CANDIDATE_HALF_WIDTH)[0]

    def _evaluate(self, record: TrialRecord) -> None:
        with self._stage(record, Stage.EVALUATE):
            record.accuracy_valid = self.score(record, "valid")

    def score(self, record: TrialRecord, split: str) -> float:
        """The task's metric of a trial's IR on a split."""
        task = self.bench.task
        return score(self._model_path(record), self._target(record), task.splits[split], task.scorer)

    def measure_again(self, records: Sequence[TrialRecord], max_seconds: float | None = None) -> None:
        """Measure trials interleaved with the reference and with each other, and save it as their final latency."""
        compiled = [compile_model(self._model_path(record), self._target(record)) for record in records]
        latencies = measure(compiled, self.bench.reference, self.bench.reference_ms, max_seconds=max_seconds)
        for record, latency in zip(records, latencies, strict=True):
            record.latency_final = latency
            self.folder.save(record)

    def _model_path(self, record: TrialRecord) -> Path:
        return self.folder.trial(record.number) / "model.xml"

    def _weights_path(self, record: TrialRecord) -> Path:
        return self.folder.trial(record.number) / "weights.safetensors"

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


def _shortened(record: TrialRecord) -> list[str]:
    """A note on a training that ended before it was planned to: the time ran out, or a callback of the user's ended it."""
    asked, had = record.plan.epochs or 0, record.epochs or 0
    return [f"Trained for {had} of {asked} epochs"] if had < asked else []


def _sizes(path: Path) -> tuple[int, int]:
    """Bytes of an IR as it lies on disk, and compressed."""
    contents = [path.read_bytes(), path.with_suffix(".bin").read_bytes()]
    return sum(map(len, contents)), sum(len(zlib.compress(content, 6)) for content in contents)
