"""Layers of 1-bit weights: the numbers are those of a slow and obvious NumPy version, and the kernel is the binary one."""

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
from autocompress.device import Target
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.target.executed import Kernel, kernels
from autocompress.target.precision import Converted, LayerGrid, place_precision, save
from autocompress.target.runtime import compile_model

Array = NDArray[Any]
FRAMEWORK = TorchFramework()
F32 = Target(precision="f32")
BINARY = ac.Policy({}, {"layer": ac.LayerPolicy(1, 1)})
ONES = [1, 1]


def slow_convolution(image: Array, weight: Array, stride: int, begin: list[int], end: list[int]) -> Array:
    """(1, inputs, height, width) and (outputs, inputs, k, k) → (1, outputs, …), one window after the other."""
    padded = np.pad(image[0], ((0, 0), (begin[0], end[0]), (begin[1], end[1])))
    size = weight.shape[2]
    rows, columns = ((side - size) // stride + 1 for side in padded.shape[1:])
    result = np.zeros((1, len(weight), rows, columns))
    for channel in range(len(weight)):
        for row in range(rows):
            for column in range(columns):
                window = padded[:, row * stride : row * stride + size, column * stride : column * stride + size]
                result[0, channel, row, column] = (window * weight[channel]).sum()
    return result


def binary_layer(
    inputs: int = 16, outputs: int = 12, size: int = 3, stride: int = 1, begin: list[int] = ONES, end: list[int] = ONES
) -> tuple[ov.Node, ov.Node, Array, Array]:
    """The graph's input, a convolution named "layer", its signs, and its scales: half of them negative, as under a batch norm."""
    generator = np.random.default_rng(0)
    signs = np.where(generator.standard_normal((outputs, inputs, size, size)) < 0, -1, 1).astype(np.int8)
    scale = generator.uniform(0.1, 1, (outputs, 1, 1, 1)) * np.where(np.arange(outputs) % 2, -1, 1).reshape(-1, 1, 1, 1)
    x = ops.parameter([1, inputs, 9, 9], np.float32)
    x.output(0).set_names({"x"})
    node = ops.convolution(x, ops.constant((signs * scale).astype(np.float32)), [stride] * 2, begin, end, [1, 1])
    node.set_friendly_name("layer")
    return x, node, signs, scale.astype(np.float32)


def image(inputs: int = 16) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((1, inputs, 9, 9)).astype(np.float32)


def run(graph: ov.Node, x: ov.Node, signs: Array, bounds: tuple[float, float], **options: Any) -> tuple[Array, Kernel, list[str]]:
    converted = Converted(ov.Model([ops.result(graph)], [x]), {"layer": LayerGrid(signs, 1)}, [], {"layer": bounds})
    compiled = compile_model(place_precision(converted, BINARY, [(image(signs.shape[1]),)], **options), F32)
    return np.array(compiled([image(signs.shape[1])])[0]), kernels(compiled, ["layer"])["layer"], converted.notes


def levels(value: Array, bounds: tuple[float, float]) -> Array:
    return np.where(value > (bounds[0] + bounds[1]) / 2, bounds[1], bounds[0])


def assert_equal(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("tail", ["", "bias", "relu", "sigmoid", "bias and relu"])
@pytest.mark.parametrize("bounds", [(0.0, 1.5), (-0.7, 1.3)])
@pytest.mark.parametrize(
    ("size", "stride", "begin", "end"),
    [(3, 1, [0, 0], [0, 0]), (3, 1, [1, 1], [1, 1]), (3, 2, [1, 1], [1, 1]), (3, 2, [0, 0], [1, 1]), (1, 1, [0, 0], [0, 0])],
)
def test_a_binary_layer_is_the_numpy_version(
    size: int, stride: int, begin: list[int], end: list[int], bounds: tuple[float, float], tail: str
) -> None:
    x, node, signs, scale = binary_layer(size=size, stride=stride, begin=begin, end=end)
    expected = slow_convolution(levels(image(), bounds), signs * scale, stride, begin, end)
    if "bias" in tail:
        bias = np.random.default_rng(2).standard_normal((1, len(signs), 1, 1)).astype(np.float32)
        node, expected = ops.add(node, ops.constant(bias)), expected + bias
    if "relu" in tail:
        node, expected = ops.relu(node), np.maximum(expected, 0)
    if tail == "sigmoid":
        node, expected = ops.sigmoid(node), 1 / (1 + np.exp(-expected))
    found, kernel, notes = run(node, x, signs, bounds)
    assert_equal(found, expected)
    assert kernel.is_binary, kernel
    assert notes == []


@pytest.mark.parametrize("bounds", [(0.0, 1.5), (-0.7, 1.3)])
def test_a_binary_layer_whose_output_is_added_to_another_keeps_its_kernel(bounds: tuple[float, float]) -> None:
    x, node, signs, _ = binary_layer(outputs=16)
    other = ops.convolution(x, ops.constant(np.ones((16, 16, 3, 3), np.float32)), [1, 1], [1, 1], [1, 1], [1, 1])
    found, kernel, _ = run(ops.relu(ops.add(node, other)), x, signs, bounds)
    assert kernel.is_binary, kernel
    assert np.ptp(found) > 0


def test_a_batch_norm_of_scale_zero_makes_a_channel_of_zeros() -> None:
    x, _, signs, scale = binary_layer()
    scale[3] = 0
    node = ops.convolution(x, ops.constant((signs * scale).astype(np.float32)), ONES, ONES, ONES, ONES)
    node.set_friendly_name("layer")
    found, kernel, _ = run(node, x, signs, (0.0, 1.5))
    assert_equal(found, slow_convolution(levels(image(), (0.0, 1.5)), signs * scale, 1, ONES, ONES))
    assert not found[:, 3].any()
    assert kernel.is_binary


@pytest.mark.parametrize("inputs", [3, 12, 20])
def test_other_input_channels_than_multiples_of_8_take_an_8_bit_kernel(inputs: int) -> None:
    """There the binary kernel's numbers are wrong, or it does not compile."""
    x, node, signs, scale = binary_layer(inputs)
    found, kernel, (note,) = run(node, x, signs, (0.0, 1.5))
    assert_equal(found, slow_convolution(levels(image(inputs), (0.0, 1.5)), signs * scale, 1, ONES, ONES))
    assert kernel.is_integer
    assert "multiple of 8" in note


@pytest.mark.parametrize("compact", [True, False])
def test_a_layer_that_is_to_be_wide_takes_an_8_bit_kernel(compact: bool) -> None:
    x, node, signs, scale = binary_layer()
    found, kernel, (note,) = run(node, x, signs, (0.0, 1.5), wide=["layer"], compact=compact)
    assert_equal(found, slow_convolution(levels(image(), (0.0, 1.5)), signs * scale, 1, ONES, ONES))
    assert kernel.is_integer
    assert note.startswith("layer: 1 bit in an 8-bit kernel")


def test_zeros_stay_zeros_in_an_8_bit_kernel() -> None:
    x, _, signs, scale = binary_layer()
    signs = signs * np.random.default_rng(3).integers(0, 2, signs.shape).astype(np.int8)
    node = ops.convolution(x, ops.constant((signs * scale).astype(np.float32)), ONES, ONES, ONES, ONES)
    node.set_friendly_name("layer")
    found, kernel, (note,) = run(node, x, signs, (0.0, 1.5))
    assert_equal(found, slow_convolution(levels(image(), (0.0, 1.5)), signs * scale, 1, ONES, ONES))
    assert kernel.is_integer
    assert "cannot be zero" in note


def test_without_a_trained_range_the_two_levels_are_the_ends_of_the_calibrated_one() -> None:
    x, node, signs, scale = binary_layer()
    converted, value = Converted(ov.Model([ops.result(node)], [x]), {"layer": LayerGrid(signs, 1)}), np.abs(image())
    compiled = compile_model(place_precision(converted, BINARY, [(value,)]), F32)
    assert kernels(compiled, ["layer"])["layer"].is_binary
    expected = slow_convolution(levels(value, (0.0, float(value.max()))), signs * scale, 1, ONES, ONES)
    assert_equal(np.array(compiled([value])[0]), expected)


def test_a_saved_binary_layer_takes_one_bit_per_weight_and_gives_the_same_numbers(tmp_path: Path) -> None:
    x, node, signs, _ = binary_layer(inputs=128, outputs=128)
    converted = Converted(ov.Model([ops.result(node)], [x]), {"layer": LayerGrid(signs, 1)}, [], {"layer": (0.0, 1.5)})
    model = place_precision(converted, BINARY, [(image(128),)])
    save(model, tmp_path / "model.xml")
    assert (tmp_path / "model.bin").stat().st_size < signs.size / 8 * 1.2 + 1000
    read = compile_model(tmp_path / "model.xml", F32)
    np.testing.assert_array_equal(read([image(128)])[0], compile_model(model, F32)([image(128)])[0])
    assert kernels(read, ["layer"])["layer"].is_binary


@pytest.mark.parametrize("name", ["mlp", "separable", "grouped", "conv1d", "transposed"])
def test_what_has_no_binary_kernel_keeps_its_signs_in_an_8_bit_kernel(name: str) -> None:
    task = models.small_task(models.build(name))
    policy = ac.Policy({}, {layer.name: ac.LayerPolicy(1, 1) for layer in FRAMEWORK.inspect(task).layers})
    converted = FRAMEWORK.to_openvino(task, FRAMEWORK.compress(task, policy, "l2"), 1)
    running = kernels(compile_model(place_precision(converted, policy, task.splits["train"].take(4)), Target()), policy.layers)
    assert set(running) == set(policy.layers)
    assert all(kernel.is_integer or kernel.is_binary for kernel in running.values()), running
    named = {note.split(":")[0] for note in converted.notes}
    assert named == {layer for layer, kernel in running.items() if kernel.is_integer}


class BinaryNet(nn.Module):
    """Convolutions of 16 channels with batch norms, some of negative scale, and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 10)
        models.disturb_norms(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(self.bn1(self.conv1(x))) + x
        return self.fc(torch.relu(self.bn2(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize(("weights", "activations"), [(1, 1), (4, 4), (1, 8), (4, 1), (1, 4)])
def test_what_was_simulated_is_what_is_deployed(weights: int, activations: int) -> None:
    images = models.digits()["valid"][0][:32]
    policy = ac.Policy({}, {name: ac.LayerPolicy(weights, activations) for name in ("conv1", "conv2")})
    task = models.small_task(models.seeded(BinaryNet))
    candidate = FRAMEWORK.compress(task, policy, "l2")
    for module in candidate.model.modules():
        module.training = type(module).__name__ == "SimulatedInput"  # only these look at the batch
    with torch.no_grad():
        candidate.model(images)
        expected = candidate.model.eval()(images).numpy()
    converted = FRAMEWORK.to_openvino(task, candidate, 1)
    compiled = compile_model(place_precision(converted, policy, task.splits["train"].take(16)), F32)
    found = np.concatenate([compiled([images[i : i + 1].numpy()])[0] for i in range(len(images))])
    # A value on the edge of two levels falls to either side by float rounding, so single outputs may differ.
    assert np.median(np.abs(found - expected)) <= 2e-3 * np.ptp(expected)
    assert np.abs(found - expected).max() <= 0.1 * np.ptp(expected)
    running = kernels(compiled, policy.layers).values()
    assert all(kernel.is_binary if (weights, activations) == (1, 1) else kernel.is_integer for kernel in running), running


@pytest.mark.parametrize("readers", [2, 3])
def test_binary_layers_that_read_one_value_give_the_right_numbers(readers: int) -> None:
    """OpenVINO crashes where such layers share a quantizer, as a residual block's first convolution and its shortcut would."""
    generator = np.random.default_rng(0)
    x = ops.parameter([1, 16, 9, 9], np.float32)
    x.output(0).set_names({"x"})
    grids, nodes, expected = {}, [], []
    value = levels(image(), (0.0, 1.0))
    for index in range(readers):
        signs = np.where(generator.standard_normal((8, 16, 3, 3)) < 0, -1, 1).astype(np.int8)
        nodes.append(ops.convolution(x, ops.constant(0.5 * signs.astype(np.float32)), ONES, ONES, ONES, ONES))
        nodes[-1].set_friendly_name(f"layer{index}")
        grids[f"layer{index}"] = LayerGrid(signs, 1)
        expected.append(slow_convolution(value, 0.5 * signs, 1, ONES, ONES))
    converted = Converted(ov.Model([ops.result(node) for node in nodes], [x]), grids, [], dict.fromkeys(grids, (0.0, 1.0)))
    policy = ac.Policy({}, dict.fromkeys(grids, ac.LayerPolicy(1, 1)))
    compiled = compile_model(place_precision(converted, policy, [(image(),)]), F32)
    assert all(kernel.is_binary for kernel in kernels(compiled, grids).values())
    found = compiled([image()])
    for index in range(readers):
        assert_equal(np.array(found[index]), expected[index])
