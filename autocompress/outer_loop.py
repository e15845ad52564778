"""The outer loop: baselines, then candidates until the trials or the time run out, then the front measured again."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from autocompress import baselines
from autocompress.config import SearchConfig, validated
from autocompress.console import printing
from autocompress.record import Plan, Stage, State, TrialRecord
from autocompress.result import Result
from autocompress.run import Run
from autocompress.strategy.proposals import Proposals
from autocompress.target.meter import MAX_SECONDS
from autocompress.task import Task, absolute_reference, load_task
from autocompress.watch import Watcher

DEFAULT_TRIALS = 40
MAX_IDLE = 300
"""So many proposals in a row that end at the gate, or were tried before, mean that nothing is left to try."""
FINAL_SECONDS = 5.0
"""Reserved from the time limit for the report, beside what measuring and scoring the front takes."""


def search(
    task: Task | str | Path,
    *,
    latency_budget: str | None = None,
    max_trials: int | None = None,
    max_time: str | None = None,
    out: str | Path = "runs/search",
    resume: bool = False,
    watcher: Watcher | None = None,
    **options: Any,
) -> Result:
    """Search for models on the accuracy–latency front of a task.

    Args:
        task: a Task, or the path of a file that holds one.
        latency_budget: for example "0.25ms", "50%" (of the original) or "70% of int8".
        max_trials: candidates to score; over-budget ones end early and are not counted.
        max_time: for example "8m", final measurement included. Without either limit the search makes 40 trials.
        out: the run folder.
        resume: go on with the run in `out`, if there is one.
        watcher: told of progress; by default it is printed.
        **options: any other field of `SearchConfig`, for example `space="mixed-precision"`.

    Raises:
        UserError: something that was given cannot be used; nothing was changed.
        DiskFullError: the disk is full; the run folder is complete and can be resumed.
    """
    data = {"out": str(out), "budget": latency_budget, "max_trials": max_trials, "max_time": max_time, **options}
    if isinstance(task, str | Path):
        data["task"] = absolute_reference(str(task))
        task = load_task(task)
    config = validated(SearchConfig, {key: value for key, value in data.items() if value is not None})
    if watcher is not None:
        return run_search(task, config, resume=resume, watcher=watcher)
    with printing() as shown:
        return run_search(task, config, resume=resume, watcher=shown)


def run_search(task: Task, config: SearchConfig, *, resume: bool = False, watcher: Watcher | None = None) -> Result:
    """The same, for a configuration that is already there."""
    return Search(task, config, watcher or Watcher()).run(resume)


def trial_limit(config: SearchConfig) -> int | None:
    """How many candidates to score: what was asked, or 40 where no limit was given at all."""
    return DEFAULT_TRIALS if config.max_trials is None and config.max_time is None else config.max_trials


class Search(Run):
    """One search, in the order in which things happen."""

    def __init__(self, task: Task, config: SearchConfig, watcher: Watcher) -> None:
        super().__init__(task, config, watcher)
        self.max_trials = trial_limit(config)
        self.started = time.monotonic()

    def run(self, resume: bool) -> Result:
        """Run until the trials or the time are used up."""
        with self.opened(resume):
            self._describe()
            self._run_baselines()
            with self.folder.disk_guard():
                self._run_candidates()
            self.finish()
        return Result(self.folder.path)

    def _refuse_what_cannot_work(self) -> None:
        """A budget that nothing keeps, a study that cannot be read."""
        self.prepared.require_reachable(self.config)
        seed = self.config.seed + len(self.folder.records())
        self.proposals = Proposals(self.folder.file("study.db"), self.space, self.objectives, self.metric, self.budget_ms, seed)

    def _run_baselines(self) -> None:
        """The dull alternatives first: the user's own deployment, INT8 after training, uniform pruning."""
        structure, steps = self.bench.structure, self.space.steps
        self.run_original(baselines.untrained_baselines(structure, self.prepared.fingerprint.float_precision))
        for source, plan in baselines.uniform_baselines(structure, steps):
            self.run_trial(plan, source)

    def _run_candidates(self) -> None:
        records = self.folder.records()
        open_records = [r for r in records if not r.is_baseline and self._is_open(r)]
        self.proposals.begin(r for r in records if r not in open_records)
        for record in open_records:
            if self._stop():
                return
            self.proposals.tell(self.run_trial(record.plan, record.source, self._gate_ms))
        idle = 0
        while not self._stop():
            point, source = self.proposals.ask()
            plan = Plan.of(self.space.policy(point))
            known = {record.key: record for record in self.folder.records()}
            record = known[plan.key] if plan.key in known else self.run_trial(plan, source, self._gate_ms)
            self.proposals.tell(record)
            idle = idle + 1 if plan.key in known or record.state == State.OVER_BUDGET else 0
            if idle >= min(MAX_IDLE, 2 * self.space.size + 20):
                self.watcher.say("Nothing new is left to try within the budget")
                return

    def _is_open(self, record: TrialRecord) -> bool:
        """A trial that was killed, or ended at a gate that is now wider."""
        if record.state != State.OVER_BUDGET:
            return record.state == State.RUNNING
        gate = self._gate_ms
        return gate is None or (record.latency is not None and record.latency.ms <= gate)

    @property
    def _gate_ms(self) -> float | None:
        return None if self.budget_ms is None else self.budget_ms * (1 + self.config.gate_slack)

    def _stop(self) -> bool:
        """True when the trials are used up, or the next one would not end in time."""
        tuned = [r for r in self.folder.records() if not r.is_baseline and r.state in (State.COMPLETE, State.FAILED)]
        left = None if self.max_trials is None else self.max_trials - len(tuned)
        seconds = None
        if self.config.time_limit_s is not None:
            seconds = self.config.time_limit_s - (time.monotonic() - self.started) - self._final_seconds()
        self.watcher.left(left, seconds)
        return (left is not None and left <= 0) or (seconds is not None and seconds < self._trial_seconds())

    def _trial_seconds(self) -> float:
        """What the next trial will take: the median of those that were fine-tuned."""
        return statistics.median(
            [r.total_seconds for r in self.folder.records() if r.plan.tune and r.state == State.COMPLETE] or [0.0]
        )

    def _final_seconds(self) -> float:
        """What measuring and scoring the front will take."""
        return FINAL_SECONDS + sum(MAX_SECONDS + r.seconds.get(Stage.EVALUATE, 0.0) for r in self.finalists())

    def _describe(self) -> None:
        resumed = len(self.folder.records())
        say = self.watcher.say
        if resumed:
            say(f"Resuming with {resumed} trials on disk")
        say(self.prepared.landmarks.in_words(self.prepared.fingerprint.float_precision))
        say("No budget" if self.budget_ms is None else f"Budget {self.config.budget}: {self.budget_ms:.4g} ms")
        say(
            f"{len(self.space.decisions)} decisions, {float(self.space.size):.3g} policies; "
            f"objectives: {', '.join(self.objectives)}"
        )
        for note in self.space.notes:
            say(note)
