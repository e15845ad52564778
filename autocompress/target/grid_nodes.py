"""Codes and quantizers as nodes of an OpenVINO graph, in the forms that keep an integer kernel."""

from __future__ import annotations

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress import grids

FULL_LEVELS = 256
"""Of a quantizer that device kernels know. Grids of 16 and of 2 levels on the same range are part of it: 255 = 15 · 17."""

MOVING_OPERATIONS = (
    *("MaxPool", "AdaptiveMaxPool", "ReduceMax", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split"),
    *("VariadicSplit", "Slice", "StridedSlice", "Gather", "Tile", "Broadcast", "Pad", "DepthToSpace", "SpaceToDepth"),
    *("ShuffleChannels", "BatchToSpace", "SpaceToBatch"),
)
"""They give values a new place and change none, so a quantizer in front of them serves what follows them."""

Range = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Lowest and highest value of a quantizer: scalars, or arrays that broadcast against its input."""


def grid_constant(codes: NDArray[np.int8], step: NDArray[np.float32], storage_bits: int) -> ov.Node:
    """Codes times steps: integer constant → Convert(i8) → Convert(f32) → Multiply(step).

    2 bits are stored unsigned, with the shift back to -1 … 1 done in i8; a shift done in float would cost the kernel.

    Args:
        codes: in the weight's shape.
        step: broadcasts against the codes.
        storage_bits: of one code, 8, 4 or 2.
    """
    if storage_bits == 8:
        integer = ops.constant(codes)
    elif storage_bits == 2:
        integer = ops.subtract(_as_i8(_packed(codes + np.int8(1), 2, ov.Type.u2)), ops.constant(np.int8(1)))
    else:
        integer = _as_i8(_packed(codes, 4, ov.Type.i4))
    return ops.multiply(ops.convert(integer, np.float32), ops.constant(step))


def sign_constant(signs: NDArray[np.int8]) -> ov.Node:
    """A weight of -1 and +1, stored in one bit each, behind the quantizer by which OpenVINO knows a binary weight."""
    bits = _packed((signs > 0).astype(np.int8), 1, ov.Type.u1)
    doubled = ops.multiply(ops.convert(bits, np.float32), ops.constant(np.float32(2)))
    both = ops.subtract(doubled, ops.constant(np.float32(1)))
    low, high = (_bound(np.float32(sign), signs.ndim) for sign in (-1, 1))
    return ops.fake_quantize(both, low, high, low, high, 2)


def coarse_quantizer(source: ov.Output, levels: int, bounds: Range) -> ov.Node:
    """A quantizer of fewer levels than kernels know, in front of one of 256 that does not change its values."""
    low, high = _bounds(source, bounds)
    return ops.fake_quantize(ops.fake_quantize(source, low, high, low, high, levels), low, high, low, high, FULL_LEVELS)


def bit_quantizer(source: ov.Output, bounds: Range) -> ov.Node:
    """1 where a value lies nearer to the upper bound than to the lower one, else 0."""
    low, high = _bounds(source, bounds)
    middle = ops.constant((low.data + high.data) / 2)
    zero, one = (_bound(np.float32(bit), middle.data.ndim) for bit in (0, 1))
    return ops.fake_quantize(source, middle, middle, zero, one, 2)


def quantizer_in_front(source: ov.Output) -> ov.Node | None:
    """The first quantizer that is met going up from a value; None if there is none before the next computation."""
    node = source.get_node()
    while node.get_type_name() in MOVING_OPERATIONS:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "FakeQuantize" else None


def range_of(quantizer: ov.Node) -> Range:
    """The range of a quantizer with constant bounds."""
    low, high = (np.array(quantizer.input_value(port).get_node().data, np.float32) for port in (1, 2))
    return low, high


def _bounds(source: ov.Output, bounds: Range) -> tuple[ov.Node, ov.Node]:
    """The bounds as constants. Scalars get the rank of the input: OpenVINO's search for binary layers needs it."""
    rank = source.get_partial_shape().rank.get_length()
    low, high = (_bound(bound, rank) for bound in bounds)
    return low, high


def _bound(value: NDArray[np.float32] | np.float32, rank: int) -> ov.Node:
    array = np.asarray(value, np.float32)
    return ops.constant(array.reshape([1] * rank) if array.size == 1 else array)


def _packed(codes: NDArray[np.int8], bits: int, element: ov.Type) -> ov.Node:
    tensor = ov.Tensor(element, ov.Shape(codes.shape))
    tensor.data.view(np.uint8).reshape(-1)[:] = grids.pack(codes, bits)
    return ops.constant(tensor)


def _as_i8(node: ov.Node) -> ov.Node:
    return ops.convert(node, np.int8)
