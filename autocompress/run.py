"""What a search and a single compression have in common: an open run folder, trials in it, results from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from typing import Any

import numpy as np

from autocompress import baselines
from autocompress.bundle import bundled_samples, promise_of, write_bundle
from autocompress.config import Objective, Recorded, SearchConfig
from autocompress.errors import RunFolderError, TaskError
from autocompress.front import eligible, most_accurate, near_front
from autocompress.history import Settings
from autocompress.metrics import Metric
from autocompress.record import Plan, State, TrialRecord
from autocompress.report.page import write_report
from autocompress.report.tables import write_tables
from autocompress.result import Result
from autocompress.run_folder import RunFolder
from autocompress.setup import Prepared, closed_on_failure, prepare
from autocompress.space import preset_names
from autocompress.task import Task
from autocompress.trial import TrialRunner
from autocompress.watch import Watcher

USER = "user"
"""Source of a policy that a user gave."""
KNOWN = ("name", "identity", "fingerprint", "reference_ms", "landmarks")
"""What run.json has to tell for a run to be resumed."""
RECORDED_PACKAGES = (
    "autocompress",
    "openvino",
    "nncf",
    "optuna",
    "torch",
    "keras",
    "tensorflow",
    "numpy",
)


class Run:
    """A task, a configuration and the folder in which the trials of both are kept."""

    def __init__(self, task: Task, config: SearchConfig, watcher: Watcher) -> None:
        self.task, self.config, self.watcher = task, config, watcher
        self.metric: Metric = task.scorer
        self.folder = RunFolder(config.out)

    @contextmanager
    def opened(self, resume: bool) -> Iterator[None]:
        """Hold the folder while trials run in it. However it ends, what is on disk is complete."""
        self._require_free(resume)
        self.folder.create()
        with self.folder.locked():
            self._prepare()
            with closing(self.bench.framework):
                try:
                    yield
                finally:
                    self._write_results()

    def run_trial(self, plan: Plan, source: str, gate_ms: float | None = None) -> TrialRecord:
        """Run a plan, or what is left of it; `best` and the tables follow."""
        record = self.runner.run(plan, source, gate_ms)
        self._follow()
        self.watcher.trial(record, self.best)
        return record

    def run_original(self, plans: Sequence[tuple[str, Plan]]) -> None:
        """Run baselines, of which the first is the original.

        Raises:
            TaskError: the original itself cannot be exported, measured or scored.
        """
        for source, plan in plans:
            record = self.run_trial(plan, source)
            if source == baselines.ORIGINAL and record.state == State.FAILED:
                self.folder.discard(record)  # once the task is mended, it has to run again
                reason = f"a failure in {record.stage}: {record.error}"
                raise TaskError("The original model can be exported, measured and scored", reason)

    def finish(self, measuring_seconds: float | None = None) -> None:
        """Measure the front anew, side by side, and score it on test.

        The winners of many noisy measurements look better than they are.

        Args:
            measuring_seconds: at most, for all models together; by default 4 s for each.
        """
        finalists = self.finalists()
        self.watcher.final(finalists)
        self.runner.measure_again(finalists, measuring_seconds)
        if "test" in self.task.splits:
            for record in finalists:
                if record.accuracy_test is None:
                    record.accuracy_test = self.runner.score(record, "test")
                    self.folder.save(record)

    def finalists(self) -> list[TrialRecord]:
        """What could be on the front after another measurement, and the baselines."""
        complete = [r for r in self.folder.records() if r.state == State.COMPLETE and self.folder.has_model(r.number)]
        near = near_front(complete, self.objectives, self.metric)
        return near + [r for r in complete if r not in near and (r.is_baseline or r.source == USER)]

    @property
    def best(self) -> TrialRecord | None:
        """The most accurate model within the budget and the allowed drop, so far."""
        records = self.folder.records()
        original = next((r.accuracy_valid for r in records if r.source == baselines.ORIGINAL), None)
        records = [record for record in records if self.folder.has_model(record.number)]
        config = self.config
        kept = eligible(records, self.budget_ms, config.accuracy_drop, original, self.metric, config.max_bytes)
        return most_accurate(kept, self.metric)

    def _require_free(self, resume: bool) -> None:
        if self.folder.exists and not resume:
            known = self._known() or {}
            raise RunFolderError(
                "A new run starts in a folder of its own",
                f"{self.folder.path}, which holds a run of the task {known['name']!r} with {len(self.folder.records())} trials",
                "Add --resume to go on with it, or choose another --out.",
            )

    def _prepare(self) -> None:
        known = self._known()
        self.watcher.say("Looking at the model and the target")
        self.prepared: Prepared = prepare(self.task, self.config, known, self.watcher, self._time_left())
        self.bench, self.space = self.prepared.bench, self.prepared.space
        with closed_on_failure(self.bench.framework):
            self.budget_ms = self.prepared.budget_ms(self.config)
            self.objectives: Sequence[Objective] = self.config.objectives or self.space.spec.objectives
            self.folder.records()  # a damaged one ends here
            self.runner = TrialRunner(self.bench, self.folder, self.watcher)
            self._refuse_what_cannot_work()
            self._write_identity()

    def _time_left(self) -> float | None:
        """Seconds until a limit; None without one."""
        return None

    def _known(self) -> dict[str, Any] | None:
        """run.json of the run that is already there."""
        if not self.folder.exists:
            return None
        known = self.folder.read_json("run.json")
        if not isinstance(known, dict) or not set(KNOWN) <= set(known):
            raise RunFolderError("A run folder holds a complete run.json", f"{self.folder.path} without", "Choose another --out.")
        return known

    def _refuse_what_cannot_work(self) -> None:
        """The last moment to raise a UserError: from here on the run folder is written."""

    def _follow(self) -> None:
        """Let `best` and the tables follow the records, and drop the models that cannot be on the front any more."""
        records = self.folder.records()
        self._keep_best(self.best)
        if self.config.keep == "front":
            kept = {r.number for r in near_front(records, self.objectives, self.metric)}
            self.folder.drop_models(
                kept | {r.number for r in records if r.is_baseline or r.source == USER or r.state == State.RUNNING}
            )
        write_tables(self.folder, records, self.objectives, self.metric, self.budget_ms)

    def _keep_best(self, best: TrialRecord | None) -> None:
        """Write the bundle again where another trial is best now, or the same one is known better (measured again, on test)."""
        if best is None:
            self.folder.remove_best()
            return
        known = self.folder.read_json("best/promise.json") if self.folder.file("best/promise.json").is_file() else None
        if known != promise_of(best, self.folder.read_json("run.json")):
            self.folder.replace_best(best.number, lambda path: write_bundle(self.folder, best, path))

    def _write_results(self) -> None:
        self._follow()
        if any(record.state == State.COMPLETE for record in self.folder.records()):
            write_report(Result(self.folder.path))

    def _write_identity(self) -> None:
        """run.json and config.yaml; from here on the folder is a run."""
        prepared = self.prepared
        self.folder.write_json(
            "run.json",
            {
                "name": self.task.name,
                "identity": prepared.identity,
                "fingerprint": prepared.fingerprint.model_dump(mode="json"),
                "reference_ms": self.bench.reference_ms,
                "landmarks": vars(prepared.landmarks),
                "capabilities": prepared.capabilities.model_dump(mode="json") if prepared.capabilities else None,
                "budget_ms": self.budget_ms,
                "objectives": list(self.objectives),
                "preprocessing": self.task.preprocessing,
                "has_test": "test" in self.task.splits,
                "groups": {g.name: {"channels": g.channels, "layers": list(g.layers)} for g in self.bench.structure.groups},
                "notes": list(self.space.notes),
            },
        )
        framework = self.bench.framework
        original = {
            "framework": framework.name,
            "original": framework.architecture(self.task),
            "settings": Settings.of(self.task, self.config).model_dump(),
        }
        self.folder.write_json("original.json", original)
        recorded = Recorded(
            metric=self.metric.name,
            direction=self.metric.direction,
            fingerprint=prepared.fingerprint,
            versions=installed_versions(),
        )
        own_space = self.config.space not in preset_names()  # a file's path would not hold from another folder
        space = self.space.spec.model_dump(mode="json") if own_space else self.config.space
        resolved = self.config.model_copy(update={"recorded": recorded, "space": space})
        self.folder.write_text("config.yaml", resolved.to_yaml())
        self._write_samples()

    def _write_samples(self) -> None:
        with self.folder.disk_guard():
            samples: dict[str, Any] = bundled_samples(self.task.splits["valid"])
            np.savez(self.folder.file("samples.npz"), **samples)


def installed_versions() -> dict[str, str]:
    """Versions of what a result depends on, without importing any of it."""
    found = {}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
