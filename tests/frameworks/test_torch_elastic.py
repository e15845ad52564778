"""PyTorch's elastic model: what trains is what is masked, and cut out it is the same."""

from __future__ import annotations

import argparse
import copy
import itertools
import threading
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_contract import KINDS, TorchCases, random_policies
from torch import nn
from torch.nn import functional

import autocompress as ac
from autocompress.frameworks.base import FEATURES_ARE_WHOLE, GRADIENT_NORM, SHARED_GRADIENT_NORM, TuneSettings
from autocompress.frameworks.torch.calls import call, outputs_of, tensors
from autocompress.frameworks.torch.elastic import Elastic
from autocompress.frameworks.torch.framework import TorchFramework

CASES = TorchCases()


def elastic_of(task: ac.Task) -> Elastic:
    return TorchFramework().share(task, "l2", TuneSettings(1, 1e-2, 0.5)).elastic


def gradients(elastic: Elastic, model: nn.Module, inputs: Any) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs in training mode, and what a loss of them tells every parameter of the elastic model."""
    elastic.model.zero_grad()
    outputs = outputs_of(call(model, inputs))
    torch.stack([(output - 0.3).square().sum() for output in outputs]).sum().backward()
    return outputs, {name: p.grad.clone() for name, p in elastic.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_the_thin_model_trains_the_weights_as_the_masked_one_does(kind: str) -> None:
    task = CASES.task(kind)
    elastic = elastic_of(task)
    inputs = tensors(next(iter(task.splits["train"].batches())).inputs)
    for policy in random_policies(CASES, task, 4):
        elastic.model.train()
        elastic.obey(policy)
        masked, expected = gradients(elastic, elastic.model, inputs)
        cut, found = gradients(elastic, elastic.thin(policy), inputs)
        for actual, wanted in zip(cut, masked, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
        for name, gradient in expected.items():
            actual = found.get(name, torch.zeros_like(gradient))
            assert (actual - gradient).abs().max() <= 2e-3 * max(float(gradient.abs().max()), 1e-2), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_thin_model_does_not_depend_on_those_before_it(kind: str) -> None:
    task = CASES.task(kind)
    elastic = elastic_of(task)
    inputs = tensors(next(iter(task.splits["train"].batches())).inputs)
    first, *others = random_policies(CASES, task, 4)
    elastic.model.train()
    expected = [output.detach() for output in outputs_of(call(elastic.thin(first), inputs))]
    names = [name for name, _ in elastic.thin(first).named_modules()]
    for policy in others:
        call(elastic.thin(policy), inputs)
    again = elastic.thin(first)
    assert [name for name, _ in again.named_modules()] == names
    for actual, wanted in zip(outputs_of(call(again, inputs)), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_every_width_has_a_step_of_its_own_that_learns() -> None:
    task = CASES.task("conv")
    elastic = elastic_of(task)
    inputs = tensors(next(iter(task.splits["train"].batches())).inputs)
    before = copy.deepcopy(elastic.model.state_dict())
    optimizer = torch.optim.SGD(elastic.model.parameters(), 1e-3)
    elastic.obey(ac.Policy({}, {"conv2": ac.LayerPolicy(4)}))
    optimizer.zero_grad()
    functional.mse_loss(call(elastic.model, inputs), torch.ones(64, 10)).backward()
    optimizer.step()
    changed = {name for name, tensor in elastic.model.state_dict().items() if not torch.equal(tensor, before[name])}
    steps = {name for name in changed if name.endswith("factor")}
    assert steps == {"conv2.parametrizations.weight.0.widths.4.factor"}


def test_a_smaller_policy_keeps_a_part_of_what_a_larger_one_keeps() -> None:
    task = CASES.task("resnet")
    elastic = elastic_of(task)
    groups = TorchFramework().inspect(task).groups
    ratios = (0.25, 0.5, 0.75)
    removed = [elastic.removed(ac.Policy({group.name: ratio for group in groups})) for ratio in ratios]
    for group in groups:
        smaller, middle, larger = (set(one[group.name]) for one in removed)
        assert smaller < middle < larger


def test_the_task_keeps_its_model() -> None:
    task = CASES.task("resnet")
    before = copy.deepcopy(task.model.state_dict())
    training = TorchFramework().share(task, "l2", TuneSettings(1, 1e-1, 0.5))
    training.begin(1)
    training.epoch(iter(random_policies(CASES, task, 2)), lambda _: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.model.state_dict().items())
    assert not any("parametrizations" in name or "simulated" in name for name, _ in task.model.named_modules())


def test_gradients_of_a_shared_training_are_clipped_harder() -> None:
    training = TorchFramework().share(CASES.task("conv"), "l2", TuneSettings(1, 1e-2, 0.5))
    training.begin(1)
    norms = []
    clip = nn.utils.clip_grad_norm_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", lambda tensors, norm: norms.append(norm) or clip(tensors, norm))
        training.epoch(itertools.repeat(ac.Policy()), lambda _: None)
    assert set(norms) == {SHARED_GRADIENT_NORM} != {GRADIENT_NORM}


def test_features_are_learned_in_a_shared_training_too() -> None:
    task = models.small_task(models.build("resnet"))
    trained = []
    for weight in (0.0, 100.0):
        training = TorchFramework().share(task, "l2", TuneSettings(1, 1e-2, 0.5, feature_distillation=weight))
        assert training.masked_because == (FEATURES_ARE_WHOLE if weight else None)
        training.begin(1)
        training.epoch(iter([ac.Policy({"block1.conv1": 0.5})]), lambda _: None)
        trained.append(training.candidate(ac.Policy()).model.stem.weight.detach().numpy())
    assert np.abs(trained[0] - trained[1]).max() > 0


class Recurrent(nn.Module):
    """A network with an LSTM, which holds its weights in a list too, and a parameter that it reads from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.recurrent, self.last = nn.Linear(8, 6), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 10)
        self.scale = nn.Parameter(torch.ones(6))
        self.known = [self.scale]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.recurrent(functional.relu(self.first(images[:, 0])) * self.known[0])
        return self.last(hidden[:, -1])


class Remembering(nn.Module):
    """A network that keeps its first width, its outputs, an expanded buffer and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)
        self.widths: dict[str, int] = {}
        self.outputs: list[torch.Tensor] = []
        self.register_buffer("ones", torch.ones(1, 1).expand(1, 64), persistent=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.first(images.flatten(1) * self.ones))
        hidden = hidden.reshape(-1, self.widths.setdefault("hidden", hidden.shape[1]))
        self.calls += 1
        self.outputs.append(self.last(hidden))
        return self.outputs[-1] * self.calls


class Configured(nn.Module):
    """A network with an object of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.options = nn.Linear(64, 16), nn.Linear(16, 10), argparse.Namespace(scale=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(functional.relu(self.first(images.flatten(1)))) * self.options.scale


def test_parameters_that_a_module_holds_elsewhere_are_trained_too() -> None:
    elastic = elastic_of(models.small_task(Recurrent()))
    elastic.model.train()
    for _ in range(2):
        _, found = gradients(elastic, elastic.thin(ac.Policy()), (torch.randn(4, 1, 8, 8),))
        assert {"scale", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0", "recurrent.bias_ih_l0"} <= set(found)


def test_what_a_module_remembers_is_forgotten_with_its_policy() -> None:
    elastic = elastic_of(models.small_task(Remembering()))
    elastic.model.train()
    for ratio in (0.5, 0.25, 0):
        thin: Any = elastic.thin(ac.Policy({"first": ratio}))
        call(thin, (torch.randn(4, 1, 8, 8),))
        assert thin.widths == {"hidden": 16 * (1 - ratio)}
        assert len(thin.outputs) == thin.calls == 1


def nested() -> nn.Module:
    return nn.Sequential(Configured())


@pytest.mark.parametrize("make", [models.resnet, Remembering, Configured, Recurrent, nested])
def test_one_copy_that_is_cut_again_is_the_masked_model(make: Any) -> None:
    task = models.small_task(make())
    elastic = elastic_of(task)
    inputs = tensors(next(iter(task.splits["train"].batches())).inputs)
    for policy in (ac.Policy({group.name: 0.5 for group in TorchFramework().inspect(task).groups}), ac.Policy()) * 2:
        elastic.model.eval()
        found = call(elastic.thin(policy), inputs)
        elastic.obey(policy)
        torch.testing.assert_close(found / found.std(), (expected := call(elastic.model, inputs)) / expected.std())


def test_what_a_step_changes_within_an_object_is_forgotten() -> None:
    model: Any = nested()
    model.options = model[0].options  # held twice, and by what it holds itself
    model.options.owner = model[0]
    elastic = elastic_of(models.small_task(model))
    for _ in range(2):
        thin: Any = elastic.thin(ac.Policy({"0.first": 0.5}))
        assert thin.options is thin[0].options
        assert vars(thin.options) == {"scale": 2, "owner": thin[0]}
        thin.options.scale, thin.options.width = 3, 8
    assert vars(model.options) == {"scale": 2, "owner": model[0]}


class Locked:
    """An object that cannot be copied, but by the module that holds it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Holding(Configured):
    """A network that holds such an object, and a list that another object of its holds as well."""

    def __init__(self) -> None:
        super().__init__()
        self.locked, self.table = Locked(), [1]
        self.options.table = self.table

    def __deepcopy__(self, memo: Any) -> nn.Module:
        made = Holding()
        made.load_state_dict(self.state_dict())
        return made


def test_what_cannot_be_copied_stays_and_what_is_shared_is() -> None:
    elastic = elastic_of(models.small_task(Holding()))
    for _ in range(2):
        thin: Any = elastic.thin(ac.Policy({"first": 0.5}))
        assert isinstance(thin.locked, Locked)
        assert thin.options.table is thin.table
        assert thin.table == [1]
        thin.table.append(2)


def test_steps_of_images_have_channels_last_as_those_of_a_candidate() -> None:
    training = TorchFramework().share(CASES.task("resnet"), "l2", TuneSettings(1, 1e-2, 0.5))
    training.begin(1)
    assert training.trainer.arithmetic.channels_last
    seen = []
    step = training.trainer.step

    def watched(batch: Any) -> None:
        for module in training.trainer.objective.model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda *found: seen.append(found[2].is_contiguous(memory_format=torch.channels_last))
                )
        step(batch)

    training.trainer.step = watched
    training.epoch(iter(random_policies(CASES, training.task, 1)), lambda _: None)
    assert seen
    assert all(seen)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.5)


@pytest.mark.parametrize(
    ("kind", "optimizer", "named", "highest"),
    [
        ("resnet", None, None, 0.1),
        ("resnet", None, 0.03, 0.1),
        ("resnet", None, 0.003, 0.01),
        ("resnet", None, 0.2, 0.2),
        ("resnet", sgd, 0.03, 0.1),
        ("resnet", sgd, None, 0.5),
        ("resnet", torch.optim.AdamW, 0.003, 0.003),
        ("resnet", torch.optim.AdamW, 0.001, 0.002),
        ("resnet", torch.optim.Adam, 0.0005, 0.001),
        ("resnet", torch.optim.RMSprop, 0.001, 0.001),
        ("mlp", None, None, 0.0014),
        ("mlp", torch.optim.AdamW, 0.0005, 0.0007),
    ],
)
def test_a_shared_training_has_a_higher_rate(kind: str, optimizer: Any, named: float | None, highest: float) -> None:
    task = models.small_task(models.build(kind), optimizer=optimizer)
    training = TorchFramework().share(task, "l2", TuneSettings(1, named, 0.5))
    training.begin(1)
    assert training.trainer.optimizer.param_groups[0]["initial_lr"] == pytest.approx(highest)
