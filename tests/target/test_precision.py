"""The weights of the deployed graph are the trained ones, whatever the bits, the kind of layer and the storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops
from torch import nn

import autocompress as ac
from autocompress.config import SearchConfig
from autocompress.device import Target
from autocompress.errors import ConversionError
from autocompress.frameworks.base import Candidate
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.simulate import settle
from autocompress.target.evaluate import predict
from autocompress.target.executed import kernels
from autocompress.target.precision import Converted, heavy_nodes, place_precision, save
from autocompress.target.runtime import compile_model
from autocompress.task import Task
from autocompress.trial import Workbench

FRAMEWORK = TorchFramework()
F32 = Target(precision="f32")
BITS = [8, 7, 4, 3, 2, 1]
NORMS = {  # layer → the batch norm that is folded into it
    "conv": {"conv1": "bn1", "conv2": "bn2"},
    "separable": {"stem": "bn0", "depthwise": "bn1", "pointwise": "bn2"},
    "grouped": {"stem": "bn0", "grouped": "bn1"},
    "transposed": {"up": "bn"},
    "conv1d": {"conv1": "bn1"},
    "sequential": {"0": "1"},
    "mlp": {},
    "shared": {},
}


def uniform(task: Task, layer: ac.LayerPolicy) -> ac.Policy:
    return ac.Policy({}, {one.name: layer for one in FRAMEWORK.inspect(task).layers})


def deployed(task: Task, policy: ac.Policy, **options: Any) -> tuple[Candidate, Converted, ov.Model]:
    candidate = FRAMEWORK.compress(task, policy, "l2")
    converted = FRAMEWORK.to_openvino(task, candidate, 1)
    return candidate, converted, place_precision(converted, policy, task.splits["train"].take(4), **options)


def deployed_weight(node: ov.Node) -> NDArray[np.float32]:
    """What the node multiplies with: its constant subgraph, run."""
    alone = ov.Model([ops.result(node.input_value(1))], [])
    return np.array(next(iter(compile_model(alone, F32)([]).values())))


def trained_weights(candidate: Candidate, norms: dict[str, str]) -> dict[str, NDArray[np.float32]]:
    """The weights on their grids, times the factor that folding the batch norm puts on each output channel; by hand."""
    settle(candidate.model)
    weights = {}
    for name in candidate.macs:
        module = candidate.model.get_submodule(name)
        weight = module.weight.detach().numpy()
        if name in norms:
            norm = candidate.model.get_submodule(norms[name])
            factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
            axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            weight = weight * factor.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        weights[name] = weight
    return weights


def outputs(model: ov.Model, task: Task) -> NDArray[np.float32]:
    images = next(iter(task.splits["valid"].numpy())).inputs[0]
    return np.asarray(predict(compile_model(model, F32), (((images[i : i + 1],), 1) for i in range(16))))


@pytest.mark.parametrize(("name", "bits"), [(name, bits) for name in NORMS for bits in BITS if name == "conv" or bits != 7])
def test_the_deployed_weights_are_the_trained_ones(name: str, bits: int) -> None:
    task = models.small_task(models.build(name))
    candidate, converted, model = deployed(task, uniform(task, ac.LayerPolicy(bits, 8)))
    expected = trained_weights(candidate, NORMS[name])
    assert heavy_nodes(model).keys() == expected.keys()
    for layer, nodes in heavy_nodes(model).items():
        for node in nodes:
            weight = deployed_weight(node).reshape(expected[layer].shape)
            assert np.abs(weight - expected[layer]).max() <= 1e-5 * np.abs(expected[layer]).max(), layer
    assert converted.notes == []


def test_a_negative_norm_turns_the_sign_of_the_codes() -> None:
    task = models.small_task(models.build("conv"))
    candidate, _, model = deployed(task, uniform(task, ac.LayerPolicy(2, 8)))
    trained = settle(candidate.model)["conv1"].codes
    written = np.sign(deployed_weight(heavy_nodes(model)["conv1"][0]))
    signs = np.where(np.arange(16) % 2, -1, 1).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(written, trained * signs)


@pytest.mark.parametrize("bits", ["float", 8, 4, 2, 1])
@pytest.mark.parametrize("name", ["conv", "separable", "mlp"])
def test_zeros_stay_zeros(name: str, bits: int | str) -> None:
    task = models.small_task(models.build(name))
    activations = "float" if bits == "float" else 8
    candidate, _, model = deployed(task, uniform(task, ac.LayerPolicy(bits, activations, 0.5)))
    expected = trained_weights(candidate, NORMS[name])
    for layer, (node,) in heavy_nodes(model).items():
        weight = deployed_weight(node).reshape(expected[layer].shape)
        np.testing.assert_array_equal(weight == 0, expected[layer] == 0)
        assert (weight == 0).mean() >= 0.5 - 1 / weight.size


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("name", ["conv", "separable", "grouped", "transposed", "conv1d", "mlp"])
def test_compact_storage_gives_the_outputs_of_fast_storage(name: str, bits: int) -> None:
    task = models.small_task(models.build(name))
    policy = uniform(task, ac.LayerPolicy(bits, 8))
    compact, fast = (outputs(deployed(task, policy, compact=compact)[2], task) for compact in (True, False))
    np.testing.assert_allclose(compact, fast, rtol=1e-5, atol=1e-5 * np.abs(fast).max())
    assert np.ptp(fast) > 0


def bin_bytes(task: Task, bits: int | str, folder: Path, **options: Any) -> int:
    activations = "float" if bits == "float" else 8
    save(deployed(task, uniform(task, ac.LayerPolicy(bits, activations)), **options)[2], folder / "model.xml")
    return (folder / "model.bin").stat().st_size


def test_fewer_bits_make_a_smaller_file(tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
    task = models.small_task(wide)
    whole, eight, four, three, two = (bin_bytes(task, bits, tmp_path) for bits in ("float", 8, 4, 3, 2))
    assert eight <= 0.3 * whole
    assert four <= 0.6 * eight
    assert three <= 0.6 * eight
    assert two <= 0.35 * eight
    assert bin_bytes(task, 4, tmp_path, compact=False) == pytest.approx(eight, rel=0.02)
    assert bin_bytes(task, 2, tmp_path, wide=["0", "2", "5"]) == pytest.approx(eight, rel=0.02)


def test_a_saved_model_is_the_one_in_memory(tmp_path: Path) -> None:
    task = models.small_task(models.build("conv"))
    model = deployed(task, uniform(task, ac.LayerPolicy(4, 8)))[2]
    save(model, tmp_path / "model.xml")
    read = ov.Core().read_model(tmp_path / "model.xml")
    np.testing.assert_array_equal(outputs(read, task), outputs(model, task))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.parametrize("bits", [8, 2])
@pytest.mark.parametrize("name", models.CLASSIFIERS)
def test_every_quantized_layer_runs_in_an_integer_kernel(name: str, bits: int) -> None:
    task = models.small_task(models.build(name))
    policy = uniform(task, ac.LayerPolicy(bits, 8))
    bench = Workbench(task, FRAMEWORK, FRAMEWORK.inspect(task), SearchConfig(calibration_samples=4), reference_ms=1.0)
    model, _ = bench.deploy(bench.candidate(policy), bench.target, trained=True, samples=bench.samples)
    running = kernels(compile_model(model, bench.target), policy.layers)
    assert {layer for layer, kernel in running.items() if kernel.is_integer} == set(policy.layers), running


@pytest.mark.parametrize("name", ["conv", "resnet", "separable", "conv1d"])
def test_a_float_layer_between_integer_ones_stays_float(name: str) -> None:
    model = models.build(name)
    task = models.small_task(model)
    layers = [layer.name for layer in FRAMEWORK.inspect(task).layers]
    middle = layers[len(layers) // 2]
    policy = ac.Policy({}, {layer: ac.LayerPolicy(8, 8) for layer in layers if layer != middle})
    candidate, _, graph = deployed(task, policy)
    running = kernels(compile_model(graph, Target()), layers)
    assert {layer for layer in layers if not running[layer].is_integer} == {middle}
    weight = deployed_weight(heavy_nodes(graph)[middle][0])
    norms = NORMS.get(name, {}) or {"block2.conv1": "block2.bn1", "block1.conv2": "block1.bn2"}
    expected = trained_weights(candidate, norms)[middle]
    np.testing.assert_allclose(weight.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_low_bit_weights_with_float_activations_are_on_their_grid_too() -> None:
    task = models.small_task(models.build("conv"))
    candidate, _, model = deployed(task, uniform(task, ac.LayerPolicy(4, "float")))
    expected = trained_weights(candidate, NORMS["conv"])
    for layer, (node,) in heavy_nodes(model).items():
        np.testing.assert_allclose(deployed_weight(node), expected[layer], rtol=1e-4, atol=1e-6)
    running = kernels(compile_model(model, Target()), candidate.macs)
    assert not any(kernel.is_integer for kernel in running.values())


def test_quantized_outputs_are_close_to_the_simulations() -> None:
    task = models.digits_task(models.resnet())
    candidate, _, model = deployed(task, uniform(task, ac.LayerPolicy(8, 8)))
    images = models.digits()["valid"][0][:16]
    with torch.no_grad():
        expected = candidate.model(images).numpy()
    found = outputs(model, task)
    assert np.abs(found - expected).mean() < 0.05 * expected.std()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9


class NormFirst(nn.Module):
    """A batch norm in front of a convolution: its scales land on the convolution's input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.conv, self.fc = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3), nn.Linear(16, 10)
        models.disturb_norms(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(self.bn(torch.relu(self.stem(x))))).mean((2, 3)))


class Scaled(nn.Module):
    """An input that is normalized inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 16, 3), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv((x - 0.5) / 0.25)).mean((2, 3)))


@pytest.mark.parametrize("make", [NormFirst, Scaled])
@pytest.mark.parametrize("bits", [8, 4])
def test_scales_in_front_of_a_layer_keep_the_function(make: type[nn.Module], bits: int) -> None:
    """Whether they are folded (then a note says that the grid was taken anew) or not, the model computes the same."""
    task = models.small_task(models.seeded(make))
    candidate, converted, model = deployed(task, uniform(task, ac.LayerPolicy(bits, "float")))
    settle(candidate.model)
    images = models.digits()["valid"][0][:16]
    with torch.no_grad():
        expected = candidate.model(images).numpy()
    allowed = 1e-4 if not converted.notes else 0.15
    assert np.abs(outputs(model, task) - expected).max() <= allowed * np.ptp(expected)


def test_a_foreign_grid_is_refused_with_the_layers_name() -> None:
    task = models.small_task(models.build("conv"))
    policy = uniform(task, ac.LayerPolicy(8, 8))
    _, converted, _ = deployed(task, policy)
    other = FRAMEWORK.to_openvino(task, FRAMEWORK.compress(task, ac.Policy({"conv1": 0.5}, policy.layers), "l2"), 1)
    mixed = Converted(converted.model, other.grids)
    with pytest.raises(ConversionError, match="conv1"):
        place_precision(mixed, policy, task.splits["train"].take(1))


def test_placing_precision_leaves_the_converted_model_alone() -> None:
    task = models.small_task(models.build("conv"))
    policy = uniform(task, ac.LayerPolicy(4, 8))
    converted = FRAMEWORK.to_openvino(task, FRAMEWORK.compress(task, policy, "l2"), 1)
    before = outputs(converted.model, task), len(converted.model.get_ops())
    place_precision(converted, policy, task.splits["train"].take(2))
    np.testing.assert_array_equal(outputs(converted.model, task), before[0])
    assert len(converted.model.get_ops()) == before[1]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    task = models.small_task(models.build("conv"))
    deployed(task, uniform(task, ac.LayerPolicy(8, 8)), correct_bias=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
