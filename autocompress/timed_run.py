"""What every strategy has in common: baselines, candidates until the trials or the time run out, the front measured again."""

from __future__ import annotations

import time

from autocompress import baselines
from autocompress.config import SearchConfig
from autocompress.errors import ConfigError, OutOfTimeError
from autocompress.record import Plan, Stage, State, TrialRecord
from autocompress.result import Result
from autocompress.run import Run
from autocompress.target.meter import MAX_SECONDS
from autocompress.task import Task
from autocompress.timekeeping import Clock, Timekeeper
from autocompress.watch import Watcher

DEFAULT_TRIALS = 40
LATEST = 3
"""Trials from which the next one's time is taken."""
FINAL_SECONDS = 5.0
"""Reserved from the time limit for the report, beside what measuring and scoring the front takes."""
MEASURING_SHARE = 0.15
"""Of the time limit, for measuring the front again; less precise where that is not enough."""
AFTER_TRAINING = (Stage.EXPORT, Stage.MEASURE, Stage.EVALUATE)


def trial_limit(config: SearchConfig) -> int | None:
    """How many candidates to score: what was asked, or, of a search, 40 where no limit was given at all."""
    unlimited = config.max_trials is None and config.max_time is None
    return DEFAULT_TRIALS if unlimited and config.strategy == "search" else config.max_trials


class TimedRun(Run):
    """A run of many trials, in the order in which things happen."""

    def __init__(self, task: Task, config: SearchConfig, watcher: Watcher, started: float | None = None) -> None:
        self.timekeeper = Timekeeper(watcher)
        super().__init__(task, config, self.timekeeper)
        self.max_trials = trial_limit(config)
        self.clock = Clock(config.time_limit_s, time.monotonic() if started is None else started)
        self.kept_back = 0.0
        """Seconds that candidates have to leave."""

    def run(self, resume: bool) -> Result:
        """Run until there is nothing left to do, or the trials or the time are used up."""
        with self.opened(resume):
            self._describe()
            try:
                self._run_baselines()
                with self.folder.disk_guard():
                    self._run_candidates()
            except OutOfTimeError:
                self.watcher.say("The time is up before the end of a training, which is left out; a resumed run goes on with it")
            self.finish(self._measuring_seconds(len(self.finalists())))
        return Result(self.folder.path)

    def run_trial(self, plan: Plan, source: str, gate_ms: float | None = None) -> TrialRecord:
        """Run a plan; what would be trained past the time limit is shortened, or left unfinished.

        Raises:
            OutOfTimeError: that is the case.
        """
        self._allow()
        return super().run_trial(plan, source, gate_ms)

    def _refuse_what_cannot_work(self) -> None:
        """A budget that nothing keeps, a shared training where there can be none."""
        self.prepared.require_reachable(self.config)
        if self.config.fine_tuning.mode == "shared" and self.task.fine_tune is not None:
            remedy = "Set fine_tuning.mode to each or auto, or leave Task(fine_tune=...) out."
            raise ConfigError("A shared training needs its own loop", "mode: shared beside the task's fine_tune", remedy)

    def _run_baselines(self) -> None:
        """The user's own deployment, and INT8 after training."""
        self.run_original(baselines.untrained_baselines(self.bench.structure, self.prepared.fingerprint.float_precision))

    def _allow(self) -> None:
        """Let what takes long go on until the final measurement has to begin, less what follows a training."""
        seconds, records = self._seconds_left(), self.folder.records()
        after = max((sum(r.seconds.get(stage, 0.0) for stage in AFTER_TRAINING) for r in records), default=0.0)
        self.timekeeper.allow(None if seconds is None else seconds - after)
        self.runner.deadline = self.timekeeper.deadline

    def _run_candidates(self) -> None:
        """The strategy's own part."""
        raise NotImplementedError

    def _time_left(self) -> float | None:
        return self.clock.left

    def _seconds_left(self) -> float | None:
        """Until the final measurement, or what is kept back before it, has to begin; None without a limit."""
        left = self.clock.left
        return None if left is None else left - self._final_seconds() - self.kept_back

    @property
    def _gate_ms(self) -> float | None:
        return None if self.budget_ms is None else self.budget_ms * (1 + self.config.gate_slack)

    def _stop(self) -> bool:
        """True when the trials are used up, or the next one would not end in time."""
        ended = [r for r in self.folder.records() if r.state in (State.COMPLETE, State.FAILED)]
        tuned = [r for r in ended if not r.is_baseline and not r.is_final]
        left = None if self.max_trials is None else self.max_trials - len(tuned)
        seconds = self._seconds_left()
        self.watcher.left(left, seconds)
        return (left is not None and left <= 0) or (seconds is not None and seconds < self._trial_seconds())

    def _trial_seconds(self) -> float:
        """What the next trial will take: as long as the slowest of the last ones that were fine-tuned as it will be."""
        tuned = [r.total_seconds for r in self.folder.records() if r.plan.tune and r.state == State.COMPLETE and not r.is_final]
        return max(tuned[-LATEST:], default=0.0)

    def _final_seconds(self) -> float:
        """What measuring and scoring the front will take."""
        finalists = self.finalists()
        scoring = sum(r.seconds.get(Stage.EVALUATE, 0.0) for r in finalists if r.accuracy_test is None)
        return FINAL_SECONDS + (self._measuring_seconds(len(finalists)) or 0.0) + self._test_share * scoring

    def _measuring_seconds(self, models: int) -> float | None:
        """For measuring so many models again, at most; None without a limit."""
        limit = self.clock.limit_s
        return None if limit is None else min(MAX_SECONDS * models, MEASURING_SHARE * limit)

    @property
    def _test_share(self) -> float:
        """How many times as long as on the validation data scoring takes on the test data."""
        lengths = [self.task.splits[name].length if name in self.task.splits else 0 for name in ("test", "valid")]
        test, valid = lengths
        return 1.0 if test is None or not valid else test / valid

    def _describe(self) -> None:
        resumed = len(self.folder.records())
        say = self.watcher.say
        if resumed:
            say(f"Resuming with {resumed} trials on disk")
        say(self.prepared.landmarks.in_words(self.prepared.fingerprint.float_precision))
        say("No budget" if self.budget_ms is None else f"Budget {self.config.budget}: {self.budget_ms:.4g} ms")
        self._describe_candidates()
        for note in self.space.notes:
            say(note)

    def _describe_candidates(self) -> None:
        """What the strategy will try."""
