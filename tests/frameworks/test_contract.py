"""What every framework does for a task, whatever its model looks like. A new framework adds a `Cases` of its own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import models
import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray

import autocompress as ac
from autocompress.data import Inputs, to_numpy
from autocompress.device import Target
from autocompress.errors import ConversionError, DivergedError, HopelessError, ModelError, TaskError
from autocompress.frameworks import pace
from autocompress.frameworks.base import Candidate, Framework, TuneSettings, framework_of
from autocompress.frameworks.schedule import PRUNED_SGD_RATE
from autocompress.frameworks.torch.calls import call, outputs_of, tensors
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.reestimate import reestimate
from autocompress.target.evaluate import evaluate, feed, predict
from autocompress.target.layer_graphs import signature_of
from autocompress.target.precision import heavy_nodes, place_precision, weight_port
from autocompress.target.runtime import compile_for_scoring, compile_model

F32 = Target(precision="f32")


class Cases(Protocol):
    """The models of a framework, by what is particular about them."""

    framework: Framework
    first_branch: str
    """The first group of the residual net that may go whole."""

    def task(self, kind: str, **options: Any) -> ac.Task:
        """A task with few samples and a model of this kind."""
        ...

    def trained_task(self, **options: Any) -> ac.Task:
        """A residual net at about 97 % of the digits."""
        ...

    def again(self, model: Any) -> ac.Task:
        """A task with few samples and a given model of images."""
        ...

    def first_digits(self, count: int) -> Any:
        """Some of the training data."""
        ...

    def constant_rate(self, optimizer: Any, steps: int) -> Any:
        """A scheduler."""
        ...

    def sgd(self, parameters: Any) -> Any:
        """An optimizer."""
        ...

    def rate(self, optimizer: Any) -> float:
        """The rate that it has now."""
        ...

    def loss_without_value(self) -> Any:
        """A loss that is never a number."""
        ...

    def outputs(self, model: Any, inputs: Inputs) -> list[NDArray[Any]]:
        """The outputs of the framework itself, in order."""
        ...

    def masked_outputs(self, task: ac.Task, training: Any, policy: ac.Policy, inputs: Inputs) -> list[NDArray[Any]]:
        """The outputs of the elastic model itself under a policy, with statistics and ranges of its own."""
        ...


class TorchCases:
    framework = TorchFramework()
    first_branch = "block1.conv1"

    def task(self, kind: str, **options: Any) -> ac.Task:
        if kind in models.CLASSIFIERS:
            return models.small_task(models.build(kind), **options)
        data = models.digits()["valid"]
        if kind in ("two inputs", "named inputs"):
            data = models.halves(data, named=kind == "named inputs")
            options = {"train": data, "valid": data} | options
            return models.small_task(models.seeded(models.TwoInputs), **options)
        if kind in ("two outputs", "dict output"):
            options = {"loss": _classes_and_brightness, "metric": _classes_right, "direction": "maximize"} | options
            return models.small_task(models.seeded(models.TwoOutputs, kind == "dict output"), **options)
        assert kind == "regression"
        parts = models.diabetes()
        options = {"metric": "mse", "train": parts["train"], "valid": parts["valid"]} | options
        return models.small_task(models.seeded(models.Regressor), **options)

    def trained_task(self, **options: Any) -> ac.Task:
        return models.digits_task(models.resnet(), **options)

    def again(self, model: Any) -> ac.Task:
        return models.small_task(model)

    def first_digits(self, count: int) -> Any:
        return tuple(array[:count] for array in models.digits()["train"])

    def constant_rate(self, optimizer: Any, steps: int) -> Any:
        return torch.optim.lr_scheduler.ConstantLR(optimizer)

    def sgd(self, parameters: Any) -> Any:
        return torch.optim.SGD(parameters)

    def rate(self, optimizer: Any) -> float:
        return float(optimizer.param_groups[0]["lr"])

    def loss_without_value(self) -> Any:
        return lambda outputs, targets: outputs.sum() * float("nan")

    def outputs(self, model: Any, inputs: Inputs) -> list[NDArray[Any]]:
        with torch.no_grad():
            return [output.numpy() for output in outputs_of(call(model.eval(), tensors(inputs)))]

    def trained_weights_equal(self, model: Any, other: Any) -> bool:
        return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    def masked_outputs(self, task: ac.Task, training: Any, policy: ac.Policy, inputs: Inputs) -> list[NDArray[Any]]:
        training.elastic.obey(policy)
        reestimate(training.elastic.model, task)
        return self.outputs(training.elastic.model, inputs)


class KerasCases:
    first_branch = "block1_conv1"

    def __init__(self) -> None:
        import keras_models

        from autocompress.frameworks.keras.framework import KerasFramework

        self.models, self.framework = keras_models, KerasFramework()

    def task(self, kind: str, **options: Any) -> ac.Task:
        models = self.models
        if kind in models.CLASSIFIERS:
            return models.small_task(models.build(kind), **options)
        data = models.digits()["valid"]
        if kind in ("two inputs", "named inputs"):
            data = models.halves(data, named=kind == "named inputs")
            options = {"train": data, "valid": data} | options
            return models.small_task(models.seeded(models.two_inputs), **options)
        if kind in ("two outputs", "dict output"):
            as_dict = kind == "dict output"
            images, classes = (array[:64] for array in data)
            targets: Any = (classes, 0 * classes[:, None].astype("float32"))
            losses: Any = (models.cross_entropy(), "mse")
            if as_dict:
                targets, losses = (dict(zip(("classes", "shade"), both, strict=True)) for both in (targets, losses))
            options = {"loss": losses, "metric": _first_classes_right, "direction": "maximize"} | options
            options = {"train": (images, targets), "valid": (images, targets)} | options
            return models.small_task(models.seeded(models.two_outputs, as_dict), **options)
        assert kind == "regression"
        parts = models.diabetes()
        options = {"metric": "mse", "loss": "mse", "train": parts["train"], "valid": parts["valid"]} | options
        return models.small_task(models.seeded(models.regressor), **options)

    def trained_task(self, **options: Any) -> ac.Task:
        return self.models.digits_task(self.models.resnet(), **options)

    def again(self, model: Any) -> ac.Task:
        return self.models.small_task(model)

    def first_digits(self, count: int) -> Any:
        return tuple(array[:count] for array in self.models.digits()["train"])

    def constant_rate(self, optimizer: Any, steps: int) -> Any:
        return lambda step: 1e-3

    def sgd(self, parameters: Any) -> Any:
        import keras

        return keras.optimizers.SGD()

    def rate(self, optimizer: Any) -> float:
        return float(optimizer.learning_rate)

    def loss_without_value(self) -> Any:
        return lambda targets, outputs: outputs * float("nan")

    def outputs(self, model: Any, inputs: Inputs) -> list[NDArray[Any]]:
        import keras

        from autocompress.frameworks.keras.calls import call, outputs_of

        return [keras.ops.convert_to_numpy(output) for output in outputs_of(call(model, inputs))]

    def masked_outputs(self, task: ac.Task, training: Any, policy: ac.Policy, inputs: Inputs) -> list[NDArray[Any]]:
        from autocompress.frameworks.keras.reestimate import reestimate as reestimate_keras

        training.elastic.obey(policy)
        reestimate_keras(training.elastic.model, task)
        return self.outputs(training.elastic.model, inputs)

    def trained_weights_equal(self, model: Any, other: Any) -> bool:
        pairs = zip(model.trainable_weights, other.trainable_weights, strict=True)
        return all((one.numpy() == another.numpy()).all() for one, another in pairs)


def _first_classes_right(predictions: Any, targets: Any) -> float:
    classes = targets["classes"] if isinstance(targets, dict) else targets[0]
    return _classes_right(predictions, classes)


def _classes_and_brightness(outputs: Any, classes: torch.Tensor) -> torch.Tensor:
    logits, brightness = outputs_of(outputs)
    return torch.nn.functional.cross_entropy(logits, classes) + (brightness**2).mean()


def _classes_right(predictions: Any, classes: NDArray[Any]) -> float:
    return float((predictions[0].argmax(1) == classes).mean())


KINDS = (
    "conv",
    "resnet",
    "flatten",
    "mlp",
    "sequential",
    "separable",
    "grouped",
    "transposed",
    "conv1d",
    "squeeze-excite",
    "shared",
    "two inputs",
    "named inputs",
    "two outputs",
    "dict output",
    "regression",
)
SETTINGS = TuneSettings(epochs=1, learning_rate=5e-3, distillation=0.5)


@pytest.fixture(scope="module", params=[TorchCases, KerasCases], ids=["torch", "keras"])
def cases(request: pytest.FixtureRequest) -> Cases:
    return request.param()


def first_inputs(task: ac.Task, count: int = 1) -> Inputs:
    return next(iter(task.splits["valid"].numpy())).map(lambda array: array[:count]).inputs


def mixed_policy(cases: Cases, task: ac.Task) -> ac.Policy:
    """Something of everything: every group halved, 4 bits and half of the weights zero."""
    structure = cases.framework.inspect(task)
    layer = ac.LayerPolicy(4, 8, 0.5)
    return ac.Policy({group.name: 0.5 for group in structure.groups}, {one.name: layer for one in structure.layers})


def compressed(cases: Cases, task: ac.Task, policy: ac.Policy) -> Candidate:
    return cases.framework.compress(task, policy, "l2")


def converted_outputs(cases: Cases, task: ac.Task, candidate: Candidate, batch: int = 1) -> list[NDArray[Any]]:
    compiled = compile_model(cases.framework.to_openvino(task, candidate, batch).model, F32)
    found = predict(compiled, [(first_inputs(task, batch), batch)])
    return list(found) if isinstance(found, tuple) else [found]


def silent(fraction: float) -> None:
    """A progress callback that does nothing."""


def test_the_framework_is_recognised_by_its_models(cases: Cases) -> None:
    assert framework_of(cases.task("conv").model).name == cases.framework.name


def test_a_model_of_no_framework_is_refused() -> None:
    with pytest.raises(TaskError, match=r"torch\.nn\.Module or a keras\.Model.*dict"):
        framework_of({})


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_with_a_weight_is_found_with_its_work(cases: Cases, kind: str) -> None:
    task = cases.task(kind)
    layers = cases.framework.inspect(task).layers
    assert len({layer.name for layer in layers}) == len(layers) >= 2
    assert all(layer.macs >= np.prod(layer.weight_shape) / layer.weight_shape[0] for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_policy_changes_no_output(cases: Cases, kind: str) -> None:
    task = cases.task(kind)
    candidate = compressed(cases, task, ac.Policy())
    inputs = first_inputs(task, 8)
    for actual, expected in zip(cases.outputs(candidate.model, inputs), cases.outputs(task.model, inputs), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_group_and_layer_can_be_compressed_at_once(cases: Cases, kind: str) -> None:
    task = cases.task(kind)
    candidate = compressed(cases, task, mixed_policy(cases, task))
    inputs = first_inputs(task, 8)
    shapes = [output.shape for output in cases.outputs(candidate.model, inputs)]
    assert shapes == [output.shape for output in cases.outputs(task.model, inputs)]
    whole = {layer.name: layer.macs for layer in cases.framework.inspect(task).layers}
    assert candidate.macs.keys() == whole.keys()
    assert (sum(candidate.macs.values()) < sum(whole.values())) == bool(cases.framework.inspect(task).groups)


@pytest.mark.parametrize("kind", KINDS)
def test_the_channels_that_layers_lose_are_known_without_the_candidate(cases: Cases, kind: str) -> None:
    task = cases.task(kind)
    structure = cases.framework.inspect(task)
    pruning = {group.name: (0.3, 0.6)[i % 2] for i, group in enumerate(structure.groups)}
    whole, pruned = (
        {
            name: [(layer.inputs, layer.outputs, layer.groups) for layer in map(signature_of, nodes)]
            for name, nodes in heavy_nodes(cases.framework.to_openvino(task, compressed(cases, task, policy), 1).model).items()
        }
        for policy in (ac.Policy(), ac.Policy(pruning))
    )
    lost_inputs, lost_outputs = structure.lost_channels(pruning)
    for name, nodes in whole.items():
        kept = [(n - lost_inputs.get(name, 0), m - lost_outputs.get(name, 0)) for n, m, _ in nodes]
        assert kept == [(n, m) for n, m, _ in pruned[name]]
    assert {layer.name: layer.groups for layer in structure.layers} == {name: nodes[0][2] for name, nodes in whole.items()}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_converted_model_gives_the_frameworks_outputs(cases: Cases, kind: str, batch: int) -> None:
    task = cases.task(kind)
    candidate = compressed(cases, task, ac.Policy())
    expected = cases.outputs(task.model, first_inputs(task, batch))
    for actual, wanted in zip(converted_outputs(cases, task, candidate, batch), expected, strict=True):
        assert np.abs(actual - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_model_without_a_branch_has_no_other_outputs(cases: Cases) -> None:
    task = cases.task("resnet")
    (name, *_) = [group.name for group in cases.framework.inspect(task).groups if group.removable]
    candidate = compressed(cases, task, ac.Policy({name: 1.0}))
    (expected,) = cases.outputs(candidate.model, first_inputs(task))
    (actual,) = converted_outputs(cases, task, candidate)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_converted_layers_carry_the_frameworks_names(cases: Cases, kind: str) -> None:
    task = cases.task(kind)
    converted = cases.framework.to_openvino(task, compressed(cases, task, mixed_policy(cases, task)), 1)
    names = {layer.name for layer in cases.framework.inspect(task).layers}
    assert set(heavy_nodes(converted.model)) == names
    assert set(converted.grids) == names


def test_a_layer_that_is_called_twice_is_two_nodes_of_one_name(cases: Cases) -> None:
    task = cases.task("shared")
    converted = cases.framework.to_openvino(task, compressed(cases, task, ac.Policy()), 1)
    assert {name: len(nodes) for name, nodes in heavy_nodes(converted.model).items()} == {"first": 1, "shared": 2, "last": 1}


def test_named_inputs_reach_the_inputs_of_their_names(cases: Cases) -> None:
    task = cases.task("named inputs")
    compiled = compile_model(cases.framework.to_openvino(task, compressed(cases, task, ac.Policy()), 1).model, F32)
    inputs = first_inputs(task)
    swapped = {"upper": inputs["lower"], "lower": inputs["upper"]}
    (expected,) = cases.outputs(task.model, swapped)
    np.testing.assert_allclose(predict(compiled, [(swapped, 1)]), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConversionError, match=r"inputs upper, lower, not middle|inputs .*, not middle"):
        feed(compiled, {"middle": inputs["lower"]})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded_exactly(cases: Cases, kind: str, tmp_path: Path) -> None:
    task = cases.task(kind)
    policy = mixed_policy(cases, task)
    tuned, fresh = compressed(cases, task, policy), compressed(cases, task, policy)
    cases.framework.fine_tune(task, tuned, SETTINGS, silent)
    cases.framework.save(tuned, tmp_path / "weights.safetensors")
    inputs = first_inputs(task, 8)
    assert any((a != b).any() for a, b in zip(*(cases.outputs(c.model, inputs) for c in (tuned, fresh)), strict=True))
    cases.framework.load(fresh, tmp_path / "weights.safetensors")
    for actual, expected in zip(cases.outputs(fresh.model, inputs), cases.outputs(tuned.model, inputs), strict=True):
        np.testing.assert_array_equal(actual, expected)
    for actual, expected in zip(*(converted_outputs(cases, task, c) for c in (fresh, tuned)), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_save_that_fails_leaves_no_file(cases: Cases, tmp_path: Path) -> None:
    task = cases.task("mlp")
    with pytest.raises(Exception, match=r"."):
        cases.framework.save(compressed(cases, task, ac.Policy()), tmp_path / "missing" / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_weights_file_holds_no_pickle(cases: Cases, tmp_path: Path) -> None:
    cases.framework.save(compressed(cases, cases.task("mlp"), ac.Policy()), tmp_path / "weights.safetensors")
    header = (tmp_path / "weights.safetensors").read_bytes()
    assert header[8:9] == b"{"
    assert list(tmp_path.iterdir()) == [tmp_path / "weights.safetensors"]


def scored(cases: Cases, task: ac.Task, candidate: Candidate) -> float:
    model = cases.framework.to_openvino(task, candidate, 1).model
    return evaluate(compile_for_scoring(model, F32), task.splits["valid"], task.scorer)


def deployed(task: ac.Task, cases: Cases, candidate: Candidate) -> ov.Model:
    """The IR that would be shipped."""
    converted = cases.framework.to_openvino(task, candidate, 1)
    return place_precision(converted, candidate.policy, task.calibration_split.take(64))


def both_outputs(cases: Cases, task: ac.Task, candidate: Candidate, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first output of the simulation and of the IR, for some samples."""
    compiled = compile_model(deployed(task, cases, candidate), F32)
    samples = task.splits["valid"].take(count)
    found = predict(compiled, [(sample, 1) for sample in samples])
    simulated = np.concatenate([cases.outputs(candidate.model, sample)[0] for sample in samples])
    return simulated, found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("kind", ["conv", "mlp", "separable", "two inputs", "regression"])
def test_the_deployed_outputs_are_those_of_the_simulation(cases: Cases, kind: str) -> None:
    task = cases.task(kind)
    layers = cases.framework.inspect(task).layers
    candidate = compressed(cases, task, ac.Policy({}, {layer.name: ac.LayerPolicy(4, 8) for layer in layers}))
    cases.framework.fine_tune(task, candidate, SETTINGS, silent)
    simulated, real = both_outputs(cases, task, candidate, 32)
    assert np.abs(simulated - real).mean() <= 0.02 * np.ptp(simulated)


def test_training_starts_from_the_ranges_that_are_deployed_without_training(cases: Cases) -> None:
    task = cases.task("mlp")
    layers = cases.framework.inspect(task).layers
    policy = ac.Policy({}, {layer.name: ac.LayerPolicy(8, 8) for layer in layers})
    untrained, hardly = compressed(cases, task, policy), compressed(cases, task, policy)
    cases.framework.fine_tune(task, hardly, TuneSettings(1, 1e-12, 0.5), silent)
    simulated, _ = both_outputs(cases, task, hardly, 32)
    _, real = both_outputs(cases, task, untrained, 32)
    assert np.abs(simulated - real).mean() <= 0.01 * np.ptp(real)


def test_a_chain_of_all_methods_is_deployed_as_it_was_trained(cases: Cases) -> None:
    task = cases.trained_task(learning_rate=1e-2)
    structure = cases.framework.inspect(task)
    choices = [
        ac.LayerPolicy(8, 8),
        ac.LayerPolicy(4, 8, 0.5),
        ac.LayerPolicy(4, 4),
        ac.LayerPolicy(8, 8, pattern="2:4"),
        ac.LayerPolicy(1, 1),
    ]
    layers = {layer.name: choices[i % len(choices)] for i, layer in enumerate(structure.layers)}
    layers |= {structure.layers[-1].name: choices[0]}
    assert set(layers.values()) == set(choices)
    candidate = compressed(cases, task, ac.Policy({group.name: 0.25 for group in structure.groups}, layers))
    cases.framework.fine_tune(task, candidate, TuneSettings(3, 1e-2, 0.5), silent)
    simulated, real = both_outputs(cases, task, candidate, 300)
    assert (simulated.argmax(1) == real.argmax(1)).mean() >= 0.97
    assert (real.argmax(1) == to_numpy(task.valid[1])).mean() >= 0.8


@pytest.mark.parametrize("bits", ["float", 8, 4])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_zeros_stay_zeros_in_the_ir(cases: Cases, bits: int | str, pattern: str, tmp_path: Path) -> None:
    task = cases.task("resnet")
    layers = cases.framework.inspect(task).layers
    sparse = ac.LayerPolicy(bits, "float" if bits == "float" else 8, 0.5, pattern)
    candidates = [compressed(cases, task, ac.Policy({}, {layer.name: sparse for layer in layers})) for _ in range(2)]
    cases.framework.fine_tune(task, candidates[0], TuneSettings(2, 1e-2, 0.5), silent)
    cases.framework.save(candidates[0], tmp_path / "weights.safetensors")
    cases.framework.load(candidates[1], tmp_path / "weights.safetensors")
    for name, (node,) in heavy_nodes(deployed(task, cases, candidates[1])).items():
        weight = constant_value(node.input_value(weight_port(node) or 0))
        if pattern == "unstructured":
            assert (weight == 0).mean() >= 0.5 - 0.5 / weight.size
        elif weight.shape[1] % 4 == 0:
            blocks = weight.reshape(weight.shape[0], -1, 4, *weight.shape[2:])
            assert ((blocks != 0).sum(2) <= 2).all()
            assert (weight != 0).any(), name


def constant_value(value: ov.Output) -> NDArray[Any]:
    """What a part of a graph without inputs computes."""
    return np.array(compile_model(ov.Model([value], []), F32)([])[0])


@pytest.mark.parametrize("kind", ["xnor", "dorefa"])
def test_weights_of_one_bit_have_a_scale_per_channel_or_one_per_layer(cases: Cases, kind: Any) -> None:
    task = cases.task("mlp")
    name = cases.framework.inspect(task).layers[1].name
    candidate = compressed(cases, task, ac.Policy({}, {name: ac.LayerPolicy(1, 1)}))
    cases.framework.fine_tune(task, candidate, TuneSettings(2, 1e-2, 0.5, binarization=kind), silent)
    (node,) = heavy_nodes(cases.framework.to_openvino(task, candidate, 1).model)[name]
    scales = np.abs(constant_value(node.input_value(weight_port(node) or 0)))
    channels = len(np.unique(np.round(scales, 6)))
    assert (channels == 1) == (kind == "dorefa")


def test_a_hopeless_candidate_is_ended_after_its_first_epoch(cases: Cases) -> None:
    task = cases.trained_task()
    structure = cases.framework.inspect(task)
    layers = structure.layers
    bits = {layer.name: ac.LayerPolicy(1, 1) for layer in layers}
    ruined = compressed(cases, task, ac.Policy({group.name: 0.75 for group in structure.groups}, bits))
    settings = TuneSettings(3, 1e-9, 0.5, stop_hopeless=True)
    seen: list[float] = []
    with pytest.raises(HopelessError, match=r"after the first epoch: accuracy 0\.\d+ .* ignores its input .* the original 0\.9"):
        cases.framework.fine_tune(task, ruined, settings, seen.append)
    assert seen[-1] == pytest.approx(1 / 3, abs=0.01)
    good = compressed(cases, task, ac.Policy({}, {layer.name: ac.LayerPolicy(8, 8) for layer in layers}))
    cases.framework.fine_tune(task, good, settings, silent)


@pytest.mark.parametrize("kind", ["resnet", "mlp", "two outputs"])
def test_features_are_learned_beside_the_outputs_and_leave_no_trace(cases: Cases, kind: str) -> None:
    task = cases.task(kind)
    policy = mixed_policy(cases, task)
    first, second = compressed(cases, task, policy), compressed(cases, task, policy)
    for candidate, weight in ((first, 0.0), (second, 100.0)):
        settings = TuneSettings(2, 1e-2, 0.5, feature_distillation=weight)
        cases.framework.fine_tune(task, candidate, settings, silent)
    inputs = first_inputs(task, 8)
    outputs = [cases.outputs(candidate.model, inputs)[0] for candidate in (first, second)]
    assert np.isfinite(outputs[1]).all()
    assert np.allclose(outputs[0], outputs[1], atol=1e-5) == (kind == "mlp")  # its layers see one position
    assert np.array_equal(converted_outputs(cases, task, second)[0], converted_outputs(cases, task, second)[0])


def test_fine_tuning_recovers_the_accuracy_on_digits(cases: Cases) -> None:
    task = cases.trained_task(learning_rate=1e-2)
    structure = cases.framework.inspect(task)
    policy = ac.Policy({g.name: 0.5 for g in structure.groups}, {one.name: ac.LayerPolicy(4, 8) for one in structure.layers})
    candidate = compressed(cases, task, policy)
    original, before = scored(cases, task, compressed(cases, task, ac.Policy())), scored(cases, task, candidate)
    seen: list[float] = []
    cases.framework.fine_tune(task, candidate, TuneSettings(3, 3e-2, 0.5), seen.append)
    after = scored(cases, task, candidate)
    assert before < 0.6 < 0.9 < after
    assert original >= 0.95
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


class Steps(list[float]):
    """Progress that is told after every step, each of which takes some seconds on the clock of a training.

    Args:
        seconds: of a step, of which as many were told as it is given.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
        super().__init__()
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(pace, "monotonic", lambda: self.now)

    def __call__(self, fraction: float) -> None:
        self.append(fraction)
        self.now += self.seconds(len(self))


def test_a_training_is_shortened_to_end_in_time(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    task, made = cases.task("resnet", batch_size=16), list[Any]()
    task.optimizer = lambda parameters: made.append(cases.sgd(parameters)) or made[-1]
    steps, told = task.splits["train"].batch_count or 0, Steps(monkeypatch, lambda told: 1.0)
    settings = TuneSettings(6, 1e-2, 0.5, deadline=4.2 * steps)
    assert cases.framework.fine_tune(task, compressed(cases, task, ac.Policy()), settings, told) == 3
    assert told[:-1] == pytest.approx([(step + 1) / steps / (6 if step < steps else 3) for step in range(3 * steps)])
    planned = replace(settings, epochs=3, deadline=None)
    assert cases.framework.fine_tune(task, compressed(cases, task, ac.Policy()), planned, silent) == 3
    shortened, three = map(cases.rate, made)
    assert shortened == pytest.approx(three)


def test_epochs_in_which_channels_fall_silent_count(cases: Cases) -> None:
    task, settings = cases.task("resnet"), TuneSettings(3, 1e-2, 0.5, pruning_schedule="linear")
    group = cases.framework.inspect(task).groups[0].name
    assert cases.framework.fine_tune(task, compressed(cases, task, ac.Policy({group: 0.5})), settings, silent) == 3


def test_a_training_that_is_late_ends_with_a_step_and_learns_what_it_can(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    task = cases.task("resnet", batch_size=16)
    steps = task.splits["train"].batch_count or 0
    told = Steps(monkeypatch, lambda told: 1.0 if told <= 2 * steps else 1000.0)  # something else takes the machine
    settings = TuneSettings(6, 1e-2, 0.5, deadline=100 * steps)
    assert cases.framework.fine_tune(task, compressed(cases, task, ac.Policy()), settings, told) == 2
    assert len(told) == 2 * steps + 2


def test_a_training_at_a_users_rates_is_not_shortened(cases: Cases) -> None:
    task = cases.task("resnet")
    late = TuneSettings(3, 1e-2, 0.5, deadline=0)
    assert cases.framework.fine_tune(task, compressed(cases, task, ac.Policy()), late, silent) == 1
    task.scheduler = cases.constant_rate
    assert cases.framework.fine_tune(task, compressed(cases, task, ac.Policy()), late, silent) == 3


@pytest.mark.parametrize(
    ("kind", "distillation"),
    [*(("regression", share) for share in (0.0, 0.5, 1.0)), ("two outputs", 1.0), ("dict output", 0.5), ("named inputs", 0.0)],
)
def test_fine_tuning_lowers_the_loss(cases: Cases, kind: str, distillation: float) -> None:
    task = cases.task(kind)
    candidate = compressed(cases, task, mixed_policy(cases, task))
    inputs = first_inputs(task, 32)
    taught = cases.outputs(task.model, inputs)

    def distance() -> float:
        return sum(float(((a - b) ** 2).mean()) for a, b in zip(cases.outputs(candidate.model, inputs), taught, strict=True))

    before = copy.deepcopy(candidate.model), distance()
    cases.framework.fine_tune(task, candidate, TuneSettings(6, 1e-2, distillation), silent)
    if distillation == 1.0:
        assert distance() < before[1]
    else:
        assert _own_loss(cases, task, candidate.model) < _own_loss(cases, task, before[0])


def _own_loss(cases: Cases, task: ac.Task, model: Any) -> float:
    batch = next(iter(task.splits["train"].numpy()))
    outputs = cases.outputs(model, batch.inputs)
    if task.scorer.name == "mse":
        return task.scorer(outputs[0], batch.targets)
    logits = outputs[0] - outputs[0].max(1, keepdims=True)
    classes = next(iter(batch.targets.values())) if isinstance(batch.targets, dict) else batch.targets
    classes = classes[0] if isinstance(classes, tuple) else classes
    chosen = logits[np.arange(len(logits)), classes] - np.log(np.exp(logits).sum(1))
    return float(-chosen.mean() + (np.mean(outputs[1] ** 2) if len(outputs) > 1 else 0.0))


def test_fine_tuning_is_repeatable(cases: Cases) -> None:
    task = cases.task("resnet")
    policy = mixed_policy(cases, task)
    twice = [compressed(cases, task, policy) for _ in range(2)]
    for candidate in twice:
        cases.framework.fine_tune(task, candidate, SETTINGS, silent)
    first, second = (cases.outputs(candidate.model, first_inputs(task, 8))[0] for candidate in twice)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_a_number_ends_fine_tuning_clearly(cases: Cases) -> None:
    task = cases.task("conv", loss=cases.loss_without_value())
    with pytest.raises(DivergedError, match=r"nan after 0 of 1 steps.*learning_rate"):
        cases.framework.fine_tune(task, compressed(cases, task, ac.Policy({"conv1": 0.5})), SETTINGS, silent)


def test_a_users_own_loop_trains_the_candidate_beside_the_original(cases: Cases) -> None:
    calls: list[tuple[Any, Any, int]] = []

    def own(model: Any, *, teacher: Any, epochs: int) -> None:
        calls.append((model, teacher, epochs))

    task = cases.task("conv", fine_tune=own)
    candidate = compressed(cases, task, ac.Policy({"conv1": 0.5}))
    cases.framework.fine_tune(task, candidate, TuneSettings(7, 1e-3, 0.5), silent)
    ((model, teacher, epochs),) = calls
    assert model is candidate.model
    assert epochs == 7
    inputs = first_inputs(task, 4)
    np.testing.assert_array_equal(cases.outputs(teacher, inputs)[0], cases.outputs(task.model, inputs)[0])


def test_batches_of_one_sample_do_not_ruin_the_model(cases: Cases) -> None:
    task = cases.trained_task(batch_size=1, train=cases.first_digits(40))
    candidate = compressed(cases, task, ac.Policy({}, {"fc": ac.LayerPolicy(8, 8)}))
    cases.framework.fine_tune(task, candidate, TuneSettings(1, 1e-5, 0.5), silent)
    assert scored(cases, task, candidate) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_simulation_predicts_what_the_framework_gives(cases: Cases, kind: str) -> None:
    task = cases.task(kind)
    candidate = compressed(cases, task, mixed_policy(cases, task))
    cases.framework.reestimate(task, candidate)
    batches = [batch.inputs for batch in task.splits["valid"].numpy()]
    found = cases.framework.predict(task, candidate, batches)
    parts = [cases.outputs(candidate.model, inputs) for inputs in batches]
    expected = [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    assert isinstance(found, tuple) == (len(expected) > 1)
    for actual, wanted in zip(found if isinstance(found, tuple) else [found], expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_predicted_is_scored_like_the_deployed_model(cases: Cases) -> None:
    task = cases.trained_task()
    candidate = compressed(cases, task, ac.Policy())
    assert simulated_score(cases, task, candidate) == pytest.approx(scored(cases, task, candidate), abs=1e-3)


def test_statistics_taken_anew_win_back_what_pruning_costs(cases: Cases) -> None:
    task = cases.trained_task()
    structure = cases.framework.inspect(task)
    layers = {layer.name: ac.LayerPolicy(8, 8) for layer in structure.layers}
    candidate = compressed(cases, task, ac.Policy({group.name: 0.25 for group in structure.groups}, layers))
    weights = copy.deepcopy(candidate.model)
    before = simulated_score(cases, task, candidate)
    cases.framework.reestimate(task, candidate)
    after = simulated_score(cases, task, candidate)
    assert after > before + 0.02
    cases.framework.reestimate(task, candidate)
    assert simulated_score(cases, task, candidate) == pytest.approx(after, abs=1e-3)
    assert cases.trained_weights_equal(candidate.model, weights)


def test_ranges_taken_anew_are_those_that_are_deployed(cases: Cases) -> None:
    task = cases.task("mlp")
    layers = cases.framework.inspect(task).layers
    candidate = compressed(cases, task, ac.Policy({}, {layer.name: ac.LayerPolicy(8, 8) for layer in layers}))
    cases.framework.reestimate(task, candidate)
    simulated, real = both_outputs(cases, task, candidate, 32)
    assert np.abs(simulated - real).mean() <= 0.01 * np.ptp(real)


def test_a_learned_range_is_kept(cases: Cases) -> None:
    task = cases.task("mlp")
    layers = cases.framework.inspect(task).layers
    candidate = compressed(cases, task, ac.Policy({}, {layer.name: ac.LayerPolicy(8, 4) for layer in layers}))
    cases.framework.fine_tune(task, candidate, TuneSettings(2, 1e-2, 0.5), silent)
    before = converted_ranges(cases, task, candidate)
    cases.framework.reestimate(task, candidate)
    assert converted_ranges(cases, task, candidate) == before


def converted_ranges(cases: Cases, task: ac.Task, candidate: Candidate) -> dict[str, tuple[float, float]]:
    return dict(cases.framework.to_openvino(task, candidate, 1).input_ranges)


def simulated_score(cases: Cases, task: ac.Task, candidate: Candidate) -> float:
    """The metric of the simulation on the validation data."""
    batches = list(task.splits["valid"].numpy())
    predictions = cases.framework.predict(task, candidate, (batch.inputs for batch in batches))
    return task.scorer(predictions, np.concatenate([batch.targets for batch in batches]))


CHOICES = (
    ac.LayerPolicy(),
    ac.LayerPolicy(8, 8),
    ac.LayerPolicy(4, 8),
    ac.LayerPolicy(3),
    ac.LayerPolicy(4, 8, 0.5),
    ac.LayerPolicy(8, 8, pattern="2:4"),
)


def random_policies(cases: Cases, task: ac.Task, count: int) -> list[ac.Policy]:
    """Ratios, whole branches, widths and zeros of all kinds that the elastic model knows."""
    structure, generator = cases.framework.inspect(task), np.random.default_rng(0)
    ratios = {group.name: (0.0, 0.25, 0.5, 0.75, *[1.0] * group.removable) for group in structure.groups}
    return [
        ac.Policy(
            {name: float(generator.choice(choices)) for name, choices in ratios.items()},
            {layer.name: CHOICES[generator.integers(len(CHOICES))] for layer in structure.layers},
        )
        for _ in range(count)
    ]


THIN = ("resnet", "separable", "shared")
"""Kinds of which it is asked in Keras whether the elastic model can be thin, which takes seconds."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_candidate_inherits_is_the_elastic_model_under_its_policy(
    cases: Cases, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(cases, KerasCases) and kind not in THIN:
        monkeypatch.setattr("autocompress.frameworks.keras.elastic.can_be_thin", lambda: False)
    task = cases.task(kind)
    training = cases.framework.share(task, "l2", SETTINGS)
    policies = random_policies(cases, task, 4)
    training.begin(1)
    training.epoch(cycle(policies), silent)
    inputs = first_inputs(task, 8)
    for policy in policies:
        expected = cases.masked_outputs(task, training, policy, inputs)
        candidate = training.candidate(policy)
        cases.framework.reestimate(task, candidate)
        assert (sum(candidate.macs.values()) < sum(compressed(cases, task, ac.Policy()).macs.values())) == bool(policy.pruning)
        for actual, wanted in zip(cases.outputs(candidate.model, inputs), expected, strict=True):
            assert np.abs(actual - wanted).max() <= 1e-5 * max(np.ptp(wanted), 1e-3)


def test_a_whole_branch_is_inherited_as_no_branch(cases: Cases) -> None:
    task = cases.task("resnet")
    group = next(group for group in cases.framework.inspect(task).groups if group.removable)
    assert group.name == cases.first_branch
    training = cases.framework.share(task, "l2", SETTINGS)
    training.begin(1)
    policy = ac.Policy({group.name: 1.0}, {"fc": ac.LayerPolicy(8, 8)})
    training.epoch(cycle([policy, ac.Policy()]), silent)
    expected = cases.masked_outputs(task, training, policy, first_inputs(task, 8))
    candidate = training.candidate(policy)
    cases.framework.reestimate(task, candidate)
    np.testing.assert_allclose(cases.outputs(candidate.model, first_inputs(task, 8))[0], expected[0], rtol=1e-4, atol=1e-5)
    assert candidate.macs.keys() & {group.name, group.name.replace("conv1", "conv2")} == set()


def test_an_heir_is_not_trained_as_hard_as_what_has_lost_channels_of_the_original(
    cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, rates = cases.task("resnet"), []
    module = sys.modules[type(cases.framework).__module__]
    monkeypatch.setattr(module, "fine_tune", lambda *given: rates.append(settings_among(given).learning_rate) or 1)
    half, branch = (compressed(cases, task, ac.Policy({cases.first_branch: ratio})) for ratio in (0.5, 1))
    for candidate, heir_of, named in (
        (half, None, None),
        (half, object(), None),
        (branch, object(), None),
        (half, None, 5e-3),
        (half, object(), 5e-3),
    ):
        cases.framework.fine_tune(task, candidate, replace(SETTINGS, learning_rate=named), silent, heir_of)
    assert rates == [PRUNED_SGD_RATE, None, PRUNED_SGD_RATE, 5e-3, 5e-3]


def settings_among(given: Iterable[Any]) -> TuneSettings:
    """Those of a fine-tuning, which has them at another place in each framework."""
    return next(one for one in given if isinstance(one, TuneSettings))


def test_a_shared_training_serves_policies_that_it_did_not_see(cases: Cases) -> None:
    task = cases.trained_task()
    structure = cases.framework.inspect(task)
    layers = {layer.name: ac.LayerPolicy(8, 8) for layer in structure.layers}
    generator = np.random.default_rng(0)
    half = ac.Policy({group.name: 0.5 for group in structure.groups}, layers)
    untrained = compressed(cases, task, half)
    cases.framework.reestimate(task, untrained)

    def policies() -> Any:
        while True:
            policy = ac.Policy({g.name: float(generator.choice([0, 0.25, 0.5, 0.75])) for g in structure.groups}, layers)
            if policy != half:
                yield policy

    training = cases.framework.share(task, "l2", TuneSettings(1, None, 0.5))
    training.begin(5)
    for _ in range(5):
        training.epoch(policies(), silent)
    whole, pruned = training.candidate(ac.Policy({}, layers)), training.candidate(half)
    for candidate in (whole, pruned):
        cases.framework.reestimate(task, candidate)
    assert simulated_score(cases, task, pruned) > max(0.88, simulated_score(cases, task, untrained) + 0.1)
    assert simulated_score(cases, task, whole) >= 0.9
    assert scored(cases, task, pruned) == pytest.approx(simulated_score(cases, task, pruned), abs=0.02)


@pytest.mark.parametrize("kind", ["resnet", "mlp"])
def test_a_shared_training_that_is_cut_off_goes_on_as_if_it_was_not(cases: Cases, kind: str, tmp_path: Path) -> None:
    task = cases.task(kind)
    policies = random_policies(cases, task, 3)
    through = cases.framework.share(task, "l2", SETTINGS)
    through.begin(3)
    for i in range(3):
        through.epoch(cycle(policies), silent)
        if i == 0:
            through.save(tmp_path / "checkpoint")
    resumed = cases.framework.share(task, "l2", SETTINGS)
    resumed.begin(3)
    resumed.load(tmp_path / "checkpoint")
    for _ in range(2):
        resumed.epoch(cycle(policies), silent)
    inputs = first_inputs(task, 8)
    outputs = [cases.outputs(training.candidate(policies[0]).model, inputs)[0] for training in (through, resumed)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)


def test_a_damaged_checkpoint_is_named(cases: Cases, tmp_path: Path) -> None:
    training = cases.framework.share(cases.task("mlp"), "l2", SETTINGS)
    training.begin(1)
    training.save(tmp_path / "checkpoint")
    (tmp_path / "checkpoint").write_bytes((tmp_path / "checkpoint").read_bytes()[:100])
    with pytest.raises(ModelError, match=r"complete checkpoint.*Remove it"):
        training.load(tmp_path / "checkpoint")


def test_the_digest_knows_the_weights_and_the_architecture(cases: Cases) -> None:
    digest = cases.framework.digest
    task = cases.task("conv")
    assert digest(task) == digest(cases.task("conv"))
    assert digest(task) != digest(cases.task("resnet"))
    tuned = compressed(cases, task, ac.Policy())
    cases.framework.fine_tune(task, tuned, SETTINGS, silent)
    assert digest(cases.again(tuned.model)) != digest(task)
