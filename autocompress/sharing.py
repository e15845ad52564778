"""Whether the candidates of a search share one training, and what they inherit from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev

import numpy as np
from pydantic import BaseModel, ConfigDict

from autocompress.device import Fingerprint
from autocompress.errors import DiskFullError, OutOfTimeError, StageError, UserError, WorkerError
from autocompress.policy import Policy
from autocompress.record import Plan, Stage, TrialRecord
from autocompress.run_folder import RunFolder
from autocompress.shared import (
    FOLDER,
    PROBE_SAMPLES,
    SHORTEST_CYCLE,
    STATE,
    PolicySampler,
    Screen,
    SharedTuning,
    cycle_within,
    cycles_for,
)
from autocompress.space import SearchSpace
from autocompress.trial import Inheritance, Workbench
from autocompress.watch import Watcher

DECISION = f"{FOLDER}/decision.json"
PAYS_FROM = 16
"""Candidates for which one training is cheaper than their own: it and its check take about as long as a dozen."""
MOST_TIME = 1 / 3
"""Of the time that is left, for the shared training."""
FULL_STEP = 2.0
"""A step of the whole elastic model takes about as long as two of a candidate with half of the channels."""
CHECKED, PARTS = 3, 10
"""Policies that are tuned by themselves too, and parts of the validation data on which both are compared."""


class Decision(BaseModel):
    """What was decided; kept in the run folder, so that a resumed run does what it did.

    Attributes:
        shared: None while it is open.
        reason: in words.
        differences: of each candidate that was tuned by itself as well, by how much it is better on each part of the data.
    """

    model_config = ConfigDict(extra="forbid")

    shared: bool | None = None
    reason: str = ""
    differences: list[list[float]] = []


@dataclass
class Sharing:
    """Decides, trains and checks.

    Attributes:
        bench, space, folder, watcher: of the search.
        fingerprint: of the target.
        limit_ms: slower candidates are not worth training; None for no limit.
    """

    bench: Workbench
    space: SearchSpace
    folder: RunFolder
    watcher: Watcher
    fingerprint: Fingerprint
    limit_ms: float | None

    def inheritance(self, trials: int | None, seconds: float | None, trains_front: bool) -> Inheritance | None:
        """What candidates inherit from; None if each is to be tuned by itself. The reason is told.

        Args:
            trials: candidates that are to be scored; None without a limit.
            seconds: that are left for all of it; None without a limit.
            trains_front: the front's models are trained once more at the end.

        Raises:
            StageError: the shared training failed, and sharing was asked for.
        """
        mode = self.bench.config.fine_tuning.mode
        if mode == "each":
            return None
        decision = self._known() if mode == "auto" else Decision(shared=True, reason="fine_tuning.mode asks for it")
        if decision.shared is None:
            self._decide_beforehand(decision, trials, seconds, trains_front)
        found = None
        if decision.shared is not False:
            found = self._trained(decision, trials, seconds)
        if found is not None and decision.shared is None:
            self._decide_by_trying(decision, found)
        words = "Candidates inherit from one shared training" if decision.shared else "Every candidate is tuned by itself"
        self.watcher.say(f"{words}: {decision.reason}")
        return found if decision.shared else None

    def _known(self) -> Decision:
        path = self.folder.file(DECISION)
        return Decision.model_validate(self.folder.read_json(DECISION)) if path.is_file() else Decision()

    def _decide(self, decision: Decision, shared: bool | None, reason: str, for_good: bool = True) -> None:
        """Decide; a resumed run decides again on what is not for good."""
        decision.shared, decision.reason = shared, reason
        if for_good:
            self.folder.write_json(DECISION, decision.model_dump())

    def _decide_beforehand(self, decision: Decision, trials: int | None, seconds: float | None, trains_front: bool) -> None:
        """Decide against a shared training that would not pay, as far as that is known.

        Where the time is limited, what a shared training takes is missing in the training of the front, after which it hardly
        matters where its models started (`benchmarks/compare_live.py`). One that was begun is not given up for that. A resumed
        run may find otherwise, but for this: some candidates were tuned by themselves by then.
        """
        few = min(self.space.size, self.space.size if trials is None else trials)
        own = self._own_seconds
        is_begun = self.folder.file(STATE).is_file()
        better_spent = "the time is better spent on the front's own training"
        cycle = SHORTEST_CYCLE * (own or 0.0)
        reasons = {
            "the task has a training loop of its own": self.bench.task.fine_tune is not None,
            f"one training for all pays from about {PAYS_FROM} candidates, and there are {few}": few < PAYS_FROM,
            better_spent: seconds is not None and trains_front and not is_begun,
            "there was no time to find out how long one training for all would take": seconds is not None and own is None,
            f"one training for all would take {cycle:.0f} s, too long for the time that is left": seconds is not None
            and cycle > MOST_TIME * seconds,
        }
        reason = next((words for words, holds in reasons.items() if holds), None)
        if reason is not None:
            self._decide(decision, False, reason, for_good=reason == better_spent)

    @property
    def _own_seconds(self) -> float | None:
        """What as many epochs of the shared training take as a candidate's own tuning has; None before any was seen."""
        epochs = self.bench.tune_settings.epochs
        epoch = epoch_seconds(self.folder.records(), epochs)
        return None if epoch is None else epochs * FULL_STEP * epoch

    def _trained(self, decision: Decision, trials: int | None, seconds: float | None) -> Inheritance | None:
        """The shared training, finished; None where it failed and need not be.

        A dead process says nothing about the training: a resumed run goes on with it from its last epoch.
        """
        bench, settings = self.bench, self.bench.tune_settings
        screen = Screen(bench.framework, bench.task, PROBE_SAMPLES)
        most = None if seconds is None else MOST_TIME * seconds
        epochs = cycle_within(trials, most, self._own_seconds) * settings.epochs
        try:
            training = bench.framework.share(bench.task, bench.config.criterion, settings)
            state = SharedTuning(
                screen, training, self._sampler, epochs, self.folder, self.watcher, cycles_for(trials), most
            ).run()
        except (OutOfTimeError, DiskFullError, UserError):
            raise
        except Exception as error:  # the user's loss, metric or layers may raise anything
            failure = error if isinstance(error, StageError) else StageError(f"{type(error).__name__}: {error}")
            if decision.shared:
                raise failure from error
            self._decide(decision, False, f"the shared training failed: {failure}", not isinstance(error, WorkerError))
            return None
        self.watcher.say(f"The shared training is done after {state.seconds:.0f} s: {state.finished}")
        return Inheritance(training, screen, bench.config.fine_tuning.inherit_epochs)

    @cached_property
    def _sampler(self) -> PolicySampler:
        ratios = {d.subject: tuple(r for r in d.choices if r < 1) for d in self.space.decisions if d.kind == "prune"}
        predictor = self.bench.predictor(ratios, self.fingerprint, self.watcher.progress)
        limit = None if self.limit_ms is None else self.limit_ms / self.bench.reference_ms
        return PolicySampler(self.space, predictor.ratio, limit, self.bench.config.seed)

    def _decide_by_trying(self, decision: Decision, found: Inheritance) -> None:
        """Decide by some candidates that are tuned by themselves as well."""
        generator = np.random.default_rng((self.bench.config.seed, CHECKED))
        policies = [self._sampler.draw(generator) for _ in range(CHECKED)]
        whole = Screen(self.bench.framework, self.bench.task)
        for policy in policies[len(decision.differences) :]:
            decision.differences.append(self._differences(found, policy, whole))
            self._decide(decision, None, "")
        differences = [difference for of_one in decision.differences for difference in of_one]
        gain, noise = mean(differences), 2 * stdev(differences) / len(differences) ** 0.5
        words = f"tuned by themselves, {CHECKED} candidates gain {gain:+.4f} of {self.bench.task.scorer.name} over inheriting"
        self._decide(decision, gain <= noise, f"{words}, with a noise of {noise:.4f}")

    def _differences(self, found: Inheritance, policy: Policy, whole: Screen) -> list[float]:
        """By how much a candidate is better that is tuned by itself, on each part of the validation data."""
        framework, task, settings = self.bench.framework, self.bench.task, self.bench.tune_settings
        alone = self.bench.candidate(policy)
        framework.fine_tune(task, alone, settings, self.watcher.progress)
        heir = found.training.candidate(policy)
        framework.reestimate(task, heir)
        short = found.settings(Plan.of(policy), settings)
        if short.epochs:
            framework.fine_tune(task, heir, short, self.watcher.progress, found.training)
        return [a - b for a, b in zip(whole.gains(alone, PARTS), whole.gains(heir, PARTS), strict=True)]


def screening_in_words(records: Sequence[TrialRecord]) -> str | None:
    """How well scores in simulation foretell those of the deployed models; None where too few have both, or all the same."""
    from scipy.stats import spearmanr

    heirs = [r for r in records if None not in (r.accuracy_simulated, r.accuracy_valid) and Stage.FINE_TUNE not in r.done]
    both = np.array([(record.accuracy_simulated, record.accuracy_valid) for record in heirs], float)
    if len(both) < 3 or not np.ptp(both, 0).all():
        return None
    alike = spearmanr(both[:, 0], both[:, 1]).statistic
    return f"Simulated and deployed scores of {len(both)} candidates: rank correlation {alike:.2f}"


def epoch_seconds(records: Sequence[TrialRecord], epochs: int) -> float | None:
    """What an epoch of a candidate's own fine-tuning takes, told from the baselines; None before there are any."""
    found = [record.seconds[Stage.FINE_TUNE] for record in records if record.is_baseline and Stage.FINE_TUNE in record.done]
    return float(np.median(found)) / epochs if found else None
