"""A convolution of 1-bit weights and 1-bit inputs, in the form that the CPU runs in a binary kernel.

The kernel multiplies signs -1, +1 with codes 0, 1. (With inputs coded -1, +1 it returns wrong numbers.) With the real input
low + (high - low) · code and the real weight scale · sign, a layer's output is

    scale · (high - low) · conv(sign, code) + scale · low · conv(sign, inside)

where `inside` is 1 inside the image and 0 in its padding, because padding means a real 0 and not the lower bound.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress.target.grid_nodes import Range, bit_quantizer, sign_constant

CHANNEL_STEP = 8
"""With another number of input channels the CPU's kernel returns wrong numbers, or the model does not compile."""
CONVOLUTION_SUFFIX = "#convolution"
"""Of the convolution's own name. OpenVINO makes several operations of it and unites them with the constants that are multiplied
and added behind it; all of that loses its names. A leaky ReLU of slope 1, which changes nothing, stops this. It carries the
layer's name and becomes part of the kernel.
"""


def obstacle(node: ov.Node, codes: NDArray[np.int8], bounds: Range) -> str | None:
    """Why a layer cannot run in a binary kernel, in words; None if it can.

    Args:
        node: the layer's operation.
        codes: its trained codes.
        bounds: the two values to which its input is rounded.
    """
    if node.get_type_name() != "Convolution" or node.input_value(1).get_partial_shape().rank.get_length() != 4:
        return "there is a binary kernel for ungrouped 2-D convolutions only"
    channels = node.input(1).get_shape()[1]
    if channels % CHANNEL_STEP:
        return f"the binary kernel needs a multiple of {CHANNEL_STEP} input channels, and there are {channels}"
    if not codes.all():
        return "a binary weight cannot be zero, and some of its weights are"
    if np.any(bounds[0]) and _is_padded(node) and node.get_output_partial_shape(0).is_dynamic:
        return "its input's lower bound is not zero, and the size of its padded input is not known"
    if bounds[0].size > 1:
        return "the channels of its input have ranges of their own"
    return None


def binarize(node: ov.Node, signs: NDArray[np.int8], scale: NDArray[np.float32], source: ov.Output, bounds: Range) -> None:
    """Rewrite a convolution in place.

    Args:
        node: the convolution.
        signs: -1 and +1, (outputs, inputs, height, width).
        scale: of each output channel, (outputs, 1, 1, 1).
        source: the layer's input, not quantized.
        bounds: the two values to which the input is rounded.
    """
    low, high = (float(np.asarray(bound).item()) for bound in bounds)
    consumers = node.output(0).get_target_inputs()
    node.input(0).replace_source_output(bit_quantizer(source, bounds).output(0))
    node.input(1).replace_source_output(sign_constant(signs).output(0))
    per_channel = scale.reshape(1, -1, 1, 1)
    scaled = ops.multiply(node, ops.constant((high - low) * per_channel))
    result = ops.prelu(scaled, ops.constant(np.ones(1, np.float32)))
    result.set_friendly_name(node.get_friendly_name())
    node.set_friendly_name(node.get_friendly_name() + CONVOLUTION_SUFFIX)
    if low:
        result = ops.add(result, ops.constant(low * per_channel * _inside(node, signs)))
    for consumer in consumers:
        consumer.replace_source_output(result.output(0))


def _is_padded(node: ov.Node) -> bool:
    attributes = node.get_attributes()
    return any((*attributes["pads_begin"], *attributes["pads_end"]))


def _inside(node: ov.Node, signs: NDArray[np.int8]) -> NDArray[np.float32]:
    """The convolution of the signs with an image of ones: (1, outputs, 1, 1), or at every position where there is padding."""
    kernel = signs.astype(np.float32).sum(1)
    if not _is_padded(node):
        return np.asarray(kernel.sum((1, 2)).reshape(1, -1, 1, 1), np.float32)
    attributes = node.get_attributes()
    strides, dilations = attributes["strides"], attributes["dilations"]
    padding = list(zip(attributes["pads_begin"], attributes["pads_end"], strict=True))
    ones = np.pad(np.ones(tuple(node.input(0).get_shape())[2:], np.float32), padding)
    height, width = tuple(node.output(0).get_shape())[2:]
    result = np.zeros((1, len(signs), height, width), np.float32)
    for row, column in np.ndindex(kernel.shape[1:]):
        top, left = row * dilations[0], column * dilations[1]
        window = ones[top : top + height * strides[0] : strides[0], left : left + width * strides[1] : strides[1]]
        result += kernel[None, :, row, column, None, None] * window[:height, :width]
    return result
