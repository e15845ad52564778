"""The outer loop of a search: what the sampler proposes, until the trials or the time run out."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

from autocompress import baselines
from autocompress.config import SearchConfig, validated
from autocompress.console import printing
from autocompress.errors import OutOfTimeError
from autocompress.finals import LONGEST, MOST_MODELS, Finals, Lengths
from autocompress.foresight import Foresight
from autocompress.front import eligible, front_of
from autocompress.policy import Policy
from autocompress.record import Plan, Stage, State, TrialRecord
from autocompress.result import Result
from autocompress.sampling import Sampling
from autocompress.sharing import Sharing, epoch_seconds, screening_in_words
from autocompress.strategy.proposals import Proposals
from autocompress.task import Task, absolute_reference, load_task
from autocompress.timed_run import TimedRun
from autocompress.watch import Watcher
from autocompress.workflow import Workflow

MAX_IDLE = 300
"""So many proposals in a row that end at the gate, or were tried before, mean that nothing is left to try."""

MOST_MEASURED, MEASURED_SHARE = 8, 0.15
"""Proposals whose latency is measured before one of them is fine-tuned, and the share of a fine-tuning that this may cost."""
UNIFORM_SHARE = 1 / 3
"""Of the time that is left, for the uniformly pruned baselines."""
FINAL = "final"
"""Source of a model of the front that was trained once more."""
FINAL_SHARE, LEAST_CANDIDATES = 0.5, 3
"""Of the time that is left, for the front's own training, after so many candidates at least."""
LOOKED_AT = (Stage.COMPRESS, Stage.EXPORT_UNTRAINED, Stage.MEASURE_UNTRAINED)


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
        max_time: for example "8m", from this call to its end: loading a task file, preparations and the final measurement
            included. Without either limit the search makes 40 trials.
        out: the run folder.
        resume: go on with the run in `out`, if there is one.
        watcher: told of progress; by default it is printed.
        **options: any other field of `SearchConfig`, for example `space="mixed-precision"`.

    Raises:
        UserError: something that was given cannot be used; nothing was changed.
        DiskFullError: the disk is full; the run folder is complete and can be resumed.
    """
    started = time.monotonic()
    data = {"out": str(out), "budget": latency_budget, "max_trials": max_trials, "max_time": max_time, **options}
    if isinstance(task, str | Path):
        data["task"] = absolute_reference(str(task))
        task = load_task(task)
    config = validated(SearchConfig, {key: value for key, value in data.items() if value is not None})
    if watcher is not None:
        return run_search(task, config, resume=resume, watcher=watcher, started=started)
    with printing() as shown:
        return run_search(task, config, resume=resume, watcher=shown, started=started)


def run_search(
    task: Task, config: SearchConfig, *, resume: bool = False, watcher: Watcher | None = None, started: float | None = None
) -> Result:
    """The same, for a configuration that is already there.

    Args:
        task: what is compressed.
        config: how.
        resume: go on with the run in its folder, if there is one.
        watcher: told of progress.
        started: `time.monotonic()` from which the time limit counts; by default now.
    """
    strategy: type[TimedRun] = STRATEGIES[config.strategy]
    return strategy(task, config, watcher or Watcher(), started).run(resume)


class Search(TimedRun):
    """A search: what the sampler proposes."""

    def _refuse_what_cannot_work(self) -> None:
        """A budget that nothing keeps; a study, or policies to start from, that cannot be read."""
        super()._refuse_what_cannot_work()
        self.proposals = Proposals(self.folder.file("study.db"), self.space, self.objectives, self.metric, self.budget_ms)
        foresight = Foresight(self.bench, self.space, self.prepared.fingerprint, self.watcher)
        self.sampling = Sampling(self.config, foresight, self.objectives, self.metric, self.budget_ms)
        _ = self.sampling.start

    def _run_baselines(self) -> None:
        """The dull alternatives first: the user's own deployment, INT8 after training, uniform pruning."""
        super()._run_baselines()
        known = {record.key for record in self.folder.records() if record.state == State.COMPLETE}
        least = (1 - UNIFORM_SHARE) * (self._seconds_left() or 0.0)
        for source, plan in baselines.uniform_baselines(self.bench.structure, self.space.steps):
            seconds = self._seconds_left()
            if plan.key not in known and seconds is not None and seconds - self._trial_seconds() < least:
                self.watcher.say(f"Skipped for lack of time: {source}")
                continue
            self.run_trial(plan, source)

    def _run_candidates(self) -> None:
        self._share()
        self.kept_back = self._seconds_for_the_front()
        try:
            self._try_candidates()
        except OutOfTimeError:
            if not self.kept_back:
                raise
            self.watcher.say("A candidate took too long and is left out; the rest of the time is for the front's own training")
        self.kept_back = 0.0
        words = screening_in_words(self.folder.records())
        if words:
            self.watcher.say(words)
        if self._trains_front:
            self._train_front()

    def _share(self) -> None:
        """Let candidates inherit from one training, if that pays."""
        self._allow()
        seconds, gate = self._seconds_left(), self._gate_ms
        sharing = Sharing(self.bench, self.space, self.folder, self.watcher, self.prepared.fingerprint, gate)
        self.runner.inheritance = sharing.inheritance(self.max_trials, seconds, self._trains_front)

    def _try_candidates(self) -> None:
        """What the sampler proposes, until nothing is left to try or to try it with."""
        records = [record for record in self.folder.records() if not record.is_final]
        open_records = [r for r in records if not r.is_baseline and self._is_open(r)]
        ended = [r for r in records if r not in open_records]
        self._allow()
        self.sampling.begin(self.proposals, ended, records, self._seconds_left())
        for record in open_records:
            if self._stop():
                return
            self._tell(self.run_trial(record.plan, record.source, self._gate_ms))
        idle = 0
        while not self._stop():
            point, source = self.proposals.ask(self._untrained_ms, self._measured_at_once())
            plan = Plan.of(self.space.policy(point))
            known = {record.key: record for record in self.folder.records()}
            record = known[plan.key] if plan.key in known else self.run_trial(plan, source, self._gate_ms)
            self._tell(record)
            idle = idle + 1 if plan.key in known or record.state == State.OVER_BUDGET else 0
            if idle >= min(MAX_IDLE, 2 * self.space.size + 20):
                self.watcher.say("Nothing new is left to try within the budget")
                return

    @property
    def _trains_front(self) -> bool:
        """Whether the front's models are trained once more: as asked, where candidates inherit, or where time is left for it.

        A loop of the user's own may do with the number of epochs what it likes.
        """
        asked = self.config.fine_tuning.final_epochs
        limited = self.config.time_limit_s is not None and self.task.fine_tune is None
        return bool(asked) or (asked is None and (self.runner.inheritance is not None or limited))

    def _seconds_for_the_front(self) -> float:
        """What candidates leave of the time: a share, but some candidates are tried, and no more than a front can use."""
        left = self._seconds_left()
        if left is None or not self._trains_front:
            return 0.0
        own = self.bench.tune_settings.epochs
        epoch = epoch_seconds(self.folder.records(), own)
        most = math.inf if epoch is None else MOST_MODELS * LONGEST * own * epoch
        return max(0.0, min(FINAL_SHARE * left, left - LEAST_CANDIDATES * self._trial_seconds(), most))

    def _train_front(self) -> None:
        """Train the models of the front once more, each by itself, from where a candidate starts."""
        skipped, groups = 0, self._groups_of_the_front()
        ended = {r.policy for r in self.folder.records() if r.is_final and r.state in (State.COMPLETE, State.FAILED)}
        for models in groups:
            waiting = [record for record in models if record.policy not in ended]
            while waiting and (final := self._finals().next(waiting, self._seconds_left())) is not None:
                self.run_trial(final.record.plan.model_copy(update={"epochs": final.epochs}), FINAL)
                waiting.remove(final.record)
            skipped += len(waiting)
        if skipped:
            self.watcher.say(f"No time to train {skipped} of {sum(map(len, groups))} models of the front once more")

    def _groups_of_the_front(self) -> list[list[TrialRecord]]:
        """What was tuned of the front, in the order in which it is worth a training: what keeps the limits first."""
        candidates = [r for r in self.folder.records() if r.state == State.COMPLETE and not r.is_final]
        kept, whole = (self._tuned_front(records) for records in (self._useful(candidates), candidates))
        return [*self._finals().promising_and_others(kept), [r for r in whole if r not in kept]]

    def _tuned_front(self, records: list[TrialRecord]) -> list[TrialRecord]:
        return [r for r in front_of(records, self.objectives, self.metric) if r.plan.tune and not r.is_baseline]

    def _useful(self, records: list[TrialRecord]) -> list[TrialRecord]:
        """What keeps the budget and the size. What has lost too much may win it back."""
        return eligible(records, self.budget_ms, None, None, self.metric, self.config.max_bytes)

    def _finals(self) -> Finals:
        """What is known now of the front's own trainings."""
        records = self.folder.records()
        complete = [r for r in records if r.state == State.COMPLETE]
        begun = {r.policy: r.plan.epochs for r in records if r.state == State.RUNNING and r.plan.epochs is not None}
        lengths = Lengths(self.bench.tune_settings.epochs, self.config.fine_tuning.final_epochs, begun)
        return Finals(complete, self._useful(complete), self.objectives, self.metric, lengths)

    def _tell(self, record: TrialRecord) -> None:
        if self.sampling.is_foreseen:
            self.sampling.foresight.observe([record])
        self.proposals.tell(record)

    def _untrained_ms(self, policy: Policy) -> float:
        return self.bench.untrained_latency(self.bench.candidate(policy)).ms

    def _measured_at_once(self) -> int:
        """How many proposals are measured before one is fine-tuned: what that costs is a small share of a fine-tuning."""
        tuned = [r for r in self.folder.records() if r.plan.tune and r.state == State.COMPLETE]
        if not tuned:
            return 1
        training = statistics.median(r.seconds.get(Stage.FINE_TUNE, 0.0) for r in tuned)
        looking = statistics.median(sum(r.seconds.get(stage, 0.0) for stage in LOOKED_AT) for r in tuned)
        return int(min(MOST_MEASURED, max(1.0, MEASURED_SHARE * training / max(looking, 1e-3))))

    def _is_open(self, record: TrialRecord) -> bool:
        """A trial that was killed, or ended at a gate that is now wider."""
        if record.state != State.OVER_BUDGET:
            return record.state == State.RUNNING
        gate = self._gate_ms
        return gate is None or (record.latency is not None and record.latency.ms <= gate)

    def _describe_candidates(self) -> None:
        self.watcher.say(
            f"{len(self.space.decisions)} decisions, {float(self.space.size):.3g} policies; "
            f"objectives: {', '.join(self.objectives)}"
        )


STRATEGIES: dict[str, type[TimedRun]] = {"search": Search, "workflow": Workflow}
