"""Dependency groups of PyTorch models: which are found, which are frozen and why, and what removing channels does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import models
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.torch.calls import outputs_of
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.prune import dependency_graph, group_of, removed_channels, silence_consumers
from autocompress.structure import Structure

FRAMEWORK = TorchFramework()
IMAGES = models.digits()["valid"][0][:16]


def pruned(model: nn.Module, ratios: dict[str, float]) -> nn.Module:
    return FRAMEWORK.compress(models.small_task(model), ac.Policy(ratios), "l2").model


def silenced(model: nn.Module, ratios: dict[str, float]) -> nn.Module:
    example = (IMAGES[:1],)
    quiet = copy.deepcopy(model)
    for name, channels in removed_channels(model, example, ratios, "l2").items():
        graph = dependency_graph(quiet, example)
        silence_consumers(graph, group_of(graph, quiet.get_submodule(name), channels))
    return quiet.eval()


def structure_of(model: nn.Module) -> Structure:
    return FRAMEWORK.inspect(models.small_task(model))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """The weights, the buffers, what is trainable and every module's mode are afterwards what they were."""

    def picture() -> tuple[dict[str, torch.Tensor], dict[str, bool], dict[str, bool]]:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        return state, trainable, {name: module.training for name, module in model.named_modules()}

    before = picture()
    yield
    after = picture()
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert before[1:] == after[1:]


# The groups of each model by hand: name → channels. Linear layers and convolutions that give the output are frozen.
GROUPS = {
    "conv": {("conv1",): 16, ("conv2",): 24},
    "resnet": {
        ("stem", "block1.conv2"): 16,
        ("block1.conv1",): 16,
        ("block2.conv1",): 32,
        ("block2.conv2", "block2.shortcut.0"): 32,
    },
    "flatten": {("conv",): 8},
    "mlp": {("1",): 32, ("3",): 24},
    "sequential": {("0",): 16},
    "separable": {("stem", "depthwise"): 16, ("pointwise",): 24},
    "transposed": {("conv",): 16, ("up",): 8, ("last",): 16},
    "conv1d": {("conv1",): 24, ("conv2",): 32},
    "squeeze-excite": {("conv", "excite"): 16, ("squeeze",): 8},
    "shared": {("first", "shared"): 16},
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_those_that_the_architecture_couples(name: str) -> None:
    found = {tuple(sorted(group.layers)): group.channels for group in structure_of(models.build(name)).groups}
    assert found == {tuple(sorted(layers)): channels for layers, channels in GROUPS[name].items()}


@pytest.mark.parametrize("name", GROUPS)
def test_a_pruned_model_is_the_original_with_silenced_channels(name: str) -> None:
    model = models.build(name)
    ratios = {group.name: 0.5 for group in structure_of(model).groups}
    small = pruned(model, ratios)
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), silenced(model, ratios)(IMAGES), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_a_grouped_convolution_keeps_its_meaning_at_every_ratio() -> None:
    model = models.build("grouped")
    for group in structure_of(model).groups:
        for ratio in (0.25, 0.5, 0.75):
            with torch.no_grad():
                expected = silenced(model, {group.name: ratio})(IMAGES)
                torch.testing.assert_close(pruned(model, {group.name: ratio})(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet", "separable", "squeeze-excite"])
def test_every_group_can_be_pruned_alone(name: str) -> None:
    model = models.build(name)
    for group in structure_of(model).groups:
        small = pruned(model, {group.name: 0.25})
        with torch.no_grad():
            expected = silenced(model, {group.name: 0.25})(IMAGES)
            torch.testing.assert_close(small(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.CLASSIFIERS)
def test_the_output_layer_is_frozen_with_a_reason(name: str) -> None:
    structure = structure_of(models.build(name))
    last = structure.layers[-1].name
    reasons = {frozen.name: frozen.reason for frozen in structure.frozen}
    assert "output" in reasons[last]
    assert all(last not in group.layers for group in structure.groups)


@pytest.mark.parametrize("make", [models.ShuffleNet, models.SoftmaxNet])
def test_channels_that_cannot_be_removed_are_frozen_and_the_others_are_not(make: type[nn.Module]) -> None:
    structure = structure_of(models.seeded(make))
    assert [group.name for group in structure.groups] == ["conv2"]
    reasons = {frozen.name: frozen.reason for frozen in structure.frozen}
    assert reasons["conv1"]
    assert "\n" not in reasons["conv1"]


class Untraceable(nn.Module):
    """Leaves torch's world, so that no graph can be traced through it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.from_numpy(self.conv(x).mean((2, 3)).detach().numpy()))


def test_a_model_that_cannot_be_traced_keeps_its_layers_and_freezes_its_channels() -> None:
    structure = structure_of(models.seeded(Untraceable))
    assert [layer.name for layer in structure.layers] == ["conv", "fc"]
    assert all("conv" not in group.layers for group in structure.groups)
    assert structure.frozen


def test_two_outputs_are_both_frozen() -> None:
    structure = structure_of(models.seeded(models.TwoOutputs))
    assert [group.name for group in structure.groups] == ["conv"]
    assert {frozen.name for frozen in structure.frozen} == {"classes", "brightness"}


def test_pruning_a_model_with_a_dict_output_equals_silencing() -> None:
    model = models.seeded(models.TwoOutputs, True)
    small, quiet = pruned(model, {"conv": 0.5})(IMAGES), silenced(model, {"conv": 0.5})(IMAGES)
    for actual, expected in zip(outputs_of(small), outputs_of(quiet), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_the_channels_of_a_smaller_ratio_are_among_those_of_a_larger(criterion: str) -> None:
    model, example = models.build("resnet"), (IMAGES[:1],)
    names = [group.name for group in structure_of(model).groups]
    few, more = (removed_channels(model, example, dict.fromkeys(names, ratio), criterion) for ratio in (0.25, 0.5))
    for name in names:
        assert len(few[name]) * 2 == len(more[name])
        assert set(few[name]) < set(more[name])


def test_a_group_loses_the_same_channels_whatever_happens_to_the_others() -> None:
    model, example = models.build("resnet"), (IMAGES[:1],)
    names = [group.name for group in structure_of(model).groups]
    together = removed_channels(model, example, dict.fromkeys(names, 0.5), "l2")
    assert all(removed_channels(model, example, {name: 0.5}, "l2")[name] == together[name] for name in names)


def test_the_weakest_channels_go_first() -> None:
    model = models.build("flatten")
    with torch.no_grad():
        model.conv.weight[[1, 6]] *= 1e-3
        model.conv.bias[[1, 6]] *= 1e-3
        model.fc.weight.view(10, 8, 16)[:, [1, 6]] *= 1e-3
    assert removed_channels(model, (IMAGES[:1],), {"conv": 0.25}, "l2") == {"conv": [1, 6]}


def test_macs_are_those_of_one_sample_and_fall_with_the_channels() -> None:
    model = models.build("conv")
    macs = {layer.name: layer.macs for layer in structure_of(model).layers}
    assert macs == {"conv1": 64 * 9 * 16, "conv2": 16 * 9 * 16 * 24, "fc": 24 * 10}
    candidate = FRAMEWORK.compress(models.small_task(model), ac.Policy({"conv1": 0.5}), "l2")
    assert candidate.macs == {"conv1": 64 * 9 * 8, "conv2": 16 * 9 * 8 * 24, "fc": 24 * 10}


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    macs = {layer.name: layer.macs for layer in structure_of(models.build("shared")).layers}
    assert macs == {"first": 64 * 16, "shared": 2 * 16 * 16, "last": 16 * 10}


POLICY = ac.Policy({"block1.conv1": 0.5}, {"block2.conv1": ac.LayerPolicy(4, 8, 0.5)})


@pytest.mark.parametrize("mode", ["eval", "train", "mixed"])
def test_nothing_changes_the_tasks_own_model(mode: str) -> None:
    model = models.build("resnet").train(mode != "eval")
    model.block1.requires_grad_(False)
    if mode == "mixed":
        model.bn.eval()
    task = models.small_task(model)
    with unchanged(model):
        FRAMEWORK.digest(task)
    with unchanged(model):
        FRAMEWORK.inspect(task)
    with unchanged(model):
        candidate = FRAMEWORK.compress(task, POLICY, "l2")
    with unchanged(model):
        FRAMEWORK.fine_tune(task, candidate, TuneSettings(1, 1e-2, 0.5), lambda _: None)
    with unchanged(model):
        FRAMEWORK.to_openvino(task, candidate, 1)


def test_frozen_parameters_stay_frozen_in_the_candidate() -> None:
    model = models.build("resnet")
    model.block1.requires_grad_(False)
    candidate = FRAMEWORK.compress(models.small_task(model), ac.Policy({"block1.conv1": 0.5}), "l2")
    trainable = {name: parameter.requires_grad for name, parameter in candidate.model.named_parameters()}
    assert not trainable["block1.conv1.weight"]
    assert trainable["block2.conv1.weight"]
