"""Small graphs that hold one layer several times, to be timed for the latency table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

MOST_COPIES = 4
"""Of a layer in its graph: enough that the graph's own cost is small beside them, few enough to compile quickly."""
COPIED_WEIGHTS = 2**20
"""Of all copies together: more would not be in the caches when they are read, as they are in the model."""
SEED_CHANNELS = 8
"""Of the graph's input, from which a 1×1 layer makes the input of the timed layers in the layout that the device likes."""
CHAIN = 8
"""Layers of the graphs in which tensors go from one precision to the other."""
CHAIN_CHANNELS, CHAIN_POSITIONS = 64, (14, 14)
"""Of every tensor in them: it fits the caches, as most tensors of the networks that are searched do."""
LEVELS = 256
MACS_PER_WEIGHT = 16
"""Multiply-accumulates that take about as long as fetching one weight."""


@dataclass(frozen=True)
class Signature:
    """All of a layer that its latency depends on, as far as the table goes.

    Attributes:
        operation: OpenVINO's type, for example "GroupConvolution" or "MatMul".
        inputs, outputs: channels.
        kernel, strides, pads_begin, pads_end, dilations: of a convolution, one per spatial axis; empty for a matrix product.
        groups: of a convolution.
        positions: the other axes of its input: height and width, or the rows of a matrix product.
        batch: samples of a request.
        integer: 8-bit weights and activations; else float.
    """

    operation: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads_begin: tuple[int, ...]
    pads_end: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    positions: tuple[int, ...]
    batch: int
    integer: bool = False

    @property
    def is_linear(self) -> bool:
        """True for a matrix product."""
        return self.operation == "MatMul"

    @property
    def is_transposed(self) -> bool:
        """True for a transposed convolution."""
        return "Backprop" in self.operation

    @property
    def is_depthwise(self) -> bool:
        """True where each channel is filtered by itself."""
        return self.groups == self.inputs == self.outputs > 1

    @property
    def input_elements(self) -> int:
        """Of a request."""
        return self.batch * self.inputs * math.prod(self.positions)

    @property
    def weights(self) -> int:
        """Of the layer, without a bias."""
        return self.inputs * self.outputs // self.groups * math.prod(self.kernel)

    @property
    def copies(self) -> int:
        """How many of the layer are in its graph."""
        return min(MOST_COPIES, max(1, COPIED_WEIGHTS // self.weights))

    @property
    def work(self) -> int:
        """Roughly what its time goes with, to order layers by: multiply-accumulates, and weights that come from memory."""
        places = self.batch * math.prod(self.positions) // (1 if self.is_transposed else math.prod(self.strides))
        return self.weights * (places + MACS_PER_WEIGHT)

    @property
    def key(self) -> str:
        """The signature as text, the same in every process."""
        return " ".join(str(value).replace(" ", "") for value in asdict(self).values())

    def beside(self, inputs: int) -> int:
        """The outputs of a grouped layer with so many inputs: whole groups go."""
        return self.outputs * inputs // self.inputs

    def at(self, inputs: int, outputs: int, integer: bool) -> Signature:
        """The layer with other widths, in another precision. A grouped layer loses whole groups."""
        groups = max(1, self.groups * inputs // self.inputs)
        return replace(self, inputs=inputs, outputs=outputs, groups=groups, integer=integer)


def signature_of(node: ov.Node) -> Signature:
    """The signature of a convolution or matrix-product node of a static graph, in float."""
    shape = tuple(node.input(0).get_shape())
    weight = tuple(node.input(1).get_shape())
    operation = node.get_type_name()
    if operation == "MatMul":
        inputs, outputs = shape[-1], tuple(node.output(0).get_shape())[-1]
        return Signature(operation, inputs, outputs, (), (), (), (), (), 1, shape[1:-1], shape[0])
    attributes = node.get_attributes()
    grouped = operation.startswith("Group")
    groups = weight[0] if grouped else 1
    axes = ("strides", "pads_begin", "pads_end", "dilations")
    strides, begin, end, dilations = (tuple(int(n) for n in attributes[axis]) for axis in axes)
    outputs = tuple(node.output(0).get_shape())[1]
    kernel = weight[3:] if grouped else weight[2:]
    return Signature(operation, shape[1], outputs, kernel, strides, begin, end, dilations, groups, shape[2:], shape[0])


def layer_graph(layer: Signature, copies: int) -> ov.Model:
    """A graph in which copies of a layer, each with its own weights and a ReLU, read the same input.

    Of each copy's output a single position goes on, so what follows costs the same whatever the layer. With no copies it is the
    cost of everything but the layers.
    """
    generator = np.random.default_rng(0)
    parameter, source = _source(layer, generator)
    outputs = [_quantized(ops.relu(_layer(source, layer, generator)), layer.integer) for _ in range(copies)]
    corners = [_corner(output, layer) for output in outputs or [source]]
    joined = ops.concat(corners, 1) if len(corners) > 1 else corners[0]
    head = _channel_mixer(joined, SEED_CHANNELS, layer.integer, generator)
    return ov.Model([head], [parameter], "layer")


CHAINS = ((False,) * 2, (True,) * 2, (False, True), (True, False))
"""Whether the 1×1 and the depthwise layers of a chain are in 8 bits."""


def chain_graph(integer: tuple[bool, bool]) -> ov.Model:
    """1×1 and depthwise layers in turn, the former in 8 bits or not, and the latter."""
    generator = np.random.default_rng(0)
    parameter = ops.parameter([1, SEED_CHANNELS, *CHAIN_POSITIONS], np.float32)
    node = _channel_mixer(_quantized(parameter, integer[1]), CHAIN_CHANNELS, integer[1], generator)
    for i in range(CHAIN):
        kernel, pads = ((3, 3), (1, 1)) if i % 2 else ((1, 1), (0, 0))
        groups = CHAIN_CHANNELS if i % 2 else 1
        operation = "GroupConvolution" if i % 2 else "Convolution"
        shape = (CHAIN_CHANNELS, CHAIN_CHANNELS, kernel, (1, 1), pads, pads, (1, 1), groups, CHAIN_POSITIONS, 1)
        layer = Signature(operation, *shape, integer[i % 2])
        node = _layer(_quantized(ops.relu(node), layer.integer), layer, generator)
    head = _channel_mixer(_quantized(_corner(ops.relu(node), layer), integer[1]), SEED_CHANNELS, integer[1], generator)
    return ov.Model([head], [parameter], "chain")


def conversion_time(times: Sequence[float]) -> float:
    """What an element costs that goes from a float layer to an 8-bit one and back, of the times of CHAINS, in their unit."""
    floats, integers, one_way, other_way = times
    elements = CHAIN * CHAIN_CHANNELS * math.prod(CHAIN_POSITIONS)
    return (one_way + other_way - floats - integers) / elements


def _source(layer: Signature, generator: np.random.Generator) -> tuple[ov.Node, ov.Node]:
    """The graph's input, and a tensor of the layer's input shape that a layer of the same precision has made."""
    positions = (math.prod(layer.positions), 1) if layer.is_linear else layer.positions
    parameter = ops.parameter([layer.batch, SEED_CHANNELS, *positions], np.float32)
    seed = _quantized(parameter, layer.integer)
    source = _quantized(ops.relu(_channel_mixer(seed, layer.inputs, layer.integer, generator)), layer.integer)
    if layer.is_linear:
        shape = ops.constant(np.array([layer.batch, *layer.positions, layer.inputs]))
        source = ops.reshape(ops.transpose(source, ops.constant(np.array([0, 2, 3, 1]))), shape, False)
    return parameter, source


def _channel_mixer(source: ov.Node, outputs: int, integer: bool, generator: np.random.Generator) -> ov.Node:
    """A 1×1 convolution."""
    shape = tuple(source.output(0).get_shape())
    axes = len(shape) - 2
    weight = _weight((outputs, shape[1], *[1] * axes), integer, generator)
    return ops.convolution(source, weight, [1] * axes, [0] * axes, [0] * axes, [1] * axes)


def _layer(source: ov.Node, layer: Signature, generator: np.random.Generator) -> ov.Node:
    if layer.is_linear:
        product = ops.matmul(source, _weight((layer.outputs, layer.inputs), layer.integer, generator), False, True)
        return ops.add(product, ops.constant(_normal(generator, (1,) * (len(layer.positions) + 1) + (layer.outputs,))))
    first, second = (layer.inputs, layer.outputs) if layer.is_transposed else (layer.outputs, layer.inputs)
    groups = layer.groups
    shape = (first, second, *layer.kernel)
    if layer.operation.startswith("Group"):
        shape = (groups, first // groups, second // groups, *layer.kernel)
    channels = (0, 2 if layer.is_transposed else 1) if len(shape) > 2 + len(layer.kernel) else (int(layer.is_transposed),)
    weight = _weight(shape, layer.integer, generator, channels)
    make: Any = {
        "Convolution": ops.convolution,
        "GroupConvolution": ops.group_convolution,
        "ConvolutionBackpropData": ops.convolution_backprop_data,
        "GroupConvolutionBackpropData": ops.group_convolution_backprop_data,
    }[layer.operation]
    options = {"strides": layer.strides, "pads_begin": layer.pads_begin, "pads_end": layer.pads_end, "dilations": layer.dilations}
    node = make(source, weight, **{name: list(value) for name, value in options.items()})
    return ops.add(node, ops.constant(_normal(generator, (1, layer.outputs, *[1] * len(layer.kernel)))))


def _corner(node: ov.Node, layer: Signature) -> ov.Node:
    """One position, all channels: (batch, channels, 1, …)."""
    rank = len(node.output(0).get_shape())
    axes = range(1, rank - 1) if layer.is_linear else range(2, rank)
    if axes:
        first, count = np.zeros(len(axes), np.int64), np.ones(len(axes), np.int64)
        node = ops.slice(node, *(ops.constant(array) for array in (first, count, count, np.array(axes))))
    if not layer.is_linear:
        return node
    channels = tuple(node.output(0).get_shape())[-1]
    return ops.reshape(node, ops.constant(np.array([layer.batch, channels, 1, 1])), False)


def _quantized(node: ov.Node, integer: bool) -> ov.Node:
    if not integer:
        return node
    low, high = (ops.constant(np.float32(bound)) for bound in (0, 4))
    return ops.fake_quantize(node, low, high, low, high, LEVELS)


def _weight(shape: tuple[int, ...], integer: bool, generator: np.random.Generator, channels: tuple[int, ...] = (0,)) -> ov.Node:
    """A float constant, or codes with a step per output channel, as `precision.place_precision` writes them.

    The output channels lie along the axes `channels`: of a grouped layer along groups and outputs of a group.
    """
    if not integer:
        return ops.constant(_normal(generator, shape))
    codes = ops.constant(generator.integers(-127, 128, shape).astype(np.int8))
    steps = np.full([n if i in channels else 1 for i, n in enumerate(shape)], 1 / 127 / np.sqrt(np.prod(shape[1:])), np.float32)
    return ops.multiply(ops.convert(codes, np.float32), ops.constant(steps))


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = generator.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
    return values
