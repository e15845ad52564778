"""One trial and all that was measured of it, in stages.

`trials/NNNN/record.json` is the truth of a run; the CSV files and the study are derived from it.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from autocompress.policy import Policy


class State(StrEnum):
    """How a trial stands."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    OVER_BUDGET = "OVER_BUDGET"
    FAILED = "FAILED"


class Stage(StrEnum):
    """The stages of a trial, in order."""

    COMPRESS = "compress"
    EXPORT_UNTRAINED = "export_untrained"
    MEASURE_UNTRAINED = "measure_untrained"
    INHERIT = "inherit"
    FINE_TUNE = "fine_tune"
    EXPORT = "export"
    MEASURE = "measure"
    EVALUATE = "evaluate"


MEASURED_STAGES = (Stage.MEASURE_UNTRAINED, Stage.INHERIT, Stage.FINE_TUNE, Stage.MEASURE)
"""What a trial exists for; the seconds of all other stages are overhead."""


class Latency(BaseModel):
    """A latency relative to the reference model, measured interleaved with it.

    Attributes:
        ratio: median over rounds of candidate time / reference time.
        ratio_low, ratio_high: distribution-free 95 % interval of that median.
        reference_ms: the reference's own latency, fixed for the whole run. Milliseconds are the ratio times this.
        samples: the ratio of each round.
        precise: measuring stopped because the interval was short enough, not because the time was up.
        rounds_left_out: rounds that other load disturbed.
    """

    model_config = ConfigDict(frozen=True)

    ratio: float
    ratio_low: float
    ratio_high: float
    reference_ms: float
    samples: tuple[float, ...]
    precise: bool = True
    rounds_left_out: int = 0

    @property
    def ms(self) -> float:
        """Median latency in milliseconds."""
        return self.ratio * self.reference_ms

    @property
    def low_ms(self) -> float:
        """Lower end of the interval in milliseconds."""
        return self.ratio_low * self.reference_ms

    @property
    def high_ms(self) -> float:
        """Upper end of the interval in milliseconds."""
        return self.ratio_high * self.reference_ms


class Plan(BaseModel):
    """What a trial does: a policy, whether it is fine-tuned, and what differs from the run's other trials.

    Attributes:
        precision: the float precision; None: the target's.
        epochs: of fine-tuning, as planned for a model of the front; None: as all candidates are tuned.
    """

    model_config = ConfigDict(frozen=True)

    policy: dict[str, Any]
    tune: bool = True
    precision: str | None = None
    epochs: int | None = None

    @classmethod
    def of(cls, policy: Policy, tune: bool = True, precision: str | None = None) -> Plan:
        """The plan for a policy. A model that is not changed is not fine-tuned."""
        return cls(policy=policy.to_dict(), tune=tune and not policy.is_identity, precision=precision)

    @property
    def key(self) -> str:
        """The content key: trials with one key would give one result, if the time did not shorten their trainings."""
        parts = [Policy.from_dict(self.policy).to_json(), self.tune, self.precision]
        parts += [] if self.epochs is None else [self.epochs]
        return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:16]


class TrialRecord(BaseModel):
    """All that is known of one trial. Accuracies hold the task's metric, whatever it is.

    `accuracy_simulated` is that of a candidate which has inherited, before any training of its own, on a part of the validation
    data. `epochs` are those of its own training, 0 if it has inherited alone; None where the weights stay as they are.
    """

    model_config = ConfigDict(extra="forbid")

    number: int
    plan: Plan
    source: str
    state: State = State.RUNNING
    stage: Stage | None = None
    error: str | None = None
    done: list[Stage] = []
    seconds: dict[Stage, float] = {}
    epochs: int | None = None
    latency_untrained: Latency | None = None
    latency_trained: Latency | None = None
    latency_final: Latency | None = None
    accuracy_simulated: float | None = None
    accuracy_valid: float | None = None
    accuracy_test: float | None = None
    size_bytes: int | None = None
    compressed_bytes: int | None = None
    macs: int | None = None
    int8_share: float | None = None
    int8_macs_share: float | None = None
    notes: list[str] = []

    @property
    def policy(self) -> Policy:
        """The trial's policy."""
        return Policy.from_dict(self.plan.policy)

    @property
    def key(self) -> str:
        """The content key."""
        return self.plan.key

    @property
    def is_baseline(self) -> bool:
        """True for the dull alternatives."""
        return self.source.startswith("baseline:")

    @property
    def is_final(self) -> bool:
        """True for a model of the front that was trained once more, after the search."""
        return self.plan.epochs is not None

    @property
    def latency(self) -> Latency | None:
        """The most trustworthy latency so far: final, else trained, else untrained."""
        return self.latency_final or self.latency_trained or self.latency_untrained

    @property
    def total_seconds(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def overhead_seconds(self) -> float:
        """Seconds of all stages but fine-tuning and measuring."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage not in MEASURED_STAGES)
