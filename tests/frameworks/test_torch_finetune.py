"""What PyTorch's fine-tuning is made of: groups of parameters, schedules, attention maps, arithmetic."""

from __future__ import annotations

import copy
import math
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.data import Batch
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.calibrating import CALIBRATION_BATCHES, FIRST_BATCHES
from autocompress.frameworks.schedule import WARM_UP, cosine_share, sparsity_at
from autocompress.frameworks.torch import arithmetic, finetune
from autocompress.frameworks.torch.arithmetic import FLOAT32, Arithmetic, exact_arithmetic
from autocompress.frameworks.torch.features import FeaturePairs
from autocompress.frameworks.torch.finetune import Trainer, fine_tune
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.optimize import default_optimizer
from autocompress.frameworks.torch.reestimate import calibrate_ranges
from autocompress.frameworks.torch.schedule import Cosine
from autocompress.frameworks.torch.simulate import set_progress, simulate, simulated_inputs

SETTINGS = TuneSettings(epochs=2, learning_rate=1e-2, distillation=0.5)
BOTH = Arithmetic(bf16=True, channels_last=True)


def silent(fraction: float) -> None:
    """A progress callback that does nothing."""


def quantized(task: ac.Task, layer: ac.LayerPolicy) -> nn.Module:
    framework = TorchFramework()
    layers = dict.fromkeys((found.name for found in framework.inspect(task).layers), layer)
    return framework.compress(task, ac.Policy({}, layers), "l2").model


@pytest.mark.parametrize("name", ["resnet", "mlp"])
def test_norms_biases_and_steps_do_not_decay(name: str) -> None:
    model = models.build(name)
    heavy = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    simulate(model, ac.Policy({}, dict.fromkeys(heavy, ac.LayerPolicy(4, 4))))
    decaying, still = default_optimizer(model).param_groups
    names = {id(parameter): n for n, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decaying["params"]} == {f"{n}.parametrizations.weight.original" for n in heavy}
    assert len(decaying["params"]) + len(still["params"]) == len(names)
    assert decaying["weight_decay"] > still["weight_decay"] == 0


def test_the_rate_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5)
    schedule, rates = Cosine(optimizer, 100), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rising = round(100 * WARM_UP)
    expected = [0.5 * (i + 1) / rising for i in range(rising)]
    expected += [0.25 * (1 + math.cos(math.pi * i / (100 - rising))) for i in range(100 - rising)]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_the_rate_falls_sooner_where_a_training_is_shortened() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5)
    schedule = Cosine(optimizer, 100)
    for step in range(60):
        if step == 50:
            schedule.steps = 60
        optimizer.step()
        schedule.step()
        steps = 100 if step < 50 else 60
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * cosine_share(step + 1, steps))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("fraction", "share"), [(0, 0), (0.25, 0.875), (0.5, 1), (1, 1)])
def test_zeros_come_along_a_cubic_curve(fraction: float, share: float) -> None:
    assert sparsity_at(fraction) == pytest.approx(share)


def test_a_users_scheduler_is_told_the_steps_and_called_after_each() -> None:
    seen: list[Any] = []

    class Counting:
        def __init__(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
            seen.append((optimizer, steps))

        def step(self) -> None:
            seen.append("step")

    made: list[torch.optim.Optimizer] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, 1e-3))
        return made[0]

    task = models.small_task(models.build("mlp"), batch_size=16, optimizer=optimizer, scheduler=Counting)
    fine_tune(task, copy.deepcopy(task.model), SETTINGS, silent)
    assert seen == [(made[0], 8), *["step"] * 8]
    assert made[0].param_groups[0]["lr"] == SETTINGS.learning_rate


def test_something_may_be_done_after_every_step() -> None:
    task = models.small_task(models.build("mlp"), batch_size=16)
    done: list[float] = []
    calls: list[int] = []
    fine_tune(task, copy.deepcopy(task.model), SETTINGS, done.append, lambda: calls.append(len(done)))
    assert calls == list(range(8))


def test_attention_maps_are_squares_summed_over_channels_and_normalized() -> None:
    mine, theirs = models.build("conv", seed=0), models.build("conv", seed=1)
    pairs = FeaturePairs(mine, theirs)
    inputs = models.digits()["valid"][0][:4]
    outputs: dict[str, list[np.ndarray]] = {"conv1": [], "conv2": []}
    for model in (mine, theirs):
        for name, found in outputs.items():
            model.get_submodule(name).register_forward_hook(
                lambda _, __, output, found=found: found.append(output.detach().numpy())
            )
    mine(inputs), theirs(inputs)
    expected = 0.0
    for both in outputs.values():  # of two sizes, so both are compared
        maps = [(one**2).sum(1).reshape(4, -1) for one in both]
        maps = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in maps]
        expected += ((maps[0] - maps[1]) ** 2).sum(1).mean()
    assert pairs.distance().item() == pytest.approx(expected, rel=1e-4)
    pairs.close()
    mine(inputs)
    assert pairs.maps == {}


@pytest.mark.parametrize("chosen", [BOTH, Arithmetic(bf16=True), Arithmetic(channels_last=True)])
@pytest.mark.parametrize("layer", [ac.LayerPolicy(8, 8), ac.LayerPolicy(4, 4, 0.5)], ids=["8", "4"])
def test_every_arithmetic_trains_to_about_the_same_model(
    chosen: Arithmetic, layer: ac.LayerPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "WORTH_PROBING", 1)
    monkeypatch.setattr(arithmetic, "_seconds", lambda one, *_, **__: 1.0 if one == chosen else 2.0)
    inputs = models.digits()["valid"][0][:32]
    found = []
    for kind in ("f32", "fastest"):
        task = models.small_task(models.resnet(), batch_size=16)
        model = quantized(task, layer)
        fine_tune(task, model, TuneSettings(1, 1e-4, 0.5, arithmetic=kind), silent)
        assert all(p.is_contiguous() and p.dtype == torch.float32 for p in model.parameters())
        with torch.no_grad():
            found.append(model(inputs))
    assert torch.isfinite(found[1]).all()
    assert (found[0] - found[1]).abs().mean() < 0.1 * found[0].std()


def test_another_arithmetic_must_be_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "WORTH_PROBING", 1)
    for seconds, expected in ((0.9, Arithmetic(channels_last=True)), (0.5, BOTH)):
        monkeypatch.setattr(arithmetic, "_seconds", lambda one, *_, s=seconds, **__: s if one == BOTH else 1.0)
        task = models.small_task(models.build("resnet"))
        settings = TuneSettings(1, 1e-2, 0.5, arithmetic="fastest")
        teacher = copy.deepcopy(task.model)
        assert Trainer(task, copy.deepcopy(task.model), settings, teacher).arithmetic == expected
        monkeypatch.setattr(arithmetic, "_seconds", lambda *_, **__: pytest.fail("probed twice"))
        assert Trainer(task, copy.deepcopy(task.model), settings, teacher).arithmetic == expected


@pytest.mark.parametrize(
    ("value", "is_sound"), [(0.0, True), (1.5, True), (4.0, False), (1e30, False), (float("inf"), False), (float("nan"), False)]
)
def test_gradients_that_are_nonsense_rule_an_arithmetic_out(
    value: float, is_sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "WORTH_PROBING", 1)
    monkeypatch.setattr(arithmetic, "_seconds", lambda one, *_, **__: 0.5 if one == BOTH else 1.0)
    gradients = arithmetic._gradients

    def spoiled(one: Arithmetic, *given: Any) -> list[torch.Tensor]:
        found = gradients(one, *given)
        largest = max(range(len(found)), key=lambda index: float(found[index].norm()))
        if one.bf16:
            found[largest] = found[largest] * (1 + value)
        return found

    monkeypatch.setattr(arithmetic, "_gradients", spoiled)
    task = models.small_task(models.build("resnet"))
    settings = TuneSettings(1, 1e-2, 0.5, arithmetic="fastest")
    trainer = Trainer(task, copy.deepcopy(task.model), settings, copy.deepcopy(task.model))
    assert trainer.arithmetic.bf16 == is_sound


def test_parameters_that_have_no_gradient_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "WORTH_PROBING", 1)
    monkeypatch.setattr(arithmetic, "_seconds", lambda one, *_, **__: 0.5 if one == BOTH else 1.0)
    gradients, counts = arithmetic._gradients, []

    def counted(*given: Any) -> list[torch.Tensor]:
        found = gradients(*given)
        counts.append(len(found))
        return found

    class Cut(models.ConvNet):
        """A network of which a step may leave a part out."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.fc(torch.relu(self.bn2(self.conv2(x).detach())).mean((2, 3)))

    monkeypatch.setattr(arithmetic, "_gradients", counted)
    task = models.small_task(Cut())
    settings = TuneSettings(1, 1e-2, 0.5, arithmetic="fastest")
    assert Trainer(task, copy.deepcopy(task.model), settings, copy.deepcopy(task.model)).arithmetic == BOTH
    assert counts == [len(list(task.model.parameters()))] * 3


@pytest.mark.parametrize(("groups", "dilation", "is_sound"), [(2, 2, False), (1, 2, True), (2, 1, True)])
def test_grouped_convolutions_with_dilation_are_not_trained_in_bf16(
    groups: int, dilation: int, is_sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "WORTH_PROBING", 1)
    monkeypatch.setattr(arithmetic, "_seconds", lambda one, *_, **__: 0.5 if one == BOTH else 1.0)
    layers = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=groups, dilation=dilation), nn.Flatten(), nn.LazyLinear(10)
    model = nn.Sequential(*layers)
    model(torch.zeros(1, 1, 8, 8))
    task = models.small_task(model)
    settings = TuneSettings(1, 1e-2, 0.5, arithmetic="fastest")
    assert Trainer(task, copy.deepcopy(model), settings, copy.deepcopy(model)).arithmetic.bf16 == is_sound


class Viewing(nn.Module):
    """Flattens images by a view, which only one order of memory allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8 * 36, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images)
        return self.head(features.view(len(features), -1))


@pytest.mark.parametrize("kind", ["f32", "fastest"])
def test_channels_stay_first_where_a_view_asks_for_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "WORTH_PROBING", 1)
    task, framework = models.small_task(Viewing()), TorchFramework()
    assert exact_arithmetic(task) == FLOAT32
    candidate = framework.compress(task, ac.Policy(), "l2")
    framework.fine_tune(task, candidate, TuneSettings(1, 1e-2, 0.5, arithmetic=kind), silent)
    framework.reestimate(task, candidate)
    assert framework.predict(task, candidate, [(task.train[0][:4],)]).shape == (4, 10)


def test_predictions_can_be_viewed_and_probing_draws_no_random_number() -> None:
    network, framework = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3)), TorchFramework()
    task = models.small_task(network, loss=lambda outputs, targets: outputs.square().mean())
    before = torch.random.get_rng_state()
    assert exact_arithmetic(task).channels_last
    assert torch.equal(torch.random.get_rng_state(), before)
    found = framework.predict(task, framework.compress(task, ac.Policy(), "l2"), [(task.train[0][:4],)] * 2)
    assert found.flags.c_contiguous


def test_the_order_of_memory_changes_no_result_and_is_put_back() -> None:
    task, framework = models.small_task(models.resnet()), TorchFramework()
    assert exact_arithmetic(task) == Arithmetic(channels_last=True)
    candidate = framework.compress(task, ac.Policy(), "l2")
    images = models.digits()["valid"][0]
    with torch.no_grad():
        expected = candidate.model(images)
    first = next(module for module in candidate.model.modules() if isinstance(module, nn.Conv2d))
    seen: list[bool] = []
    first.register_forward_hook(
        lambda _, __, output: seen.append(output.is_contiguous(memory_format=torch.channels_last)) if output.ndim == 4 else None
    )
    found = framework.predict(task, candidate, [(images,)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    framework.reestimate(task, candidate)
    assert len(seen) > 1
    assert all(seen)
    assert all(weight.is_contiguous() for weight in candidate.model.parameters())


def test_probing_leaves_the_model_as_it_was() -> None:
    task = models.small_task(models.build("resnet"))
    model = copy.deepcopy(task.model)
    before = copy.deepcopy(model.state_dict())
    batch = Batch((task.train[0][:16],), task.train[1][:16])
    arithmetic.fastest_arithmetic(task, model, copy.deepcopy(task.model), SETTINGS, batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_short_training_is_not_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "fastest_arithmetic", lambda *_: pytest.fail("probed"))
    task = models.small_task(models.build("mlp"))
    fine_tune(task, copy.deepcopy(task.model), TuneSettings(1, 1e-2, 0.5, arithmetic="fastest"), silent)


def test_progress_reaches_the_simulation_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def noted(model: nn.Module, fraction: float) -> None:
        seen.append(fraction)
        set_progress(model, fraction)

    monkeypatch.setattr(finetune, "set_progress", noted)
    task = models.small_task(models.build("conv"), batch_size=16)
    model = quantized(task, ac.LayerPolicy(8, 8, 0.75))
    fine_tune(task, model, SETTINGS, silent)
    assert seen == [*(i / 8 for i in range(8)), 1.0]
    assert (model.conv2.weight == 0).float().mean().item() >= 0.75


class HalfFrozen(nn.Sequential):
    """A network whose first layer stays in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self[1].eval()
        return self


STEPS = 9
STARTS = {
    "of a training": (models.FlattenNet, ac.LayerPolicy(8, 8), {}, {FIRST_BATCHES + STEPS}),
    "that are learned": (models.FlattenNet, ac.LayerPolicy(8, 4), {}, {CALIBRATION_BATCHES}),
    "of a user's own loop": (
        models.FlattenNet,
        ac.LayerPolicy(8, 8),
        {"fine_tune": lambda model, teacher, epochs: None},
        {CALIBRATION_BATCHES},
    ),
    "that stand still": (HalfFrozen, ac.LayerPolicy(8, 8), {}, {CALIBRATION_BATCHES, CALIBRATION_BATCHES + STEPS}),
}


@pytest.mark.parametrize("kind", STARTS)
def test_ranges_start_from_as_many_batches_as_they_need(kind: str) -> None:
    make, layer, options, expected = STARTS[kind]
    task = models.search_task(make(), samples=64 * STEPS, **options)
    model = quantized(task, layer)
    fine_tune(task, model, TuneSettings(epochs=1, learning_rate=1e-3, distillation=0.0), silent)
    assert {int(quantizer.batches) for quantizer in simulated_inputs(model)} == expected


def test_ranges_that_start_a_training_do_without_a_batch_of_one() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    images, classes = models.digits()["valid"]
    task = models.small_task(model, train=[(images[:4], classes[:4]), (images[4:5], classes[4:5]), (images[5:9], classes[5:9])])
    calibrated = quantized(task, ac.LayerPolicy(8, 8))
    calibrate_ranges(task, calibrated, trains=True)
    assert {int(quantizer.batches) for quantizer in simulated_inputs(calibrated)} == {2}


class FrozenNorm(models.ConvNet):
    """A network whose second batch norm stays in evaluation mode."""

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.bn2.eval()
        return self


@pytest.mark.parametrize(("make", "is_far_off"), [(models.ConvNet, False), (FrozenNorm, True)])
def test_statistics_of_a_larger_model_do_not_spoil_the_first_ranges(make: Any, is_far_off: bool) -> None:
    task = models.small_task(make())
    model = quantized(task, ac.LayerPolicy(8, 8))
    for norm in (model.bn1, model.bn2):
        norm.running_var.fill_(1e-30)
    calibrate_ranges(task, model, trains=True)
    conv, fc = (float(layer.simulated_input.high) for layer in (model.conv2, model.fc))
    assert conv < 20
    assert (fc > 100) == is_far_off
    assert not any(module.training for module in model.modules())
    assert float(model.bn1.running_var.min()) > 1e-3
    assert torch.equal(model.bn2.running_var, torch.full((24,), 1e-30)) == is_far_off
