"""Dependency groups of Keras models: which are found, which are frozen and why, and what removing channels does."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import keras
import keras_models as models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.frameworks.base import framework_of
from autocompress.frameworks.keras import pruning
from autocompress.frameworks.keras.gradients import mean_gradients
from autocompress.frameworks.keras.graph import functional, heavy_layers, layers_by_name, rebuild
from autocompress.frameworks.keras.layers import layers_of
from autocompress.frameworks.keras.nodes import as_argument
from autocompress.frameworks.keras.prune import remove_channels, silence
from autocompress.frameworks.keras.pruning import Pruning
from autocompress.frameworks.proof import difference

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import networks_keras as networks
import silencing_keras

IMAGES = models.digits()["valid"][0][:4]
TOLERANCE = 1e-5
"""Of outputs, relative to their range."""


def found_in(model: keras.Model, example: Any = (IMAGES[:1],)) -> Pruning:
    """What can be removed from a model; its loss and its data are those of the digits."""
    return Pruning(
        models.small_task(model), functional(model, example), example, f"{model.name} {sum(w.sum() for w in model.get_weights())}"
    )


def outputs_of(model: keras.Model, inputs: Any) -> list[Any]:
    outputs = model(as_argument(inputs), training=False)
    return [ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]


def pruned(found: Pruning, removed: dict[str, list[int]]) -> keras.Model:
    return remove_channels(found.graph, found.groups, removed)


def halves(found: Pruning) -> dict[str, list[int]]:
    return {group.name: list(range(0, group.channels, 2)) for group in found.structure.groups}


# The groups of each model by hand: layers → channels. Layers that give the output are frozen.
GROUPS = {
    "conv": {("conv1",): 16, ("conv2",): 24},
    "resnet": {
        ("stem", "block1_conv2"): 16,
        ("block1_conv1",): 16,
        ("block2_conv1",): 32,
        ("block2_conv2", "block2_shortcut"): 32,
    },
    "flatten": {("conv",): 8},
    "mlp": {("fc1",): 32, ("fc2",): 24},
    "sequential": {("conv",): 16},
    "separable": {("stem", "depthwise"): 16, ("pointwise",): 24},
    "grouped": {("stem", "grouped"): 4},
    "transposed": {("conv",): 16, ("up",): 8, ("last",): 16},
    "conv1d": {("conv1",): 24, ("conv2",): 32},
    "squeeze-excite": {("conv", "excite"): 16, ("squeeze",): 8},
    "shared": {("first", "shared"): 16},
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_those_that_the_architecture_couples(name: str) -> None:
    groups = found_in(models.build(name)).structure.groups
    assert {tuple(sorted(group.layers)): group.channels for group in groups} == {
        tuple(sorted(names)): channels for names, channels in GROUPS[name].items()
    }


def test_every_classifier_has_its_groups_by_hand() -> None:
    assert GROUPS.keys() == models.CLASSIFIERS.keys()


ZOO: dict[str, tuple[Any, Any]] = {name: (lambda name=name: models.build(name), lambda: (IMAGES,)) for name in models.CLASSIFIERS}
ZOO |= {
    name: networks.OWN[name]
    for name in (
        *("subclassed", "vision_transformer", "hand_made_attention", "convolution_1d", "convolution_3d", "channels_first"),
        *("autoencoder", "gated", "mixer", "named_inputs_and_outputs", "grouped", "recurrent"),
    )
}


@cache
def zoo(name: str) -> tuple[Pruning, Any]:
    """What can be removed from a model of the zoo, and its example."""
    make, inputs = ZOO[name]
    keras.utils.set_random_seed(0)
    example = inputs()
    return found_in(make(), example), example


def perturbed(found: Pruning) -> keras.Model:
    copy = rebuild(found.graph, lambda name, layer: None)
    silencing_keras.perturb(layers_by_name(copy))
    return copy


def errors(original: keras.Model, small: keras.Model, example: Any) -> tuple[float, float]:
    """Of the smaller model beside the original without what was lost, and without as many other inputs, in tolerances.

    What was lost is read off the weights; who made the smaller model is not asked.
    """
    before, after = heavy_layers(original), heavy_layers(small)
    read = silencing_keras.inputs_lost(before, silencing_keras.lost_channels(before, after))
    others, weights, found = silencing_keras.other_channels(before, read), original.get_weights(), []
    for lost in (read, others):
        silencing_keras.silence(before, lost)
        found.append(difference(outputs_of(small, example), outputs_of(original, example)) / TOLERANCE)
        original.set_weights(weights)
    return found[0], found[1]


@pytest.mark.parametrize("name", ZOO)
def test_a_pruned_model_is_the_original_with_silenced_channels(name: str) -> None:
    found, example = zoo(name)
    original = perturbed(found)
    small = remove_channels(original, found.groups, halves(found))
    assert heavy_layers(original).keys() == heavy_layers(small).keys()
    error, control = errors(original, small, example)
    assert error <= 1
    assert control > 100
    assert small.count_params() < original.count_params()


@pytest.mark.parametrize("name", ZOO)
def test_layers_lose_as_many_channels_as_the_structure_says(name: str) -> None:
    found, example = zoo(name)
    ratios = {group.name: 0.5 for group in found.structure.groups}
    lost_inputs, lost_outputs = found.structure.lost_channels(ratios)
    small = pruned(found, found.least_important(ratios, "random"))
    left = {layer.name: layer.channels for layer in layers_of(small, example)}
    for layer in found.structure.layers:
        wanted = layer.channels[0] - lost_inputs.get(layer.name, 0), layer.channels[1] - lost_outputs.get(layer.name, 0)
        assert left[layer.name] == wanted


def test_a_wrong_mapping_is_seen() -> None:
    found = found_in(models.build("conv"))
    original = perturbed(found)
    small = remove_channels(original, found.groups, {"conv1": list(range(8))})
    kernel = ops.convert_to_numpy(heavy_layers(original)["conv2"].kernel)
    heavy_layers(small)["conv2"].kernel.assign(kernel[:, :, :8])  # those who read what is gone
    assert errors(original, small, (IMAGES,))[0] > 100


def test_a_model_of_a_single_number_is_proven_too() -> None:
    example = (np.ones((1, 10), np.float32),)
    model = models.seeded(models.regressor)
    found = Pruning(models.small_task(models.build("conv")), model, example, "regressor")
    assert [group.name for group in found.structure.groups] == ["fc1", "fc2"]


SOME = {name: found_in(models.build(name)) for name in ("resnet", "separable", "squeeze-excite", "transposed")}


@settings(max_examples=25)
@given(st.data())
def test_any_channels_of_any_groups_can_go(data: st.DataObject) -> None:
    found = SOME[data.draw(st.sampled_from(sorted(SOME)))]
    removed = {}
    for group in found.structure.groups:
        channels = data.draw(st.sets(st.integers(0, group.channels - 1), max_size=group.channels - 1))
        removed[group.name] = sorted(channels)
    silent = rebuild(found.graph, lambda name, layer: None)
    silence(silent, found.groups, removed)
    actual, expected = outputs_of(pruned(found, removed), (IMAGES,)), outputs_of(silent, (IMAGES,))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "grouped", "sequential", "squeeze-excite"])
def test_a_pruned_model_is_saved_and_loaded_without_custom_objects(name: str, tmp_path: Path) -> None:
    found = found_in(models.build(name))
    small = pruned(found, halves(found))
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(outputs_of(loaded, (IMAGES,))[0], outputs_of(small, (IMAGES,))[0])
    assert list(heavy_layers(loaded)) == list(heavy_layers(small)) == list(heavy_layers(found.graph))


@pytest.mark.parametrize("name", models.CLASSIFIERS)
def test_the_output_layer_is_frozen_with_a_reason(name: str) -> None:
    structure = found_in(models.build(name)).structure
    last = structure.layers[-1].name
    assert "output" in {frozen.name: frozen.reason for frozen in structure.frozen}[last]
    assert all(last not in group.layers for group in structure.groups)


@pytest.mark.parametrize("as_dict", [False, True])
def test_two_outputs_are_both_frozen(as_dict: bool) -> None:
    structure = found_in(models.seeded(models.two_outputs, as_dict)).structure
    assert [group.name for group in structure.groups] == ["conv"]
    assert {frozen.name for frozen in structure.frozen} == {"classes", "shade"}


def test_what_is_not_known_is_frozen_and_the_rest_is_not() -> None:
    x = keras.Input((8, 8, 1))
    y = layers.Conv2D(12, 3, name="mixed")(x)
    y = layers.Lambda(lambda value: ops.sort(value, axis=-1), output_shape=(6, 6, 12))(y)
    y = layers.Conv2D(8, 3, name="read")(y)
    structure = found_in(keras.Model(x, models.classified(y))).structure
    assert [group.name for group in structure.groups] == ["read"]
    reasons = {frozen.name: frozen.reason for frozen in structure.frozen}
    assert "Sort" in reasons["mixed"]
    assert "\n" not in reasons["mixed"]


class Scale(layers.Layer):
    """A user's own layer with a weight for each channel."""

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__(**options)
        self.width = width

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(self.width,), initializer="random_normal", name="scale")

    def call(self, value: Any) -> Any:
        return value * self.scale

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


def test_channels_are_followed_through_a_layer_of_the_users_own() -> None:
    x = keras.Input((8, 8, 1))
    found = found_in(keras.Model(x, models.classified(Scale(12)(layers.Conv2D(12, 3, name="conv")(x)))))
    assert [group.name for group in found.structure.groups] == ["conv"]
    small = pruned(found, {"conv": [0, 5, 6]})
    assert next(layer for layer in small.layers if isinstance(layer, Scale)).width == 9


class Outside(keras.Model):
    """Leaves Keras' world, so that it cannot be called on symbolic inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = layers.Dense(10)

    def call(self, x: Any) -> Any:
        return self.fc(np.asarray(x).mean((1, 2)))


def test_a_model_that_is_no_graph_is_refused_in_one_line() -> None:
    model = Outside()
    model(IMAGES)
    with pytest.raises(TaskError, match="A subclassed model can be called on symbolic inputs") as raised:
        functional(model, (IMAGES,))
    assert "\n" not in str(raised.value)


class Reshaping(keras.Model):
    """Channels run through an operation without a layer, whose name is another each time the model is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = layers.Conv2D(16, 3), layers.Conv2D(16, 3, groups=4)
        self.attention, self.fc = layers.MultiHeadAttention(2, 8), layers.Dense(10)

    def call(self, x: Any) -> Any:
        x = ops.reshape(self.grouped(self.conv(x)), (-1, 16, 16))
        return self.fc(ops.mean(x + self.attention(x, x), axis=1))


def test_groups_of_a_subclassed_model_fit_its_graph_and_another_tracing_is_another() -> None:
    model = models.seeded(Reshaping)
    model(IMAGES)
    for _ in range(2):  # the second tracing has other names for the same model
        task = models.small_task(model)
        framework = framework_of(model)
        half = ac.Policy({group.name: 0.5 for group in framework.inspect(task).groups})
        small = framework.compress(task, half, "l2")
        assert sum(small.macs.values()) < 0.4 * sum(framework.compress(task, ac.Policy(), "l2").macs.values())


def test_layers_of_nested_models_and_blocks_are_called_by_their_way() -> None:
    keras.utils.set_random_seed(0)
    names = list(heavy_layers(functional(networks.subclassed(), (networks.noise(32, 32, 3),))))
    assert [name.count("/") for name in names] == [0, 1, 1, 1, 1, 1, 1, 1, 0]
    x = keras.Input((8, 8, 1))
    inner = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv")], name="inner")
    outer = keras.Model(x, models.classified(layers.SeparableConv2D(8, 3, name="split")(inner(x))))
    graph = functional(outer, (IMAGES,))
    assert list(heavy_layers(graph)) == ["inner/conv", "split/depthwise", "split/pointwise", "fc"]
    np.testing.assert_allclose(outputs_of(graph, (IMAGES,))[0], outputs_of(outer, (IMAGES,))[0], rtol=1e-5, atol=1e-6)


def test_a_copy_keeps_arguments_of_calls_and_what_is_trained() -> None:
    x = keras.Input((8, 8))
    base = keras.Sequential([keras.Input((8, 8)), layers.Dense(16), layers.Dropout(0.5)], name="base")
    base.trainable = False
    y = base(x)
    y = layers.MultiHeadAttention(2, 8)(y, y, use_causal_mask=True)
    model = keras.Model(x, layers.Dense(10)(y[:, 2]))
    copy = rebuild(functional(model, (IMAGES[..., 0],)), lambda name, layer: None)
    changed = IMAGES[..., 0].copy()
    changed[:, 3:] = 0  # what comes later is not seen
    np.testing.assert_array_equal(outputs_of(copy, (changed,))[0], outputs_of(model, (IMAGES[..., 0],))[0])
    assert len(copy.trainable_weights) == len(model.trainable_weights) == len(model.weights) - 2
    assert not {id(weight) for weight in copy.weights} & {id(weight) for weight in model.weights}


def test_nothing_changes_the_users_own_model() -> None:
    model = models.build("resnet")
    before = model.get_weights()
    found = found_in(model)
    pruned(found, halves(found))
    found.scores("taylor")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not model.compiled


def test_a_residual_branch_vanishes_with_its_inner_channels(tmp_path: Path) -> None:
    found = found_in(models.disturbed(models.build("resnet")))
    groups = {group.name: group for group in found.structure.groups}
    assert {name for name, group in groups.items() if group.removable} == {"block1_conv1", "block2_conv1"}
    small = pruned(found, {"block1_conv1": list(range(16)), "block2_conv1": [1, 2]})
    silent = rebuild(found.graph, lambda name, layer: None)
    silence(silent, found.groups, {"block1_conv1": list(range(16)), "block2_conv1": [1, 2]})
    np.testing.assert_allclose(outputs_of(small, (IMAGES,))[0], outputs_of(silent, (IMAGES,))[0], rtol=1e-4, atol=1e-5)
    assert not any(name.startswith("block1") for name in heavy_layers(small))
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(outputs_of(loaded, (IMAGES,))[0], outputs_of(small, (IMAGES,))[0])


@pytest.mark.parametrize("name", ["conv", "mlp", "flatten", "sequential"])
def test_what_the_output_needs_cannot_be_removed_whole(name: str) -> None:
    groups = found_in(models.build(name)).structure.groups
    assert all(group.removed(1.0) == group.channels - 1 for group in groups)


def test_heads_go_whole() -> None:
    x = keras.Input((8, 8))
    y = layers.Dense(32, name="embed")(x)
    y = y + layers.MultiHeadAttention(4, 8, name="attention")(y, y)
    found = found_in(keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y))), (IMAGES[:1, ..., 0],))
    groups = {group.name: group for group in found.structure.groups}
    heads = groups["attention/query"]
    assert heads.channels == 4
    assert {heads.width(f"attention/{name}") for name in ("query", "key", "value")} == {8}
    assert dict(heads.readers) == {"attention/attention_output": 8}
    assert heads.removable
    small = pruned(found, {"attention/query": [1]})
    silent = rebuild(found.graph, lambda name, layer: None)
    kernel = np.array(ops.convert_to_numpy(heavy_layers(silent)["attention/attention_output"].kernel))
    kernel[1] = 0
    heavy_layers(silent)["attention/attention_output"].kernel.assign(kernel)
    example = (IMAGES[..., 0],)
    np.testing.assert_allclose(outputs_of(small, example)[0], outputs_of(silent, example)[0], rtol=1e-4, atol=1e-5)
    shapes = {layer.name: layer.weight_shape for layer in layers_of(small, (IMAGES[:1, ..., 0],))}
    assert shapes["attention/query"] == (24, 32)
    assert shapes["attention/attention_output"] == (32, 24)


CRITERIA = ["l1", "l2", "geometric_median", "bn_scale", "lamp", "taylor", "hessian", "random"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_channels_of_a_smaller_ratio_are_among_those_of_a_larger(criterion: str) -> None:
    found = SOME["resnet"]
    names = [group.name for group in found.structure.groups]
    few, more = (found.least_important(dict.fromkeys(names, ratio), criterion) for ratio in (0.25, 0.5))
    for name in names:
        assert len(few[name]) * 2 == len(more[name])
        assert set(few[name]) < set(more[name])


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "taylor", "hessian"])
def test_the_weakest_channels_go_first(criterion: str) -> None:
    model = models.build("flatten")
    conv, fc = heavy_layers(model).values()
    weak = np.ones(8, np.float32)
    weak[[1, 6]] = 1e-3
    conv.kernel.assign(conv.kernel * weak)
    fc.kernel.assign(fc.kernel * np.tile(weak, 16)[:, None])
    assert found_in(model).least_important({"conv": 0.25}, criterion) == {"conv": [1, 6]}


def test_gradients_are_those_of_the_loss() -> None:
    """Against a difference quotient of the loss, in inference mode, over all batches."""
    model = models.build("resnet")
    task = models.small_task(model)
    (images, classes), name = task.train, "block2_conv1/kernel"
    gradient = mean_gradients(task, model, squared=False)[name]
    kernel = model.get_layer("block2_conv1").kernel
    length, start, losses = float(np.linalg.norm(gradient)), ops.convert_to_numpy(kernel), []
    for step in (-1e-2, 1e-2):
        kernel.assign(start + step * gradient / length)
        losses.append(float(ops.mean(models.cross_entropy()(classes, model(images, training=False)))))
    assert (losses[1] - losses[0]) / 2e-2 == pytest.approx(length, rel=0.02)


def test_macs_are_those_of_one_sample_and_fall_with_the_channels() -> None:
    found = found_in(models.build("conv"))
    assert {layer.name: layer.macs for layer in found.structure.layers} == {
        "conv1": 64 * 9 * 16,
        "conv2": 16 * 9 * 16 * 24,
        "fc": 24 * 10,
    }
    small = pruned(found, {"conv1": list(range(8))})
    assert {layer.name: layer.macs for layer in layers_of(small, (IMAGES[:1],))} == found.structure.macs({"conv1": 0.5})


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    macs = {layer.name: layer.macs for layer in found_in(models.build("shared")).structure.layers}
    assert macs == {"first": 64 * 16, "shared": 2 * 16 * 16, "last": 16 * 10}


def test_proofs_are_kept_across_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    model = models.build("conv")
    first = found_in(model).structure
    assert list((tmp_path / "proofs").iterdir())
    monkeypatch.setattr(pruning, "prove", lambda *_: pytest.fail("proven again"))
    assert found_in(model).structure == first
