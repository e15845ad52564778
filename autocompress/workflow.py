"""The workflow that is recommended for OpenVINO: INT8 after training, then INT8 fine-tuned, then pruning and INT8 fine-tuned.

Each step is taken only if the one before misses the allowed accuracy drop or the budget, and only if it can help:

    INT8 after training     within both      done
                            over the budget  pruning and INT8, fine-tuned: of the least pruning whose latency fits, then done
                            less accurate    INT8, fine-tuned: the same graph and latency, other numbers, then done
"""

from __future__ import annotations

from autocompress import baselines
from autocompress.budget import Drop
from autocompress.errors import ConfigError
from autocompress.front import within_budget
from autocompress.global_mode import GlobalMode, found_before
from autocompress.policy import Policy
from autocompress.record import Plan, State, TrialRecord
from autocompress.timed_run import TimedRun

QAT, PRUNE_QAT = "workflow:qat", "workflow:prune+qat"
STEPS = 2
"""That are fine-tuned, at most."""
TITLES = {
    baselines.INT8: "INT8 after training",
    QAT: "INT8, fine-tuned",
    PRUNE_QAT: "pruning and INT8, fine-tuned",
}


class Workflow(TimedRun):
    """A run of at most two fine-tuned trials."""

    def _refuse_what_cannot_work(self) -> None:
        """A budget that nothing keeps, a space that decides on more than pruning."""
        super()._refuse_what_cannot_work()
        self.mode = GlobalMode(self.bench, self.space, self.prepared.fingerprint, self.watcher)
        others = sorted({decision.kind for decision in self.space.decisions if decision.kind != "prune"})
        if others or not self.mode.base.layers:
            received = f"decisions on {' and '.join(others)}" if others else "no bits"
            remedy = "Use int8-prune, int8, or a space with a single choice of bits for each layer."
            raise ConfigError("The space of a workflow fixes the bits of layers and decides on pruning alone", received, remedy)

    def _run_candidates(self) -> None:
        records = {record.source: record for record in self.folder.records()}
        self.original_score = records[baselines.ORIGINAL].accuracy_valid or 0.0
        source, record = baselines.INT8, records[baselines.INT8]
        while (step := self._step_after(source, record)) is not None:
            if not self._is_finished(step) and self._stop():
                self.watcher.say(f"No trials or time left for {TITLES[step]}")
                return
            source, record = step, self.run_trial(Plan.of(self._policy(step)), step, self._gate_ms)

    def _step_after(self, source: str, record: TrialRecord) -> str | None:
        """What is tried next; the decision is said in a line with its figures."""
        fits = self.budget_ms is None or within_budget(record, self.budget_ms)
        accurate = record.accuracy_valid is not None and self._drop.allows(
            record.accuracy_valid, self.original_score, self.metric
        )
        step = None
        if not fits and source != PRUNE_QAT:
            step = PRUNE_QAT
        elif not accurate and source == baselines.INT8:
            step = QAT
        if record.state == State.COMPLETE and fits and accurate:
            verdict = "done"
        else:
            verdict = f"next: {TITLES[step]}" if step else "no step kept the accuracy and the budget; see the front"
        self.watcher.say(f"Workflow, {TITLES[source]}: {self._figures(record, accurate=accurate, fits=fits)} → {verdict}")
        return step

    def _figures(self, record: TrialRecord, *, accurate: bool, fits: bool) -> str:
        if record.state == State.FAILED:
            return f"failed in {record.stage}"
        limit = self._drop.limit(self.original_score, self.metric)
        words = []
        if record.accuracy_valid is not None:
            words.append(f"{self.metric.name} {record.accuracy_valid:.4f} {'kept' if accurate else 'missed'} (limit {limit:.4f})")
        if record.latency is not None:
            budget = "" if self.budget_ms is None else f" {'kept' if fits else 'missed'} (budget {self.budget_ms:.4g} ms)"
            words.append(f"{record.latency.ms:.4g} ms{budget}")
        return ", ".join(words)

    def _policy(self, step: str) -> Policy:
        if step == QAT:
            return Policy({}, self.mode.base.layers)
        assert self.budget_ms is not None
        return self.mode.for_latency(self.budget_ms, self.folder)

    def _is_finished(self, step: str) -> bool:
        """True where a resumed run has the step's trial already, whatever its limits are now."""
        policy = self._policy(step) if step == QAT else found_before(self.folder, self.budget_ms or 0.0)
        complete = {record.key for record in self.folder.records() if record.state == State.COMPLETE}
        return policy is not None and Plan.of(policy).key in complete

    @property
    def _drop(self) -> Drop:
        assert self.config.accuracy_drop is not None  # the configuration sees to it
        return self.config.accuracy_drop

    def _describe_candidates(self) -> None:
        self.watcher.say(f"Workflow: {', then '.join(TITLES.values())}; allowed accuracy drop {self.config.max_accuracy_drop}")
