"""Every kind of layer keeps an integer kernel, at every storage and at fewer activation levels; recurrent cells stay in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops
from torch import nn

import autocompress as ac
from autocompress.device import Target
from autocompress.frameworks.torch.convert import convert
from autocompress.policy import FLOAT, Bits
from autocompress.target.executed import kernels
from autocompress.target.precision import Converted, LayerGrid, heavy_nodes, place_precision, weight_port
from autocompress.target.runtime import compile_model

Array = NDArray[np.float32]
F32 = Target(precision="f32")


def step_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[int]:
    return [size if axis in axes else 1 for axis, size in enumerate(shape)]


def on_grid(shape: tuple[int, ...], axes: tuple[int, ...], limit: int = 7) -> tuple[NDArray[np.int8], Array]:
    """Codes, and the weight on their grid: a step of its own for every channel of `axes`."""
    generator = np.random.default_rng(0)
    codes = generator.integers(-limit, limit + 1, shape).astype(np.int8)
    return codes, codes * generator.uniform(0.01, 0.02, step_shape(shape, axes)).astype(np.float32)


def convolution(make: Any, axes: int, **options: Any) -> Callable[..., ov.Node]:
    sizes = {"strides": [1] * axes, "pads_begin": [1] * axes, "pads_end": [1] * axes, "dilations": [1] * axes}
    return lambda x, weight: make(x, weight, **(sizes | options))


def product(transpose_a: bool, transpose_b: bool, first: bool = False) -> Callable[..., ov.Node]:
    return lambda x, weight: ops.matmul(*((weight, x) if first else (x, weight)), transpose_a, transpose_b)


# kind: (the operation, shape of its input, shape of its weight, axes that have a step, the grid's own axis)
KINDS: dict[str, tuple[Callable[..., ov.Node], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]] = {
    "1-D": (convolution(ops.convolution, 1), (1, 16, 20), (24, 16, 3), (0,), 0),
    "2-D": (convolution(ops.convolution, 2), (1, 16, 8, 8), (24, 16, 3, 3), (0,), 0),
    "3-D": (convolution(ops.convolution, 3), (1, 16, 4, 6, 6), (24, 16, 3, 3, 3), (0,), 0),
    "depthwise": (convolution(ops.group_convolution, 2), (1, 16, 8, 8), (16, 1, 1, 3, 3), (0, 1), 0),
    "grouped": (convolution(ops.group_convolution, 2), (1, 32, 8, 8), (2, 16, 16, 3, 3), (0, 1), 0),
    "transposed": (convolution(ops.convolution_backprop_data, 2), (1, 16, 8, 8), (16, 24, 3, 3), (1,), 1),
    "transposed 1-D": (convolution(ops.convolution_backprop_data, 1), (1, 16, 20), (16, 24, 3), (1,), 1),
    "grouped transposed": (convolution(ops.group_convolution_backprop_data, 2), (1, 32, 8, 8), (2, 16, 16, 3, 3), (0, 2), 1),
    "linear": (product(False, True), (4, 32), (24, 32), (0,), 0),
    "linear, inputs first": (product(False, False), (4, 32), (32, 24), (1,), 1),
    "tokens": (product(False, True), (1, 5, 32), (24, 32), (0,), 0),
    "tokens, inputs first": (product(False, False), (1, 5, 32), (32, 24), (1,), 1),
    "weight first": (product(False, False, first=True), (32, 4), (24, 32), (0,), 0),
    "weight first, both transposed": (product(True, True, first=True), (1, 5, 32), (32, 24), (1,), 1),
}


def graph(kind: str) -> Converted:
    """The layer between two that keep it from the ends of the graph."""
    make, shape, weight_shape, axes, axis = KINDS[kind]
    codes, weight = on_grid(weight_shape, axes)
    if "group" in kind or kind == "depthwise":  # a framework's own weight has the groups in its first axis
        codes = codes.reshape(-1, *weight_shape[2:])
    x = ops.parameter(shape, np.float32)
    x.output(0).set_names({"x"})
    node = make(ops.relu(x), ops.constant(weight))
    node.set_friendly_name("layer")
    model = ov.Model([ops.result(ops.relu(node))], [x])
    return Converted(model, {"layer": LayerGrid(codes, 4, axis)})


def placed(kind: str, activations: int = 8, compact: bool = True) -> tuple[Converted, ov.Model, Array]:
    converted = graph(kind)
    value = np.random.default_rng(1).standard_normal(tuple(converted.model.inputs[0].shape)).astype(np.float32)
    policy = ac.Policy({}, {"layer": ac.LayerPolicy(4, activations)})
    return converted, place_precision(converted, policy, [(value,)], compact=compact), value


def output(model: ov.Model, value: Array) -> Array:
    return np.array(compile_model(model, F32)([value])[0])


@pytest.mark.parametrize("activations", [8, 4])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "grouped transposed"])
def test_every_kind_of_layer_runs_in_an_integer_kernel(kind: str, activations: int) -> None:
    converted, model, value = placed(kind, activations)
    running = kernels(compile_model(model, Target()), ["layer"])
    assert running["layer"].is_integer, running
    expected, found = output(converted.model, value), output(model, value)
    assert np.abs(found - expected).mean() <= (0.1 if activations == 4 else 0.01) * expected.std()
    assert converted.notes == []


def test_a_grouped_transposed_convolution_has_no_integer_kernel_and_is_left_in_float() -> None:
    converted, model, value = placed("grouped transposed", 4)
    assert not any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    np.testing.assert_allclose(output(model, value), output(converted.model, value), rtol=1e-5, atol=1e-5)
    (note,) = converted.notes
    assert note.startswith("layer: a grouped transposed convolution has no integer kernel")


@pytest.mark.parametrize("kind", KINDS)
def test_packed_codes_give_the_outputs_of_those_in_8_bits(kind: str) -> None:
    converted = graph(kind)
    value = np.random.default_rng(1).standard_normal(tuple(converted.model.inputs[0].shape)).astype(np.float32)
    policy = ac.Policy({}, {"layer": ac.LayerPolicy(4, 8)})
    fast, small = (output(place_precision(converted, policy, [(value,)], compact=packed), value) for packed in (False, True))
    assert np.abs(fast - small).max() <= 1e-5 * np.ptp(fast)


def test_a_product_of_two_computed_values_is_no_layer() -> None:
    """A scaled value is not a constant, although a constant is what the multiplication has first."""
    x = ops.parameter([1, 4, 8], np.float32)
    scaled = ops.multiply(ops.constant(np.float32(0.5)), x)
    node = ops.matmul(x, scaled, False, True)
    assert weight_port(node) is None
    assert heavy_nodes(ov.Model([ops.result(node)], [x])) == {}


def quantized_levels(model: ov.Model, name: str, value: Array) -> int:
    """How many values the input of a layer takes."""
    node = heavy_nodes(model)[name][0]
    source = ov.Model([ops.result(node.input_value(0))], model.get_parameters())
    return len(np.unique(output(source, value)))


@pytest.mark.parametrize(("bits", "levels"), [(4, 16), (1, 2)])
def test_a_shared_quantizer_does_not_change_for_the_other_consumers(bits: int, levels: int) -> None:
    x = ops.parameter([1, 16, 16, 16], np.float32)
    x.output(0).set_names({"x"})
    codes, weight = on_grid((24, 16, 3, 3), (0,), 1)
    shared, grids = ops.relu(x), {}
    branches = []
    for name in ("coarse", "fine"):
        node = convolution(ops.convolution, 2)(shared, ops.constant(weight))
        node.set_friendly_name(name)
        grids[name] = LayerGrid(codes, 2)
        branches.append(node)
    converted = Converted(ov.Model([ops.result(branch) for branch in branches], [x]), grids, input_ranges={"coarse": (0.0, 1.5)})
    policy = ac.Policy({}, {"coarse": ac.LayerPolicy(2, bits), "fine": ac.LayerPolicy(2, 8)})
    value = np.abs(np.random.default_rng(1).standard_normal((1, 16, 16, 16))).astype(np.float32)
    model = place_precision(converted, policy, [(value,)])
    running = kernels(compile_model(model, Target()), grids)
    assert all(kernel.is_integer for kernel in running.values()), running
    assert len(running) == 2
    assert quantized_levels(model, "coarse", value) == levels
    assert quantized_levels(model, "fine", value) > 100


def test_layers_that_read_one_value_on_one_range_share_its_coarse_quantizer() -> None:
    x = ops.parameter([1, 16, 8, 8], np.float32)
    x.output(0).set_names({"x"})
    codes, weight = on_grid((24, 16, 3, 3), (0,))
    names = ["left", "right"]
    branches = [convolution(ops.convolution, 2)(x, ops.constant(weight)) for _ in names]
    for name, branch in zip(names, branches, strict=True):
        branch.set_friendly_name(name)
    ranges = dict.fromkeys(names, (-1.0, 2.0))
    converted = Converted(ov.Model([ops.result(ops.add(*branches))], [x]), {n: LayerGrid(codes, 4) for n in names}, [], ranges)
    policy = ac.Policy({}, dict.fromkeys(names, ac.LayerPolicy(4, 4)))
    model = place_precision(converted, policy, [(np.zeros((1, 16, 8, 8), np.float32),)])
    coarse = [node for node in model.get_ops() if node.get_attributes().get("levels") == 16]
    assert len(coarse) == 1


@pytest.mark.parametrize("first", [FLOAT, 8])
def test_what_float_layers_give_is_pooled_and_added_in_float(first: Bits) -> None:
    x = ops.parameter([1, 16, 8, 8], np.float32)
    x.output(0).set_names({"x"})
    codes, weight = on_grid((16, 16, 3, 3), (0,))
    stem, block = (convolution(ops.convolution, 2)(x, ops.constant(weight)) for _ in range(2))
    total = ops.add(stem, block)
    mean = ops.reduce_mean(total, ops.constant(np.array([2, 3])), False)
    classes, last = on_grid((10, 16), (0,))
    head = ops.matmul(mean, ops.constant(last), False, True)
    for name, node in {"stem": stem, "block": block, "head": head, "sum": total, "mean": mean}.items():
        node.set_friendly_name(name)
    layers = {"stem": ac.LayerPolicy(first, first), "block": ac.LayerPolicy(first, first), "head": ac.LayerPolicy(8, 8)}
    grids = {"stem": LayerGrid(codes, 4), "block": LayerGrid(codes, 4), "head": LayerGrid(classes, 4)}
    converted = Converted(ov.Model([ops.result(head)], [x]), {name: grids[name] for name in grids if layers[name].is_integer})
    model = place_precision(converted, ac.Policy({}, layers), [(np.ones((1, 16, 8, 8), np.float32),)])
    quantized = {
        name: any(value.get_node().get_type_name() == "FakeQuantize" for value in node.input_values())
        for node in model.get_ordered_ops()
        if (name := node.get_friendly_name()) in {"sum", "mean", "head"}
    }
    assert quantized == {"sum": first == 8, "mean": first == 8, "head": True}


class Recurrent(nn.Module):
    """A recurrent cell between linear layers."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(16, 16), cell(16, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.cell(torch.relu(self.first(x)))[0])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_cell_stays_in_float_and_is_named(cell: type[nn.Module]) -> None:
    torch.manual_seed(0)
    value = torch.randn(1, 6, 16)
    converted = Converted(convert(Recurrent(cell), (value,)))
    assert set(heavy_nodes(converted.model)) == {"first", "last"}
    policy = ac.Policy({}, {"first": ac.LayerPolicy(8, 8), "last": ac.LayerPolicy(8, 8)})
    model = place_precision(converted, policy, [(value.numpy(),)])
    (note,) = converted.notes
    assert f"{cell.__name__}Sequence" in note
    assert "stays in float" in note
    (node,) = (node for node in model.get_ops() if node.get_type_name() == f"{cell.__name__}Sequence")
    weights = [source.get_node().get_type_name() for source in node.input_values()[-3:]]
    assert weights == ["Constant"] * 3
    running = kernels(compile_model(model, Target()), ["first", "last"])
    assert {name for name, kernel in running.items() if kernel.is_integer} == {"first", "last"}


@pytest.mark.parametrize("bias", [None, 0.0, 0.1])
def test_products_without_a_bias_give_right_numbers_with_one_thread(bias: float | None) -> None:
    model = nn.Sequential(nn.Linear(64, 32, bias is not None), nn.ReLU(), nn.Linear(32, 10, bias is not None))
    for linear in (model[0], model[2]):
        nn.init.uniform_(linear.weight, -0.2, 0.2)
        if bias is not None:
            nn.init.constant_(linear.bias, bias)
    generator = torch.Generator().manual_seed(0)
    inputs = [(torch.rand(1, 64, generator=generator),) for _ in range(8)]
    policy = ac.Policy({}, {name: ac.LayerPolicy(8, 8) for name in ("0", "2")})
    graph = place_precision(Converted(convert(model, inputs[0])), policy, [(x.numpy(),) for (x,) in inputs])
    compiled = compile_model(graph, Target(precision="f32", threads=1))
    for (x,) in inputs:
        expected = model(x).detach().numpy()
        assert np.abs(compiled([x.numpy()])[0] - expected).max() <= 0.3 * np.abs(expected).max()
