"""Small graphs of equal layers, in every way in which a layer's numbers can be written into an IR.

Built with OpenVINO operations, so that they show what the device makes of a form, whatever made the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress import grids
from autocompress.capabilities import Form
from autocompress.policy import FLOAT, Bits

RANGE = 4.0
"""Activations are quantized on [0, 4]; nothing depends on it but the numbers."""
GROUPS = 4
CHANNELS: dict[Form, int] = {"convolution": 64, "pointwise": 128, "depthwise": 128, "grouped": 64, "linear": 256}
SIDES: dict[Form, int] = {"convolution": 28, "pointwise": 28, "depthwise": 28, "grouped": 28, "linear": 8}
"""Of the image; a linear layer reads as many rows as such an image has pixels."""
LAYERS = 6


@dataclass(frozen=True)
class Scheme:
    """How a layer's numbers are written.

    Attributes:
        name: for people.
        weights, activations: bits, or "float".
        storage: of the weight: "f32", "i8", "i4 → i8", "i4 → f32", "u2 → i8" or "binary".
        levels: of the quantizers in front of the layer, one after the other.
        precision: float precision hint of the target; None is its default.
    """

    name: str
    weights: Bits
    activations: Bits
    storage: str = "i8"
    levels: tuple[int, ...] = (256,)
    precision: str | None = None


FP32 = Scheme("FP32", FLOAT, FLOAT, "f32", (), "f32")
DEFAULT = Scheme("default precision", FLOAT, FLOAT, "f32", ())
INT8 = Scheme("i8", 8, 8)
SCHEMES = (
    DEFAULT,
    INT8,
    Scheme("i8 weights only", 8, FLOAT, levels=()),
    Scheme("4-bit grid in i8", 4, 8),
    Scheme("i4 → i8 → f32", 4, 8, "i4 → i8"),
    Scheme("i4 → f32", 4, 8, "i4 → f32"),
    Scheme("u2 → i8 → f32", 2, 8, "u2 → i8"),
    Scheme("i8, 128 levels", 8, 7, levels=(128,)),
    Scheme("i8, 16 levels", 8, 4, levels=(16,)),
    Scheme("i8, 16 levels, then 256", 8, 4, levels=(16, 256)),
    Scheme("i8, 2 levels, then 256", 8, 1, levels=(2, 256)),
)
BINARY = Scheme("binary, activations {0, 1}", 1, 1, "binary", (2,))


def graph(
    form: Form,
    scheme: Scheme,
    channels: int | None = None,
    side: int | None = None,
    zeros: Callable[[NDArray[np.int8]], NDArray[np.int8]] | None = None,
) -> ov.Model:
    """Six equal layers of a form, C → C, with ReLU between them.

    Args:
        form: of the layers.
        scheme: of their numbers.
        channels: C; by default the form's own.
        side: height and width of the image; by default the form's own.
        zeros: turns the codes of a weight into codes with zeros.
    """
    width, side = channels or CHANNELS[form], side or SIDES[form]
    generator = np.random.default_rng(0)
    shape = [1, side * side, width] if form == "linear" else [1, width, side, side]
    parameter = ops.parameter(shape, np.float32, name="input")
    node: Any = parameter
    for _ in range(LAYERS):
        codes = _codes(weight_shape(form, width), scheme, generator)
        node = layer(form, node, zeros(codes) if zeros else codes, scheme)
        node = ops.relu(node)
    return ov.Model([node], [parameter], f"{form}_{width}")


def in_words(form: Form) -> str:
    """What `graph` builds, so that it can be built again elsewhere."""
    width, side = CHANNELS[form], SIDES[form]
    kinds = {
        "convolution": f"3×3 convolutions {width}→{width}",
        "pointwise": f"1×1 convolutions {width}→{width}",
        "depthwise": f"depthwise 3×3 convolutions of {width} channels",
        "grouped": f"3×3 convolutions {width}→{width} in {GROUPS} groups",
        "linear": f"linear layers {width}→{width}",
    }
    where = f"{side * side} rows" if form == "linear" else f"{side}×{side}"
    return f"{LAYERS} {kinds[form]} with ReLU on {where}"


def weight_shape(form: Form, channels: int) -> tuple[int, ...]:
    """(outputs, inputs, 3, 3), with the groups in front where there are several."""
    return {
        "convolution": (channels, channels, 3, 3),
        "pointwise": (channels, channels, 1, 1),
        "depthwise": (channels, 1, 1, 3, 3),
        "grouped": (GROUPS, channels // GROUPS, channels // GROUPS, 3, 3),
        "linear": (channels, channels),
    }[form]


def layer(form: Form, node: Any, codes: NDArray[np.int8], scheme: Scheme) -> Any:
    """One layer on a node, its weight given as codes."""
    for levels in scheme.levels:
        node = between(node, levels, (0, RANGE), (0, RANGE)) if scheme is not BINARY else binarized(node)
    weight = _weight(form, codes, scheme)
    if form == "linear":
        return ops.matmul(node, weight, False, True)
    pads = [codes.shape[-1] // 2] * 2
    convolve = ops.group_convolution if form in ("depthwise", "grouped") else ops.convolution
    return convolve(node, weight, [1, 1], pads, pads, [1, 1])


def binarized(node: Any) -> Any:
    """The codes {0, 1}. With one threshold as both input bounds, the CPU fuses it into the binary layer before it."""
    return between(node, 2, (RANGE / 2, RANGE / 2), (0, 1))


def between(node: Any, levels: int, inputs: tuple[float, float], outputs: tuple[float, float]) -> Any:
    """A FakeQuantize. Its bounds have the rank of the data: the CPU's binary convolution crashes on scalars."""
    rank = len(node.shape if isinstance(node, ov.Output) else node.output(0).partial_shape)
    bounds = [ops.constant(np.full([1] * rank, value, np.float32)) for value in (*inputs, *outputs)]
    return ops.fake_quantize(node, *bounds, levels)


def _codes(shape: tuple[int, ...], scheme: Scheme, generator: np.random.Generator) -> NDArray[np.int8]:
    limit = grids.largest_code(scheme.weights) if isinstance(scheme.weights, int) and scheme.weights > 1 else 127
    if scheme.weights == 1:
        return generator.choice(np.array([-1, 1], np.int8), shape)
    return generator.integers(-limit, limit + 1, shape).astype(np.int8)


def _weight(form: Form, codes: NDArray[np.int8], scheme: Scheme) -> Any:
    if scheme.storage == "binary":
        return between(ops.constant(codes.astype(np.float32)), 2, (-1, 1), (-1, 1))
    step = _step(form, codes)
    if scheme.storage == "f32":
        return ops.constant(codes.astype(np.float32) * step)
    return ops.multiply(ops.convert(_stored(codes, scheme.storage), np.float32), ops.constant(step))


def _step(form: Form, codes: NDArray[np.int8]) -> NDArray[np.float32]:
    """One step per output channel, so small that activations keep their size."""
    ndim = codes.ndim
    own = (0, 1) if form in ("depthwise", "grouped") else (0,)
    fan_in = codes.size // int(np.prod([codes.shape[axis] for axis in own]))
    size = 1.4 / (np.sqrt(fan_in) * max(1.0, float(np.abs(codes).mean())))
    return np.full([codes.shape[axis] if axis in own else 1 for axis in range(ndim)], size, np.float32)


def _stored(codes: NDArray[np.int8], storage: str) -> Any:
    if storage == "i8":
        return ops.constant(codes)
    if storage == "u2 → i8":
        shifted = ops.convert(_packed(codes + np.int8(1), 2, ov.Type.u2), np.int8)
        return ops.subtract(shifted, ops.constant(np.int8(1)))
    packed = _packed(codes, 4, ov.Type.i4)
    return ops.convert(packed, np.int8) if storage == "i4 → i8" else packed


def _packed(codes: NDArray[np.int8], bits: int, element: ov.Type) -> Any:
    tensor = ov.Tensor(element, ov.Shape(codes.shape))
    tensor.data.view(np.uint8)[:] = grids.pack(codes, bits)
    return ops.constant(tensor)
