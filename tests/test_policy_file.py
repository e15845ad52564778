"""Policies written by hand: names and patterns, resolved for a model."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import STRUCTURE

from autocompress.errors import ConfigError, PolicyError, SpaceError
from autocompress.policy import LayerPolicy, Policy
from autocompress.policy_file import TEMPLATES, read_policy, resolve_policy, template_names
from autocompress.structure import Structure

SHIPPED = ["mixed", "prune-qat", "qat-int8"]
LAYERS = [layer.name for layer in STRUCTURE.layers]
INT8 = {"weights": 8, "activations": 8}


def resolved(**data: Any) -> Policy:
    return resolve_policy(read_policy(data), STRUCTURE)


def test_the_templates_are_all_there() -> None:
    assert template_names() == SHIPPED
    assert {path.name for path in TEMPLATES.iterdir()} == {f"{name}.yaml" for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_template_fits_a_model(name: str) -> None:
    policy = resolve_policy(read_policy(name), STRUCTURE)
    assert set(policy.layers) == set(LAYERS)
    assert all(layer.is_integer for layer in policy.layers.values())
    assert set(policy.pruning) == ({group.name for group in STRUCTURE.groups} if name == "prune-qat" else set())
    assert policy.layer("head").weights == (4 if name == "mixed" else 8)


def test_a_star_means_every_layer_and_every_group_that_can_be_pruned() -> None:
    policy = resolved(pruning={"*": 0.3}, layers={"*": INT8})
    assert policy.pruning == {"stem": 0.3, "layer1.conv1": 0.3, "layer2.conv1": 0.3}
    assert policy.layers == dict.fromkeys(LAYERS, LayerPolicy(8, 8))


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("layer1.*", ["layer1.conv1", "layer1.conv2"]),
        (r"re:layer[12]\.conv1", ["layer1.conv1", "layer2.conv1"]),
        ("type:Linear", ["head"]),
        ("stem", ["stem"]),
    ],
)
def test_a_pattern_has_the_syntax_of_a_search_space(pattern: str, meant: list[str]) -> None:
    assert list(resolved(layers={pattern: INT8}).layers) == meant


def test_later_keys_override_earlier_ones_field_by_field() -> None:
    layers = {"*": INT8, "layer1.*": {"weights": 4}, "layer1.conv2": {"sparsity": 0.5}}
    policy = resolved(pruning={"*": 0.3, "stem": 0.5, "layer[12].*": 0}, layers=layers)
    assert policy.pruning == {"stem": 0.5}
    assert policy.layer("stem") == LayerPolicy(8, 8)
    assert policy.layer("layer1.conv1") == LayerPolicy(4, 8)
    assert policy.layer("layer1.conv2") == LayerPolicy(4, 8, 0.5)
    assert resolved(layers=dict(reversed(layers.items()))).layer("layer1.conv2") == LayerPolicy(8, 8, 0.5)


@given(
    st.dictionaries(st.sampled_from([group.name for group in STRUCTURE.groups]), st.floats(0, 0.99)),
    st.dictionaries(st.sampled_from(LAYERS), st.sampled_from([LayerPolicy(8, 8), LayerPolicy(4), LayerPolicy(sparsity=0.5)])),
)
def test_a_policy_without_patterns_means_itself(ratios: dict[str, float], layers: dict[str, LayerPolicy]) -> None:
    policy = Policy(ratios, layers)
    assert resolve_policy(read_policy(policy), STRUCTURE) == policy


def test_a_pattern_of_pruning_passes_over_frozen_groups() -> None:
    assert "head" not in resolved(pruning={"type:*": 0.5}).pruning
    assert resolved(pruning={"hea*": 0.5}).is_identity


def test_a_frozen_group_that_is_named_is_an_error_with_its_reason() -> None:
    with pytest.raises(PolicyError, match=r"got 'head' \(its channels are the model's output\)"):
        resolved(pruning={"*": 0.3, "head": 0.5})


@pytest.mark.parametrize("part", ["pruning", "layers"])
def test_a_pattern_that_matches_nothing_is_answered_with_the_names(part: str) -> None:
    with pytest.raises(PolicyError, match=r"matches at least one of the model's .*got 'block\*'.*It has: stem, .*head"):
        resolved(**{part: {"block*": INT8 if part == "layers" else 0.5}})


def test_a_star_fits_a_model_without_groups() -> None:
    data = read_policy({"pruning": {"*": 0.5}, "layers": {"*": INT8}})
    assert resolve_policy(data, Structure(STRUCTURE.layers, ())).pruning == {}


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PolicyError, match=r"got 'haed'.*It has: stem, .*head"):
        resolved(layers={"haed": INT8})


def test_a_broken_regular_expression_is_said() -> None:
    with pytest.raises(SpaceError, match=r"regular expression; got 're:\('"):
        resolved(layers={"re:(": INT8})


def test_the_parts_of_a_layer_have_to_fit_each_other() -> None:
    assert resolved(layers={"*": INT8, "stem": {"activations": 4}}).layer("stem") == LayerPolicy(8, 4)
    with pytest.raises(PolicyError, match="Quantized activations need quantized weights"):
        resolved(layers={"stem": {"activations": 4}})


@pytest.mark.parametrize(
    "data",
    [
        {"prune": {}},
        {"pruning": {"*": 1.5}},
        {"pruning": ["stem"]},
        {"layers": {"*": 8}},
        {"layers": {"*": {"bits": 8}}},
        {"layers": {"*": {"weights": 5}}},
        {"layers": {"*": {"activations": 5}}},
    ],
    ids=repr,
)
def test_a_malformed_policy_is_refused_before_there_is_a_model(data: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        read_policy(data)


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", "layers: {0: {weights: 4}}"), ("a.json", '{"layers": {"0": {"weights": 4}}}')]
)
def test_a_file_is_yaml_or_json(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_policy(tmp_path / name) == read_policy(str(tmp_path / name)) == {"pruning": {}, "layers": {"0": {"weights": 4}}}


def test_what_is_neither_a_file_nor_a_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"a file or a template; got 'int8'\. Templates: mixed, prune-qat, qat-int8"):
        read_policy("int8")
    (tmp_path / "broken.yaml").write_text("{")
    with pytest.raises(ConfigError, match="A policy file is YAML"):
        read_policy(tmp_path / "broken.yaml")
