from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import STRUCTURE

from autocompress.errors import PolicyError, SpaceError, UserError
from autocompress.policy import FLOAT, LayerPolicy, Policy
from autocompress.space import (
    PRESETS,
    SearchSpace,
    build_space,
    load_space_spec,
    preset_names,
    require_known_names,
    round_ratio,
    uniform_policy,
)
from autocompress.structure import Structure

SHIPPED = ["full", "int8", "int8-prune", "mixed-precision", "sparse"]
GROUPS = ["stem", "layer1.conv1", "layer2.conv1"]
LAYERS = ["stem", "layer1.conv1", "layer1.conv2", "layer2.conv1", "head"]
INT8 = LayerPolicy(8, 8)


def build(**spec: Any) -> SearchSpace:
    return build_space(load_space_spec(spec), STRUCTURE)


def choices(space: SearchSpace) -> dict[str, tuple[Any, ...]]:
    """Name of each decision, fixed ones included → its choices."""
    return {decision.name: decision.choices for decision in (*space.decisions, *space.fixed)}


def subjects(space: SearchSpace) -> list[str]:
    return [decision.subject for decision in (*space.decisions, *space.fixed)]


EVERYTHING = build(
    channel_step=4,
    pruning=[{"ratios": [0, 0.25, 0.5, 0.75]}],
    precision=[{"weights": ["float", 8, 4, 3, 2], "activations": ["float", 8]}, {"layers": "head", "weights": [8]}],
    sparsity=[{"exclude": "stem", "levels": [0, 1 / 3, 0.5, 2 / 3]}],
)


def test_the_presets_are_all_there() -> None:
    assert preset_names() == SHIPPED
    assert {path.name for path in PRESETS.iterdir() if path.is_file()} == {f"{name}.yaml" for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_preset_builds_and_says_what_it_is_for(name: str) -> None:
    space = build_space(load_space_spec(name), STRUCTURE)
    assert space.spec.description
    assert space.size > 1
    assert not space.policy(space.level(1.0)).is_identity


@pytest.mark.parametrize("name", SHIPPED)
def test_every_preset_starts_with_the_least_and_ends_with_the_most_compression(name: str) -> None:
    space = build_space(load_space_spec(name), STRUCTURE)
    least, most = space.policy(space.level(0.0)), space.policy(space.level(1.0))
    assert not least.pruning
    assert all(layer.sparsity == 0 and layer.weights in (FLOAT, 8) for layer in least.layers.values())
    assert most != least
    assert all(layer.weights != FLOAT for layer in most.layers.values())


def test_the_default_prunes_groups_and_keeps_every_layer_in_int8() -> None:
    space = build_space(load_space_spec("int8-prune"), STRUCTURE)
    assert {decision.kind for decision in space.decisions} == {"prune"}
    assert all(space.policy(space.level(fraction)).layer(name) == INT8 for fraction in (0, 1) for name in LAYERS)


@pytest.mark.parametrize("source", ["int-8", "", "nowhere.yaml", "."])
def test_an_unknown_preset_is_answered_with_the_known_ones(source: str) -> None:
    with pytest.raises(SpaceError, match=r"preset or a YAML file.*Presets: full, int8, int8-prune, mixed-precision, sparse"):
        load_space_spec(source)


def test_a_space_of_ones_own_file(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("precision: [{layers: head, weights: [float, 8]}]")
    assert subjects(build_space(load_space_spec(str(path)), STRUCTURE)) == ["head"]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("precision: [")
    with pytest.raises(UserError, match=r"search-space file is YAML; got .*space\.yaml"):
        load_space_spec(str(path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"prunning": []}, "Unknown key 'prunning'"),
        ({"pruning": [{"ratios": [0.5], "layers": "*"}]}, r"Unknown key 'pruning\.0\.layers'"),
        ({"pruning": [{"groups": "*"}]}, r"pruning\.0\.ratios"),
        ({"pruning": [{"ratios": []}]}, "pruning ratios lie in"),
        ({"pruning": [{"ratios": [1.1]}]}, "pruning ratios lie in"),
        ({"pruning": [{"ratios": [-0.1]}]}, "pruning ratios lie in"),
        ({"pruning": [{"ratios": [float("nan")]}]}, "pruning ratios lie in"),
        ({"pruning": [{"ratios": ["half"]}]}, "ratios"),
        ({"precision": [{"weights": [5]}]}, "weights are among float, 8, 7, 4, 3, 2, 1"),
        ({"precision": [{"weights": []}]}, "weights are among"),
        ({"precision": [{"weights": [8], "activations": [7]}]}, "activations are among float, 8, 4, 1"),
        ({"sparsity": [{"levels": [1.0]}]}, "sparsity levels lie in"),
        ({"sparsity": [{"levels": ["4:2"]}]}, 'patterns in quotes such as "2:4"'),
        ({"sparsity": [{"levels": [124]}]}, 'patterns in quotes such as "2:4"'),  # 2:4 without quotes, as YAML reads it
        ({"channel_step": 0}, "channel_step"),
        ({"objectives": ["speed"]}, "objectives"),
        ({"objectives": ["latency", "accuracy"]}, "objectives"),
        ({"objectives": ["accuracy"]}, "objectives"),
        ({"objectives": ["accuracy", "latency", "latency"]}, "objectives"),
    ],
)
def test_a_space_that_cannot_be_meant_is_refused_by_key(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        load_space_spec(spec)


@pytest.mark.parametrize(
    ("patterns", "exclude", "found"),
    [
        ("*", [], LAYERS),
        ("layer1.*", [], ["layer1.conv1", "layer1.conv2"]),
        ("*.conv1", [], ["layer1.conv1", "layer2.conv1"]),
        ("layer[12].conv1", [], ["layer1.conv1", "layer2.conv1"]),
        ("re:layer[12].*1", [], ["layer1.conv1", "layer2.conv1"]),
        ("type:Linear", [], ["head"]),
        ("type:Conv*", [], LAYERS[:4]),
        (["head", "stem"], [], ["stem", "head"]),
        ("*", "head", LAYERS[:4]),
        ("*", ["type:Linear", "stem"], LAYERS[1:4]),
        ("layer1.*", "re:.*2", ["layer1.conv1"]),
    ],
)
def test_patterns_choose_layers(patterns: Any, exclude: Any, found: list[str]) -> None:
    rule = {"layers": patterns, "exclude": exclude, "weights": ["float", 8]}
    assert subjects(build(precision=[rule])) == found


def test_a_regular_expression_fits_the_whole_name() -> None:
    with pytest.raises(SpaceError, match="matches at least one"):
        build(precision=[{"layers": "re:layer1", "weights": ["float", 8]}])


def test_patterns_choose_groups_by_name_and_by_the_type_of_their_layer() -> None:
    assert (
        subjects(build(channel_step=1, pruning=[{"groups": "type:Conv2d", "exclude": "stem", "ratios": [0, 0.5]}])) == GROUPS[1:]
    )


@pytest.mark.parametrize("pattern", ["layer3.*", "Stem", "re:conv", "type:LSTM", ""])
@pytest.mark.parametrize("place", ["layers", "exclude"])
def test_a_pattern_that_matches_nothing_is_answered_with_the_names(pattern: str, place: str) -> None:
    with pytest.raises(SpaceError, match=r"at least one of the model's layers; got .*Layers: stem, layer1\.conv1, .*head"):
        build(precision=[{"layers": "*", "weights": [8], place: pattern}])


def test_a_layer_is_no_group() -> None:
    with pytest.raises(SpaceError, match=r"at least one of the model's groups.*Groups: stem, layer1\.conv1, layer2\.conv1"):
        build(pruning=[{"groups": "layer1.conv2", "ratios": [0, 0.5]}])


def test_a_broken_regular_expression_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"regular expression.*re:\("):
        build(precision=[{"layers": "re:(", "weights": [8]}])


def test_the_later_rule_wins_whole() -> None:
    space = build(
        precision=[{"weights": [8, 4, 2]}, {"layers": "head", "weights": ["float", 8]}, {"layers": "stem", "weights": [8]}]
    )
    found = choices(space)
    assert found["bits:head"] == ((FLOAT, FLOAT), (8, 8))
    assert found["bits:stem"] == ((8, 8),)
    assert found["bits:layer1.conv1"] == ((8, 8), (4, 8), (2, 8))


def test_what_a_later_rule_excludes_keeps_the_earlier_one() -> None:
    space = build(sparsity=[{"levels": [0, 0.5]}, {"levels": [0, 0.9], "exclude": "head"}])
    assert choices(space)["sparsity:head"] == (0, 0.5)
    assert choices(space)["sparsity:stem"] == (0, 0.9)


def test_bits_are_ordered_from_the_least_to_the_most_compression() -> None:
    space = build(precision=[{"layers": "stem", "weights": [2, 8, "float", 3, 4, 7], "activations": [8, "float"]}])
    ordered = [FLOAT, *(weights for weights in (8, 7, 4, 3, 2) for _ in range(2))]
    found = choices(space)["bits:stem"]
    assert [weights for weights, _ in found] == ordered
    assert [activations for _, activations in found] == [FLOAT, *([FLOAT, 8] * 5)]


def test_the_first_and_the_last_layer_are_not_binarized_unless_nothing_else_is_asked_for() -> None:
    space = build(precision=[{"weights": [8, 1], "activations": [8, 1]}])
    first, *inner, last = (choices(space)[f"bits:{layer.name}"] for layer in STRUCTURE.layers)
    assert first == last == ((8, 8),)
    assert all((1, 1) in found for found in inner)
    assert [note for note in space.notes if "no 1 bit" in note] == [
        f"{layer.name} gets no 1 bit: it is the model's first or last layer"
        for layer in (STRUCTURE.layers[0], STRUCTURE.layers[-1])
    ]
    only = build(precision=[{"weights": [1], "activations": [1]}])
    assert {d.subject for d in only.fixed} == {layer.name for layer in STRUCTURE.layers}


def test_a_pattern_is_a_level_among_the_fractions() -> None:
    space = build(sparsity=[{"levels": ["2:4", 0.75, 0, 0.5, "1:4"]}])
    assert choices(space)["sparsity:stem"] == (0, 0.5, "2:4", 0.75, "1:4")
    for index, (sparsity, pattern) in enumerate([(0, "unstructured"), (0.5, "unstructured"), (0.5, "2:4")]):
        point = dict.fromkeys((d.name for d in space.decisions), index)
        policy = space.policy(point)
        assert policy.layer("stem") == LayerPolicy(sparsity=sparsity, pattern=pattern)
        assert space.indices(policy) == point


def test_ratios_and_levels_are_ordered_and_distinct() -> None:
    space = build(
        channel_step=1, pruning=[{"groups": "stem", "ratios": [0.5, 0, 0.5]}], sparsity=[{"levels": [0.9, 0.5, 0, 0.5]}]
    )
    assert choices(space)["prune:stem"] == (0, 0.5)
    assert choices(space)["sparsity:stem"] == (0, 0.5, 0.9)


# channels 32, step 8: ratio  0     0.25  0.5   0.6   0.75  0.99
#                      keeps  32    24    16    16    8     8      (12.8 is nearest to 16; 0.32 to 0, but one step stays)
@pytest.mark.parametrize(("ratio", "kept"), [(0, 32), (0.25, 24), (0.5, 16), (0.6, 16), (0.75, 8), (0.99, 8), (0.01, 32)])
def test_a_ratio_is_rounded_to_the_channel_step(ratio: float, kept: int) -> None:
    assert round_ratio(ratio, 32, 8) == round(1 - kept / 32, 6)


@given(st.floats(0, 0.99), st.integers(1, 200), st.integers(1, 16))
def test_a_rounded_ratio_keeps_whole_steps_and_at_least_one_channel(ratio: float, channels: int, step: int) -> None:
    reached = round_ratio(ratio, channels, step)
    kept = channels * (1 - reached)
    assert 0 < kept <= channels
    assert kept == pytest.approx(round(kept), abs=1e-3)
    assert reached == 0 or round(kept) % step == 0


def test_ratios_that_round_to_one_are_one_choice_and_said() -> None:
    space = build(channel_step=8, pruning=[{"ratios": [0, 0.25, 0.5, 0.75]}])
    assert choices(space) == {"prune:stem": (0, 0.25, 0.5, 0.75), "prune:layer1.conv1": (0, 0.5)}
    assert "layer1.conv1: 16 channels in steps of 8 leave the ratios 0, 0.5" in space.notes
    assert "layer2.conv1: 4 channels in steps of 8 leave the ratios 0" in space.notes
    assert not any(note.startswith("stem") for note in space.notes)


def test_channels_that_cannot_be_pruned_are_said_with_the_reason() -> None:
    assert "head is not pruned: its channels are the model's output" in build(pruning=[{"ratios": [0, 0.5]}]).notes
    assert build(precision=[{"weights": [8, 4]}]).notes == ()


def test_without_rules_nothing_is_decided() -> None:
    space = build()
    assert (space.decisions, space.fixed, space.size) == ((), (), 1)
    assert space.policy({}).is_identity


def test_a_single_choice_is_fixed_for_all_candidates() -> None:
    space = build(precision=[{"weights": [8]}], sparsity=[{"levels": [0]}])
    assert (space.decisions, space.size) == ((), 1)
    assert space.policy({}) == uniform_policy(STRUCTURE)


@pytest.mark.parametrize(("weights", "activations"), [(1, 8), (8, 4), (8, 1), (1, 1)])
def test_every_bit_width_of_a_policy_can_be_searched(weights: int, activations: int) -> None:
    space = build(precision=[{"layers": "head", "weights": [8, weights], "activations": [8, activations]}])
    assert (weights, activations) in choices(space)["bits:head"]


def test_float_weights_stay_with_float_activations() -> None:
    space = build(precision=[{"layers": "stem", "weights": ["float", 8], "activations": [8]}])
    assert choices(space)["bits:stem"] == ((FLOAT, FLOAT), (8, 8))


def test_the_size_is_the_product_of_the_choices() -> None:
    space = build(channel_step=4, pruning=[{"ratios": [0, 0.25, 0.5]}], precision=[{"layers": "head", "weights": [8, 4]}])
    assert {d.name: len(d.choices) for d in space.decisions} == {"prune:stem": 3, "prune:layer1.conv1": 3, "bits:head": 2}
    assert space.size == 18


@given(st.data())
def test_a_point_and_its_policy_are_one(data: st.DataObject) -> None:
    point = {d.name: data.draw(st.integers(0, len(d.choices) - 1)) for d in EVERYTHING.decisions}
    policy = EVERYTHING.policy(point)
    assert EVERYTHING.indices(policy) == point
    assert EVERYTHING.indices(Policy.from_json(policy.to_json())) == point


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy({"stem": 0.3}, dict.fromkeys(LAYERS, INT8)),
        Policy({"head": 0.5}, dict.fromkeys(LAYERS, INT8)),
        Policy({}, {name: LayerPolicy(8, 8, 0.1) for name in LAYERS}),
        Policy({}, {name: LayerPolicy(7, 8) for name in LAYERS}),
        Policy({}, {**dict.fromkeys(LAYERS, INT8), "other": INT8}),
    ],
    ids=["fixed layer", "ratio", "group", "sparsity", "bits", "layer"],
)
def test_a_policy_outside_the_space_has_no_point(policy: Policy) -> None:
    assert EVERYTHING.indices(policy) is None
    assert EVERYTHING.indices(Policy({}, dict.fromkeys(LAYERS, INT8))) is not None


def test_a_uniform_policy_prunes_every_group_and_quantizes_every_layer() -> None:
    policy = uniform_policy(STRUCTURE, 0.5, dict.fromkeys(GROUPS, 8))
    assert policy.pruning == {"stem": 0.5, "layer1.conv1": 0.5}
    assert policy.layers == dict.fromkeys(LAYERS, INT8)
    assert uniform_policy(Structure((), ()), 0.5).is_identity


def test_known_names_are_let_through() -> None:
    require_known_names(Policy({"stem": 0.5}, {"head": INT8}), STRUCTURE)


def test_an_unknown_layer_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PolicyError, match=r"layers that the model has; got 'haed'.*It has: stem, .*head"):
        require_known_names(Policy({}, {"haed": INT8}), STRUCTURE)


def test_a_group_that_cannot_be_pruned_is_answered_with_the_reason() -> None:
    with pytest.raises(PolicyError, match=r"got 'head' \(its channels are the model's output\).*It has: stem, layer1"):
        require_known_names(Policy({"head": 0.5}), STRUCTURE)
