"""The structure of a small model, and records of trials that never ran."""

from __future__ import annotations

from autocompress.policy import Policy
from autocompress.record import Latency, Plan, State, TrialRecord
from autocompress.structure import FrozenGroup, Group, Layer, Structure

STRUCTURE = Structure(
    layers=(
        Layer("stem", "Conv2d", (32, 3, 3, 3), 1000),
        Layer("layer1.conv1", "Conv2d", (16, 32, 3, 3), 2000),
        Layer("layer1.conv2", "Conv2d", (32, 16, 3, 3), 2000),
        Layer("layer2.conv1", "Conv2d", (4, 32, 3, 3), 500),
        Layer("head", "Linear", (10, 32), 320),
    ),
    groups=(
        Group("stem", 32, ("stem", "layer1.conv2")),
        Group("layer1.conv1", 16, ("layer1.conv1",)),
        Group("layer2.conv1", 4, ("layer2.conv1",)),
    ),
    frozen=(FrozenGroup("head", "its channels are the model's output"),),
)
"""A residual network: the stem's channels are added to."""


def latency(ms: float) -> Latency:
    """A latency without noise, relative to a reference of 2 ms."""
    return Latency(ratio=ms / 2, ratio_low=ms / 2, ratio_high=ms / 2, reference_ms=2.0, samples=(ms / 2,))


def make_record(
    number: int = 0,
    accuracy: float = 0.9,
    ms: float = 1.0,
    *,
    policy: Policy | None = None,
    state: State = State.COMPLETE,
    source: str = "sampler",
    size: int = 1000,
) -> TrialRecord:
    """The record of a trial in any state; what a trial of that state lacks is left out."""
    record = TrialRecord(number=number, plan=Plan.of(policy or Policy({"stem": 0.5})), source=source, state=state)
    if state == State.COMPLETE:
        record.latency_trained, record.accuracy_valid = latency(ms), accuracy
        record.size_bytes, record.compressed_bytes = size, size // 2
    if state == State.OVER_BUDGET:
        record.latency_untrained = latency(ms)
    return record
