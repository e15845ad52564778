"""Dependency groups of PyTorch models: which are found, which are frozen and why, and what removing channels does."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import pytest
import torch
import torch_pruning as tp
from torch import nn

import autocompress as ac
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.schedule import silent_channels
from autocompress.frameworks.torch import pruning
from autocompress.frameworks.torch.calls import outputs_of
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.layers import HEAVY, TRANSPOSED, quiet
from autocompress.structure import Structure

FRAMEWORK = TorchFramework()
IMAGES = models.digits()["valid"][0][:16]


def pruned(model: nn.Module, ratios: dict[str, float]) -> nn.Module:
    return FRAMEWORK.compress(models.small_task(model), ac.Policy(ratios), "l2").model


def removed_channels(model: nn.Module, ratios: dict[str, float], criterion: str = "l2") -> Mapping[str, Sequence[int]]:
    return FRAMEWORK.compress(models.small_task(model), ac.Policy(ratios), criterion).removed


def silenced(model: nn.Module, ratios: dict[str, float]) -> nn.Module:
    """Who reads a channel is found by torch-pruning here: a second opinion."""
    silent = copy.deepcopy(model).eval()
    for name, channels in removed_channels(model, ratios).items():
        with quiet(), torch.enable_grad():
            graph = tp.DependencyGraph().build_dependency(silent, example_inputs=(IMAGES[:1],))
        root = silent.get_submodule(name)
        for dependency, indices in graph.get_pruning_group(
            root, graph.get_pruner_of_module(root).prune_out_channels, list(channels)
        ):
            module = dependency.target.module
            reads = isinstance(module, HEAVY) and dependency.handler == graph.get_pruner_of_module(module).prune_in_channels
            if reads and getattr(module, "groups", 1) == 1:
                with torch.no_grad():
                    module.weight.index_fill_(int(not isinstance(module, TRANSPOSED)), torch.tensor(sorted(set(indices))), 0)
    return silent


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


def test_a_grouped_convolution_loses_whole_groups() -> None:
    """Those who read what a group of the convolution makes are silenced: the convolution behind it."""
    model = models.build("grouped")
    grouped = next(name for name, module in model.named_modules() if getattr(module, "groups", 1) > 1)
    group = next(group for group in structure_of(model).groups if grouped in group.layers)
    (reader,) = [name for name, _ in group.readers if name != grouped]
    each = model.get_submodule(grouped).out_channels // group.channels
    assert group.width(grouped) == each
    for ratio in (0.25, 0.5, 0.75):
        gone = [
            i for unit in removed_channels(model, {group.name: ratio})[group.name] for i in range(unit * each, (unit + 1) * each)
        ]
        silent = copy.deepcopy(model).eval()
        with torch.no_grad():
            silent.get_submodule(reader).weight[:, gone] = 0
            torch.testing.assert_close(pruned(model, {group.name: ratio})(IMAGES), silent(IMAGES), rtol=1e-4, atol=1e-5)


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


class AsWide(nn.Module):
    """A network that reads the width of one layer where it needs that of another, as some attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(1, 8, 3, 2), nn.Conv2d(8, 8, 1), nn.Linear(8, 12)
        self.out = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        count, width = x.shape[:2]
        tokens = torch.relu(self.inner(x)).flatten(2).transpose(1, 2).reshape(count, 9, width)
        return self.out(torch.relu(self.last(tokens.mean(1))))


def test_groups_that_have_to_be_equally_wide_are_frozen() -> None:
    structure = structure_of(AsWide())
    assert [group.name for group in structure.groups] == ["last"]
    reasons = {frozen.name: frozen.reason for frozen in structure.frozen}
    assert "does not run" in reasons["first"]
    assert "does not run" in reasons["inner"]


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


CRITERIA = ["l1", "l2", "geometric_median", "bn_scale", "lamp", "taylor", "hessian", "random"]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_channels_of_a_smaller_ratio_are_among_those_of_a_larger(criterion: str) -> None:
    model = models.build("resnet")
    names = [group.name for group in structure_of(model).groups]
    few, more = (removed_channels(model, dict.fromkeys(names, ratio), criterion) for ratio in (0.25, 0.5))
    for name in names:
        assert len(few[name]) * 2 == len(more[name])
        assert set(few[name]) < set(more[name])


def test_a_group_loses_the_same_channels_whatever_happens_to_the_others() -> None:
    model = models.build("resnet")
    names = [group.name for group in structure_of(model).groups]
    together = removed_channels(model, dict.fromkeys(names, 0.5))
    assert all(removed_channels(model, {name: 0.5})[name] == together[name] for name in names)


def test_the_weakest_channels_go_first() -> None:
    model = models.build("flatten")
    with torch.no_grad():
        model.conv.weight[[1, 6]] *= 1e-3
        model.conv.bias[[1, 6]] *= 1e-3
        model.fc.weight.view(10, 8, 16)[:, [1, 6]] *= 1e-3
    assert removed_channels(model, {"conv": 0.25}) == {"conv": [1, 6]}


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


def test_a_residual_branch_vanishes_with_its_inner_channels() -> None:
    model = models.build("resnet")
    removable = {group.name for group in structure_of(model).groups if group.removable}
    assert removable == {"block1.conv1", "block2.conv1"}
    small = pruned(model, {"block1.conv1": 1.0})
    silent = copy.deepcopy(model).eval()
    with torch.no_grad():
        silent.block1.conv2.weight.zero_()
        torch.testing.assert_close(small(IMAGES), silent(IMAGES), rtol=1e-4, atol=1e-5)
    heavy = [name for name, module in small.named_modules() if isinstance(module, HEAVY)]
    assert not any(name.startswith("block1") for name in heavy)


@pytest.mark.parametrize("name", ["conv", "mlp", "flatten", "sequential"])
def test_what_the_output_needs_cannot_be_removed_whole(name: str) -> None:
    model = models.build(name)
    groups = structure_of(model).groups
    assert not any(group.removable for group in groups)
    assert all(group.removed(1.0) == group.channels - 1 for group in groups)


class Transformer(nn.Module):
    """Two blocks of attention and a hidden layer on sequences of rows."""

    class Block(nn.Module):
        """Pre-norm."""

        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
            self.num_heads = 4
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
            self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.num_heads, 8).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, -1))
            return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, 32), nn.Parameter(torch.randn(1, 8, 32) / 5)
        self.blocks, self.norm, self.head = nn.Sequential(self.Block(), self.Block()), nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.embed(x.flatten(1, 2)) + self.position)
        return self.head(self.norm(x).mean(1))


def test_heads_go_whole_with_the_number_that_their_module_remembers() -> None:
    model = models.seeded(Transformer)
    structure = structure_of(model)
    groups = {group.name: group for group in structure.groups}
    assert {name: group.channels for name, group in groups.items()} == {
        "blocks.0.qkv": 4,
        "blocks.0.fc1": 64,
        "blocks.1.qkv": 4,
        "blocks.1.fc1": 64,
    }
    assert groups["blocks.0.qkv"].width("blocks.0.qkv") == 24
    assert all(group.removable for group in structure.groups)
    (lost,) = removed_channels(model, {"blocks.0.qkv": 0.25}).values()
    small = pruned(model, {"blocks.0.qkv": 0.25})
    silent = copy.deepcopy(model).eval()
    with torch.no_grad():
        silent.blocks[0].proj.weight[:, lost[0] * 8 : lost[0] * 8 + 8] = 0
        torch.testing.assert_close(small(IMAGES), silent(IMAGES), rtol=1e-4, atol=1e-5)
    assert (small.blocks[0].num_heads, small.blocks[1].num_heads) == (3, 4)
    assert {frozen.name: frozen.reason for frozen in structure.frozen}["embed"]


# channels 10, of which 8 go; exponential keeps 0.2 ^ fraction of the 10:
#
#   fraction       0    1/4           1/2           1
#   linear         0    2             4             8
#   exponential    0    10 - 6.7 = 3  10 - 4.5 = 6  10 - 2 = 8
@pytest.mark.parametrize(("schedule", "silent"), [("linear", [0, 2, 4, 8]), ("exponential", [0, 3, 6, 8])])
def test_channels_fall_silent_by_a_schedule(schedule: str, silent: list[int]) -> None:
    assert [silent_channels(10, 8, fraction, schedule) for fraction in (0, 0.25, 0.5, 1)] == silent


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_gradual_pruning_ends_with_the_model_of_one_shot(schedule: Any) -> None:
    task = models.small_task(models.build("resnet"))
    policy = ac.Policy({"stem": 0.5, "block1.conv1": 1, "block2.conv1": 0.25}, {"block2.conv1": ac.LayerPolicy(8, 8)})
    candidate = FRAMEWORK.compress(task, policy, "l2")
    before = {name: tensor.shape for name, tensor in candidate.model.state_dict().items()}
    done: list[float] = []
    settings = TuneSettings(3, 1e-2, 0.5, pruning_schedule=schedule)
    FRAMEWORK.fine_tune(task, candidate, settings, done.append)
    assert {name: tensor.shape for name, tensor in candidate.model.state_dict().items()} == before
    assert done == sorted(done)
    assert done[-1] == 1
    assert candidate.model(IMAGES).shape == (16, 10)


def test_proofs_are_kept_across_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    task = models.small_task(models.build("resnet"))
    first = TorchFramework().inspect(task)
    assert list((tmp_path / "proofs").iterdir())
    monkeypatch.setattr(pruning, "prove", lambda *_: pytest.fail("proven again"))
    assert TorchFramework().inspect(task) == first


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 10)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.two(torch.relu(self.one(torch.relu(self.first(x.flatten(1))))))))


def test_tied_weights_stay_tied() -> None:
    model = models.seeded(Tied)
    small = pruned(model, {group.name: 0.5 for group in structure_of(model).groups})
    assert small.one.weight is small.two.weight
    assert small.one.weight.shape == (8, 8)
    assert (small.two.in_features, small.two.out_features) == (8, 8)
    assert small(IMAGES).shape == (16, 10)
