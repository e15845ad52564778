import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import PolicyError
from autocompress.policy import ACTIVATION_BITS, FLOAT, WEIGHT_BITS, Bits, LayerPolicy, Policy

ratios = st.floats(0, 0.99)
names = st.text(max_size=8)


@st.composite
def layer_policies(draw: st.DrawFn) -> LayerPolicy:
    weights = draw(st.sampled_from(WEIGHT_BITS))
    activations = FLOAT if weights == FLOAT else draw(st.sampled_from(ACTIVATION_BITS))
    return LayerPolicy(weights, activations, draw(ratios))


policies = st.builds(Policy, st.dictionaries(names, ratios, max_size=4), st.dictionaries(names, layer_policies(), max_size=4))


@given(policies)
def test_a_policy_survives_json(policy: Policy) -> None:
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert hash(again) == hash(policy)
    assert again.key == policy.key


@given(policies)
def test_a_policy_survives_its_own_parts(policy: Policy) -> None:
    assert Policy(policy.pruning, policy.layers) == policy
    assert Policy.from_dict(policy.to_dict()) == policy


@given(policies, policies)
def test_two_policies_share_a_key_exactly_if_they_are_equal(one: Policy, other: Policy) -> None:
    assert (one.key == other.key) == (one == other)


def test_a_ratio_just_below_one_survives_json() -> None:
    policy = Policy({"conv": 1 - 1e-9}, {"conv": LayerPolicy(8, 8, sparsity=1 - 1e-9)})
    assert Policy.from_json(policy.to_json()) == policy


def test_the_order_of_names_does_not_change_the_key() -> None:
    int8 = LayerPolicy(8, 8)
    one = Policy({"a": 0.5, "b": 0.25}, {"a": int8, "b": LayerPolicy(4, 8)})
    other = Policy({"b": 0.25, "a": 0.5}, {"b": LayerPolicy(4, 8), "a": int8})
    assert (one.key, one.to_json()) == (other.key, other.to_json())
    assert len({one, other}) == 1


def test_entries_that_change_nothing_do_not_change_the_key() -> None:
    assert Policy({"a": 0.5, "b": 0}, {"c": LayerPolicy()}) == Policy({"a": 0.5})
    assert Policy({"a": 0.0}, {"a": LayerPolicy()}).is_identity


@pytest.mark.parametrize("weights", [8, 8.0])
def test_one_bit_width_has_one_key_however_it_is_written(weights: float) -> None:
    text = json.dumps({"layers": {"conv": {"weights": weights, "activations": 8}}})
    assert Policy.from_json(text).key == Policy({}, {"conv": LayerPolicy(8, 8)}).key


def test_a_key_is_16_hexadecimal_digits_and_the_same_in_every_version() -> None:
    assert Policy({"a": 0.5}, {"b": LayerPolicy(8, 8)}).key == "49e4c3b4835020c0"


def test_a_layer_that_is_not_named_stays_as_it_is() -> None:
    assert Policy().layer("anything") == LayerPolicy()
    assert not LayerPolicy(8).is_integer
    assert LayerPolicy(8, 8).is_integer


@pytest.mark.parametrize("bits", [0, 5, 6, 16, 32, -8, 8.5, "8", "int8", None, True, [8]])
def test_bits_outside_the_list_are_refused(bits: object) -> None:
    with pytest.raises(PolicyError, match="weights takes one of float, 8, 7, 4, 3, 2, 1"):
        LayerPolicy(weights=bits)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="activations takes one of float, 8, 4, 1"):
        LayerPolicy(weights=8, activations=bits)  # type: ignore[arg-type]


def test_a_layer_that_has_no_layer_policy_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"Layer fc of a policy has a LayerPolicy.*from_dict"):
        Policy({}, {"fc": {"weights": 8}})  # type: ignore[dict-item]


@pytest.mark.parametrize("ratio", [1, 1.0, 1.5, -0.1, float("nan"), float("inf"), True, "0.5", None])
def test_a_fraction_outside_its_range_is_refused(ratio: object) -> None:
    with pytest.raises(PolicyError, match=r"sparsity lies in \[0, 1\)"):
        LayerPolicy(sparsity=ratio)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [1.5, -0.1, float("nan"), float("inf"), True, "0.5", None])
def test_a_pruning_ratio_outside_its_range_is_refused(ratio: object) -> None:
    with pytest.raises(PolicyError, match=r"pruning ratio of conv lies in \[0, 1\].*1 a whole residual branch"):
        Policy({"conv": ratio})  # type: ignore[dict-item]


def test_a_ratio_of_1_is_kept() -> None:
    assert Policy({"conv": 1}) == Policy({"conv": 1.0}) != Policy({"conv": 0.9999999})


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_quantized_activations_need_quantized_weights(bits: int) -> None:
    with pytest.raises(PolicyError, match=r"Quantized activations need quantized weights.*Set weights to 8"):
        LayerPolicy(weights=FLOAT, activations=bits)


@pytest.mark.parametrize(("weights", "activations"), [*itertools.product(WEIGHT_BITS, ACTIVATION_BITS)])
def test_all_bits_can_be_combined_but_for_float_weights_with_quantized_activations(weights: Bits, activations: Bits) -> None:
    if weights == FLOAT and activations != FLOAT:
        with pytest.raises(PolicyError, match="Quantized activations need quantized weights"):
            LayerPolicy(weights, activations)
    else:
        assert LayerPolicy(weights, activations).is_integer == (activations != FLOAT)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "int8",
        {"prune": {}},
        {1: {}, "pruning": {}},
        {"pruning": [0.5]},
        {"pruning": "half"},
        {"pruning": {"conv": None}},
        {"pruning": {"conv": {"ratio": 0.5}}},
        {"layers": ["conv"]},
        {"layers": {"conv": 8}},
        {"layers": {"conv": None}},
        {"layers": {"conv": {"weight": 8}}},
        {"layers": {"conv": {"weights": 8, "bits": 8, 1: 1}}},
        {"layers": {"conv": {"weights": 5}}},
    ],
    ids=repr,
)
def test_a_malformed_policy_is_refused(data: object) -> None:
    with pytest.raises(PolicyError):
        Policy.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", '"int8"', '{"pruning": {"conv": NaN}}'])
def test_a_text_that_is_not_a_policy_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.from_json(text)
    assert "\n" not in str(caught.value)


def test_the_numbers_that_name_the_layers_of_a_sequential_are_names_in_yaml_as_well() -> None:
    layer = {"weights": 8, "activations": 8}
    written = Policy.from_dict({"pruning": {0: 0.5}, "layers": {0: layer, "head": layer}})
    assert written == Policy.from_dict({"pruning": {"0": 0.5}, "layers": {"0": layer, "head": layer}})


def test_missing_parts_of_a_hand_written_policy_are_empty() -> None:
    assert Policy.from_dict({"pruning": None}) == Policy.from_dict({}) == Policy()


def test_a_pattern_names_its_sparsity() -> None:
    layer = LayerPolicy(8, 8, pattern="2:4")
    assert (layer.sparsity, layer.block) == (0.5, (2, 4))
    assert layer == LayerPolicy(8, 8, 0.5, "2:4") != LayerPolicy(8, 8, 0.5)
    assert LayerPolicy(pattern="02:3").pattern == "2:3"
    assert Policy.from_json(Policy({}, {"fc": layer}).to_json()) == Policy({}, {"fc": layer})


def test_the_default_pattern_is_not_written() -> None:
    assert LayerPolicy(8, 8, 0.5).to_dict() == {"weights": 8, "activations": 8, "sparsity": 0.5}


@pytest.mark.parametrize("pattern", ["4:2", "0:4", "2:2", "2", "a:b", "2:4:8", "", None, 4])
def test_an_impossible_pattern_is_refused(pattern: object) -> None:
    with pytest.raises(PolicyError, match=r'"unstructured" or "N:M" with 0 < N < M.*2:4'):
        LayerPolicy(pattern=pattern)  # type: ignore[arg-type]


def test_a_pattern_and_another_sparsity_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"1 - N/M; got 2:4 with 0\.75\. Leave the sparsity out, or write 0\.5"):
        LayerPolicy(sparsity=0.75, pattern="2:4")
