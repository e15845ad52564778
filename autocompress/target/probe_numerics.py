"""Whether integer kernels give the right numbers: one layer each, against NumPy."""

from __future__ import annotations

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress.capabilities import Numerics
from autocompress.device import Target
from autocompress.grids import largest_code
from autocompress.target.executed import executed_nodes
from autocompress.target.runtime import compile_model
from autocompress.target.small_graphs import between

CHANNELS, SIDE = 32, 12


def numerics(target: Target) -> Numerics:
    """Errors relative to the largest output."""
    return Numerics(
        binary_zero_one=_binary_error(target, 0.0),
        binary_plus_minus=_binary_error(target, -1.0),
        weights_8=_saturation_error(target, 8),
        weights_7=_saturation_error(target, 7),
    )


def _binary_error(target: Target, low: float) -> float | None:
    """Of a 3×3 convolution of weights ±1 and activations {low, 1}; None where it does not run as a binary one."""
    generator = np.random.default_rng(0)
    weight = generator.choice([-1.0, 1.0], (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    image = generator.standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    parameter = ops.parameter(list(image.shape), np.float32)
    coded = between(parameter, 2, (0, 0), (low, 1))
    node = ops.convolution(coded, between(ops.constant(weight), 2, (-1, 1), (-1, 1)), [1, 1], [0, 0], [0, 0], [1, 1])
    compiled = _compiled(node, parameter, target)
    if not any(node.kind == "BinaryConvolution" for node in executed_nodes(compiled)):
        return None
    return _error(compiled, image, _convolution(np.where(image > 0, 1.0, low).astype(np.float32), weight))


def _saturation_error(target: Target, bits: int) -> float:
    """Of a 3×3 INT8 convolution whose sums of two neighbouring products are as large as the grid allows."""
    generator = np.random.default_rng(0)
    codes = generator.integers(largest_code(bits) * 3 // 4, largest_code(bits) + 1, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
    codes *= generator.choice(np.array([-1, 1], np.int8), (CHANNELS, 1, 1, 1))
    image = generator.integers(200, 256, (1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    parameter = ops.parameter(list(image.shape), np.float32)
    weight = ops.multiply(ops.convert(ops.constant(codes), np.float32), ops.constant(np.ones((CHANNELS, 1, 1, 1), np.float32)))
    node = ops.convolution(between(parameter, 256, (0, 255), (0, 255)), weight, [1, 1], [0, 0], [0, 0], [1, 1])
    return _error(_compiled(node, parameter, target), image, _convolution(image, codes.astype(np.float32)))


def _compiled(node: ov.Node, parameter: ov.Node, target: Target) -> ov.CompiledModel:
    return compile_model(ov.Model([node], [parameter]), target.at("f32"))


def _convolution(image: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """Without padding, in 64 bits."""
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(float), weight.shape[2:], axis=(2, 3))
    return np.asarray(np.einsum("nihwkl,oikl->nohw", windows, weight.astype(float), optimize=True))


def _error(compiled: ov.CompiledModel, image: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    actual = np.asarray(compiled({0: image})[0], float)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
