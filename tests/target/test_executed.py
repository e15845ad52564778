"""What the device says that it ran: kernels by the layers' names, nodes without constants, times that fit into the request."""

from __future__ import annotations

import time

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from autocompress.device import Target
from autocompress.target import executed
from autocompress.target.executed import ExecutedNode, Kernel, executed_nodes, kernels, layer_names, profile
from autocompress.target.runtime import compile_model

pytestmark = pytest.mark.timing

F32 = Target(precision="f32")
SHAPE = (1, 32, 16, 16)


def two_layers() -> ov.Model:
    """An INT8 convolution "conv", and "float" behind it."""
    generator = np.random.default_rng(0)
    parameter = ops.parameter(SHAPE, np.float32)
    bounds = [ops.constant(np.float32(bound)) for bound in (0, 4)]
    node = ops.fake_quantize(parameter, *bounds, *bounds, 256)
    for name in ("conv", "float"):
        codes = generator.integers(-127, 128, (32, 32, 3, 3)).astype(np.int8)
        step = np.full((32, 1, 1, 1), 1e-3, np.float32)
        weight = ops.multiply(ops.convert(ops.constant(codes), np.float32), ops.constant(step))
        source = node if name == "conv" else ops.relu(node)
        constant = weight if name == "conv" else ops.constant((codes * step).astype(np.float32))
        node = ops.convolution(source, constant, [1, 1], [1, 1], [1, 1], [1, 1])
        node.set_friendly_name(name)
    return ov.Model([node], [parameter], "two")


def test_each_layer_has_its_kernel() -> None:
    found = kernels(compile_model(two_layers(), F32), ["conv", "float", "missing"])
    assert set(found) == {"conv", "float"}
    assert found["conv"].is_integer
    assert not found["float"].is_integer
    assert not found["conv"].is_binary


@pytest.mark.parametrize(
    ("primitive", "integer", "binary"),
    [
        ("brgconv_avx512_I8", True, False),
        ("brgemm_avx512_u8", True, False),
        ("jit_avx512_u1", False, True),
        ("brgconv_avx512_bf16", False, False),
        ("gemm_mlas_f32", False, False),
    ],
)
def test_a_kernels_name_tells_its_precision(primitive: str, integer: bool, binary: bool) -> None:
    kernel = Kernel("layer", primitive, "f32")
    assert (kernel.is_integer, kernel.is_binary) == (integer, binary)


def test_constants_are_no_executed_nodes() -> None:
    nodes = executed_nodes(compile_model(two_layers(), F32))
    assert not {node.kind for node in nodes} & {"Const", "Constant"}
    assert {name for node in nodes for name in node.sources} <= {node.name for node in nodes}
    assert [name for node in nodes if node.kind == "Convolution" for name in layer_names(node)[:1]] == ["conv", "float"]


def test_a_scaled_matrix_product_gets_its_own_name_back() -> None:
    node = ExecutedNode("fc", "FullyConnected", "", "", "", ("fc/DequantizationMultiply", "fc"), (), 0.0, True)
    assert layer_names(node) == ("fc",)


def test_a_profile_times_every_node_within_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executed, "SECONDS", 0.1)
    found = profile(compile_model(two_layers(), F32, PERF_COUNT=True), time.thread_time)
    heavy = [node for node in found.nodes if node.kind == "Convolution"]
    assert all(node.microseconds > 0 and node.runs for node in heavy)
    assert 0 < sum(found.share(node) for node in found.nodes) <= 1 + 1e-9
    assert 0 < found.below_resolution < 1
    assert found.calls >= executed.MIN_CALLS
    assert found.consumers[heavy[0].name]


def test_without_counters_there_are_no_times() -> None:
    assert all(node.microseconds == 0 for node in executed_nodes(compile_model(two_layers(), F32)))
