"""What every strategy has in common: baselines, candidates until the trials or the time run out, the front measured again."""

from __future__ import annotations

import time

from autocompress import baselines
from autocompress.config import SearchConfig
from autocompress.errors import ConfigError
from autocompress.front import front_of
from autocompress.record import Stage, State
from autocompress.result import Result
from autocompress.run import Run
from autocompress.sharing import Sharing, epoch_seconds, screening_in_words
from autocompress.target.meter import MAX_SECONDS
from autocompress.task import Task
from autocompress.watch import Watcher

FINAL = "final"
"""Source of a model of the front that was trained once more."""
DEFAULT_TRIALS = 40
LATEST = 3
"""Trials from which the next one's time is taken."""
FINAL_SECONDS = 5.0
"""Reserved from the time limit for the report, beside what measuring and scoring the front takes."""


def trial_limit(config: SearchConfig) -> int | None:
    """How many candidates to score: what was asked, or, of a search, 40 where no limit was given at all."""
    unlimited = config.max_trials is None and config.max_time is None
    return DEFAULT_TRIALS if unlimited and config.strategy == "search" else config.max_trials


class TimedRun(Run):
    """A run of many trials, in the order in which things happen."""

    def __init__(self, task: Task, config: SearchConfig, watcher: Watcher) -> None:
        super().__init__(task, config, watcher)
        self.max_trials = trial_limit(config)
        self.started = time.monotonic()

    def run(self, resume: bool) -> Result:
        """Run until there is nothing left to do, or the trials or the time are used up."""
        with self.opened(resume):
            self._describe()
            self._run_baselines()
            with self.folder.disk_guard():
                self._run_candidates()
                self._tune_front()
            self.finish()
        return Result(self.folder.path)

    def _refuse_what_cannot_work(self) -> None:
        """A budget that nothing keeps, a shared training where there can be none."""
        self.prepared.require_reachable(self.config)
        if self.config.fine_tuning.mode == "shared" and not self.bench.framework.can_share:
            remedy = "Set fine_tuning.mode to each or auto."
            raise ConfigError("A shared training is there for PyTorch models", self.bench.framework.name, remedy)
        if self.config.fine_tuning.mode == "shared" and self.task.fine_tune is not None:
            remedy = "Set fine_tuning.mode to each or auto, or leave Task(fine_tune=...) out."
            raise ConfigError("A shared training needs its own loop", "mode: shared beside the task's fine_tune", remedy)

    def _run_baselines(self) -> None:
        """The user's own deployment, and INT8 after training."""
        self.run_original(baselines.untrained_baselines(self.bench.structure, self.prepared.fingerprint.float_precision))

    def _run_candidates(self) -> None:
        """The strategy's own part."""
        raise NotImplementedError

    def _share(self) -> None:
        """Let candidates inherit from one training, if that pays."""
        seconds, gate = self._seconds_left(), self._gate_ms
        sharing = Sharing(self.bench, self.space, self.folder, self.watcher, self.prepared.fingerprint, gate)
        self.runner.inheritance = sharing.inheritance(self.max_trials, seconds)

    def _tune_front(self) -> None:
        """Train the models of the front once more, each by itself, from what it has inherited."""
        epochs = self.config.fine_tuning.final_epochs
        epochs = self.bench.tune_settings.epochs if epochs is None else epochs
        if self.runner.inheritance is None or not epochs:
            return
        words = screening_in_words(self.folder.records())
        if words:
            self.watcher.say(words)
        candidates = [r for r in self.folder.records() if r.state == State.COMPLETE and not r.is_final]
        front = [r for r in front_of(candidates, self.objectives, self.metric) if r.plan.tune and not r.is_baseline]
        for done, record in enumerate(front):
            seconds = self._seconds_left()
            if seconds is not None and seconds < self._own_tuning_seconds(epochs):
                self.watcher.say(f"No time to train {len(front) - done} of {len(front)} models of the front once more")
                return
            self.run_trial(record.plan.model_copy(update={"epochs": epochs}), FINAL)

    def _own_tuning_seconds(self, epochs: int) -> float:
        """What it takes to train a model of the front, told from the baselines."""
        epoch = epoch_seconds(self.folder.records(), self.bench.tune_settings.epochs)
        return self._trial_seconds() + epochs * (epoch or 0.0)

    def _seconds_left(self) -> float | None:
        """Until the final measurement has to begin; None without a limit."""
        if self.config.time_limit_s is None:
            return None
        return self.config.time_limit_s - (time.monotonic() - self.started) - self._final_seconds()

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
        """What the next trial will take: as long as the slowest of the last ones that were fine-tuned."""
        tuned = [r.total_seconds for r in self.folder.records() if r.plan.tune and r.state == State.COMPLETE]
        return max(tuned[-LATEST:], default=0.0)

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
        self._describe_candidates()
        for note in self.space.notes:
            say(note)

    def _describe_candidates(self) -> None:
        """What the strategy will try."""
