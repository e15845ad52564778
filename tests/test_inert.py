"""What the probe says about a space: what is left out, why, and to which multiples channels are rounded."""

from __future__ import annotations

import probed
import pytest
from records import STRUCTURE

from autocompress.capabilities import Capabilities
from autocompress.policy import FLOAT
from autocompress.space import SearchSpace, build_space, load_space_spec
from autocompress.structure import Group, Layer, Structure

CAN = probed.capabilities()
WITH_SIZE = ["accuracy", "latency", "size"]


def space(rules: dict[str, object], can: Capabilities | None = CAN, objectives: list[str] | None = None) -> SearchSpace:
    return build_space(load_space_spec(rules), STRUCTURE, can, objectives)  # type: ignore[arg-type]


def choices(found: SearchSpace, kind: str) -> set[tuple[object, ...]]:
    return {decision.choices for decision in (*found.decisions, *found.fixed) if decision.kind == kind}


def test_low_bits_that_are_not_faster_are_left_out_with_one_line_each() -> None:
    found = space({"precision": [{"weights": ["float", 8, 4, 2]}]})
    assert choices(found, "bits") == {((FLOAT, FLOAT), (8, 8))}
    reason = "same latency as 8-bit on this device; they buy size, so they need --objectives accuracy,latency,size (all)"
    assert found.notes == (f"4-bit weights: {reason}", f"2-bit weights: {reason}")


@pytest.mark.parametrize("objective", ["size", "compressed_size"])
def test_low_bits_stay_where_size_counts(objective: str) -> None:
    found = space({"precision": [{"weights": [8, 4, 2]}]}, objectives=["accuracy", "latency", objective])
    assert choices(found, "bits") == {((8, 8), (4, 8), (2, 8))}
    assert found.notes == ()


def test_the_spaces_own_objectives_count_where_no_others_are_given() -> None:
    assert choices(space({"objectives": WITH_SIZE, "precision": [{"weights": [8, 4]}]}), "bits") == {((8, 8), (4, 8))}


def test_low_activations_buy_no_size() -> None:
    found = space({"precision": [{"weights": [8], "activations": [8, 4]}]}, objectives=WITH_SIZE)
    assert choices(found, "bits") == {((8, 8),)}
    assert "4-bit activations: not faster than 8-bit on this device" in found.notes[0]


@pytest.mark.parametrize(("speedup", "stays"), [(4.0, True), (1.9, False)])
def test_binary_layers_stay_where_they_pay(speedup: float, stays: bool) -> None:
    found = space({"precision": [{"weights": [8, 1], "activations": [8, 1]}]}, probed.capabilities(binary=speedup))
    convolutions = next(d.choices for d in (*found.decisions, *found.fixed) if d.subject == "layer1.conv1")
    assert ((1, 1) in convolutions) == stays


@pytest.mark.parametrize(
    ("speedup", "objectives", "stays"), [(1.0, None, False), (1.5, None, True), (1.0, ["compressed_size"], True)]
)
def test_zeros_stay_where_they_buy_something(speedup: float, objectives: list[str] | None, stays: bool) -> None:
    wanted = ["accuracy", "latency", *objectives] if objectives else None
    found = space({"sparsity": [{"levels": [0, 0.9]}]}, probed.capabilities(zeros=speedup), wanted)
    assert choices(found, "sparsity") == ({(0, 0.9)} if stays else set())
    assert bool(found.notes) != stays


def test_where_8_bits_saturate_7_are_used() -> None:
    found = space({"precision": [{"weights": ["float", 8]}]}, probed.capabilities(numerics=probed.SATURATING))
    assert choices(found, "bits") == {((FLOAT, FLOAT), (7, 8))}
    assert "7-bit grids are used" in found.notes[0]


@pytest.mark.parametrize("step", [1, 8, 16])
def test_channels_are_rounded_to_the_probed_step(step: int) -> None:
    found = space({"pruning": [{"ratios": [0, 0.25, 0.5, 0.75]}]}, probed.capabilities(step=step))
    channels = {group.name: group.channels for group in STRUCTURE.groups}
    kept = {round(channels[d.subject] * (1 - ratio)) for d in found.decisions for ratio in d.choices if ratio}
    assert kept
    assert all(count % step == 0 for count in kept)
    assert any(f"multiples of {step}" in note for note in found.notes)


def test_a_step_in_the_file_wins_over_the_probe() -> None:
    found = space({"channel_step": 4, "pruning": [{"ratios": [0, 0.5]}]}, probed.capabilities(step=16))
    assert set(found.steps.values()) == {4}


def test_grouped_convolutions_are_rounded_per_group() -> None:
    layer = Layer("grouped", "Conv2d", (64, 16, 3, 3), 1, groups=4)
    structure = Structure((layer,), (Group("grouped", 64, ("grouped",)),))
    found = build_space(load_space_spec({"pruning": [{"ratios": [0, 0.5]}]}), structure, probed.capabilities(step=8))
    assert found.steps == {"grouped": 32}


def test_nothing_is_left_out_without_a_probe() -> None:
    rules = {"pruning": [{"ratios": [0, 0.5]}], "precision": [{"weights": [8, 4, 2]}], "sparsity": [{"levels": [0, 0.5]}]}
    found = space(rules, None)
    assert choices(found, "bits") == {((8, 8), (4, 8), (2, 8))}
    assert choices(found, "sparsity") == {(0, 0.5)}
    assert set(found.steps.values()) == {8}
