"""What a graph asks for: the precision of each layer's weights and input, as it is written in the model.

Weights are asked to be integer by an integer constant or by a FakeQuantize behind a float one. Activations are asked to be
integer by a FakeQuantize in front of the layer's input; operations that only move or select values may stand between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from autocompress.capabilities import Form, form_of
from autocompress.policy import FLOAT, Bits
from autocompress.target.precision import HEAVY_OPERATIONS

LAYER_OPERATIONS = (*HEAVY_OPERATIONS, "BinaryConvolution")
WEIGHT_OPERATIONS = ("Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
"""What may stand between a layer's constant and the layer."""
TRANSPARENT = (
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Slice", "StridedSlice", "Split", "VariadicSplit", "Gather"),
    *("ShuffleChannels", "DepthToSpace", "SpaceToDepth", "BatchToSpace", "SpaceToBatch", "MaxPool", "AvgPool", "Tile"),
    *("Relu", "Clamp", "Interpolate", "Concat"),
)
"""Operations through which quantized values stay quantized."""
FOLLOWERS = ("Add", "Multiply", "Subtract", "Reshape")
FULL_LEVELS = (255, 256)
LARGEST_INTEGER_BITS = 8


@dataclass(frozen=True)
class RequestedLayer:
    """A convolution or matrix product with a constant weight, as the graph writes it.

    Attributes:
        name: the layer's name in the IR.
        form: its kind.
        weights: bits of the weight's grid, or "float".
        levels: of the quantizer in front of its input; None where the input is float.
        storage: element type of the constant, for example "i4" or "f16".
        direct: a constant of fewer than 8 bits goes straight to float, or has a zero point in float.
        inputs, outputs: channels.
        macs: multiplications of one request.
        size: number of weights.
        zeros: fraction of weights that are exactly zero.
        ones: fraction of weights one step away from zero; 0 for float constants. A coarse grid has zeros of its own, and about
            twice as many such neighbours.
        is_first, is_last: no other layer stands between the model's inputs, or outputs, and the layer.
        followers: names of the bias and scale behind it. A device that fuses them in may name what runs after them.
    """

    name: str
    form: Form
    weights: Bits
    levels: int | None
    storage: str
    direct: bool
    inputs: int
    outputs: int
    macs: int
    size: int
    zeros: float
    ones: float
    is_first: bool
    is_last: bool
    followers: tuple[str, ...]

    @property
    def is_integer(self) -> bool:
        """Both weights and input are asked to be integer."""
        return self.weights != FLOAT and self.levels is not None

    @property
    def is_binary(self) -> bool:
        """Both weights and input are asked to have one bit."""
        return self.weights == 1 and self.levels == 2

    @property
    def words(self) -> str:
        """Weights and activations in short, for example "i4 / 256 levels" or "float"."""
        if self.weights == FLOAT:
            return f"float, {self.storage} stored" if self.storage in ("f16", "bf16") else "float"
        weights = f"{self.weights} bit{'s' * (self.weights != 1)}" + (f" ({self.storage})" if self.storage[0] in "iu" else "")
        return f"{weights} / {self.levels} levels" if self.levels else f"{weights} / float"


def requested_layers(model: ov.Model) -> list[RequestedLayer]:
    """Every layer with a constant weight of a model with static shapes, in the graph's order."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in LAYER_OPERATIONS]
    chains = [(node, chain) for node in nodes if (chain := _weight_chain(node))]
    behind = _behind_a_layer(model, {node.get_friendly_name() for node, _ in chains})
    before = _in_front_of_a_layer(model, {node.get_friendly_name() for node, _ in chains})
    return [
        _requested(node, chain, node.get_friendly_name() not in behind, node.get_friendly_name() not in before)
        for node, chain in chains
    ]


def node_of(model: ov.Model, name: str) -> ov.Node:
    """The node of a layer."""
    return next(node for node in model.get_ops() if node.get_friendly_name() == name)


def _requested(node: ov.Node, chain: list[ov.Node], is_first: bool, is_last: bool) -> RequestedLayer:
    constant = chain[-1]
    shape = [int(n) for n in constant.get_output_shape(0)]
    inputs, outputs, form = _widths(node)
    weights, storage = _weight_bits(node, chain), _type_name(constant)
    values = _codes(chain) if weights != 1 else np.ones(1)
    return RequestedLayer(
        name=str(node.get_friendly_name()),
        form=form,
        weights=weights,
        levels=2 if node.get_type_name() == "BinaryConvolution" else _levels(node.input_value(_data_port(node))),
        storage=storage,
        direct=_is_direct(chain),
        inputs=inputs,
        outputs=outputs,
        macs=_macs(node, outputs, math.prod(shape)),
        size=math.prod(shape),
        zeros=float(np.mean(values == 0)) if values.size else 0.0,
        ones=float(np.mean(np.abs(values) == 1)) if values.size and storage[0] in "iu" else 0.0,
        is_first=is_first,
        is_last=is_last,
        followers=_followers(node),
    )


def _data_port(node: ov.Node) -> int:
    """The input with the activations. A matrix product may have its constant on either side."""
    return 1 if node.get_type_name() == "MatMul" and not _chain(node.input_value(1)) else 0


def _weight_chain(node: ov.Node) -> list[ov.Node]:
    """The nodes from a layer's weight back to its constant, which is the last; empty if it is computed from an input."""
    return _chain(node.input_value(1)) or (_chain(node.input_value(0)) if node.get_type_name() == "MatMul" else [])


def _chain(value: ov.Output) -> list[ov.Node]:
    nodes = [value.get_node()]
    while nodes[-1].get_type_name() in WEIGHT_OPERATIONS:
        nodes.append(nodes[-1].input_value(0).get_node())
    return nodes if nodes[-1].get_type_name() == "Constant" else []


def _widths(node: ov.Node) -> tuple[int, int, Form]:
    """Input channels, output channels and form."""
    operation = node.get_type_name()
    shape = [int(n) for n in node.input(1).get_shape()]
    if operation == "MatMul":
        sizes = (int(node.input(_data_port(node)).get_shape()[-1]), int(node.output(0).get_shape()[-1]))
        return *sizes, form_of(shape, 1, linear=True)
    data, out = int(node.input(0).get_shape()[1]), int(node.output(0).get_shape()[1])
    if operation.startswith("Group"):
        own = shape[2:0:-1] if "Backprop" in operation else shape[1:3]  # (outputs, inputs) of a group
        return data, out, form_of([*own, *shape[3:]], shape[0])
    return data, out, form_of([out, data, *shape[2:]], 1)


def _followers(node: ov.Node) -> tuple[str, ...]:
    """Names of the affine and shape-only operations behind a layer, as far as each is the only one to read the one before."""
    names: list[str] = []
    while len(targets := list(node.output(0).get_target_inputs())) == 1:
        node = targets[0].get_node()
        if node.get_type_name() not in FOLLOWERS:
            break
        names.append(str(node.get_friendly_name()))
    return tuple(names)


def _macs(node: ov.Node, outputs: int, weights: int) -> int:
    """Every weight is used once per output position; of a transposed convolution, once per input position."""
    transposed = "Backprop" in node.get_type_name()
    shape = [int(n) for n in (node.input(0).get_shape() if transposed else node.output(0).get_shape())]
    channels = shape[1] if transposed else outputs
    return weights * math.prod(shape) // max(1, channels)


def _weight_bits(node: ov.Node, chain: list[ov.Node]) -> Bits:
    """The coarsest grid on the way from the constant to the layer."""
    if node.get_type_name() == "BinaryConvolution":
        return 1
    element = chain[-1].get_element_type()
    stored = element.bitwidth if not element.is_real() and _type_name(chain[-1])[0] in "iu" else None
    levels = [_fake_levels(one) for one in chain if one.get_type_name() == "FakeQuantize"]
    bits = [math.ceil(math.log2(n)) for n in levels] + ([stored] if stored else [])
    return min(bits) if bits and min(bits) <= LARGEST_INTEGER_BITS else FLOAT


def _is_direct(chain: list[ov.Node]) -> bool:
    """A packed constant that is converted to float first, or shifted in float, with no quantizer behind it."""
    constant, on_the_way = chain[-1], list(reversed(chain[:-1]))
    packed = _type_name(constant)[0] in "iu" and constant.get_element_type().bitwidth < LARGEST_INTEGER_BITS
    if not packed or any(node.get_type_name() == "FakeQuantize" for node in on_the_way):
        return False
    converts = [node for node in on_the_way if node.get_type_name() == "Convert"]
    shifts = [node for node in on_the_way if node.get_type_name() == "Subtract"]
    return not converts or converts[0].get_element_type().is_real() or any(n.get_element_type().is_real() for n in shifts)


def _codes(chain: list[ov.Node]) -> NDArray[np.float32]:
    """The constant's values, less the zero point if there is one."""
    codes = _values(chain[-1])
    for node in chain:
        if node.get_type_name() == "Subtract":
            shift = _chain(node.input_value(1))
            codes = codes - _values(shift[-1]) if shift else codes
    return codes


def _values(constant: ov.Node) -> NDArray[np.float32]:
    element = _type_name(constant)
    if element not in ("i4", "u4"):
        return np.asarray(constant.get_data(dtype=np.float32), dtype=np.float32)
    shape = [int(n) for n in constant.get_output_shape(0)]
    packed = np.asarray(constant.data).view(np.uint8).reshape(-1)
    codes = np.stack([packed & 15, packed >> 4], 1).reshape(-1)[: math.prod(shape)].astype(np.float32)
    signed = np.where(codes > 7, codes - 16, codes) if element == "i4" else codes
    return np.asarray(signed.reshape(shape), dtype=np.float32)


def _levels(value: ov.Output) -> int | None:
    """Levels of the nearest quantizer behind which values stay quantized; of several branches, the most."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "FakeQuantize":
        return _fake_levels(node)
    if kind == "Concat":
        branches = [_levels(branch) for branch in node.input_values()]
        known = [levels for levels in branches if levels]
        return max(known) if known and len(known) == len(branches) else None
    if kind in (*TRANSPARENT, "Convert") or (kind in ("Subtract", "Multiply") and _is_dequantization(node)):
        return _levels(node.input_value(0))
    return None


def _is_dequantization(node: ov.Node) -> bool:
    """A shift or scale by constants, behind a conversion from integers."""
    source = node
    while source.get_type_name() in ("Subtract", "Multiply") and _chain(source.input_value(1)):
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() == "Convert" and not source.input(0).get_element_type().is_real())


def _fake_levels(node: ov.Node) -> int:
    return int(node.get_attributes()["levels"])


def _type_name(constant: ov.Node) -> str:
    """OpenVINO's short name, for example "i4"."""
    return str(constant.get_element_type().get_type_name())


def _behind_a_layer(model: ov.Model, layers: set[str]) -> set[str]:
    """Names of the nodes that a layer's output reaches."""
    reached: set[str] = set()
    for node in model.get_ordered_ops():
        sources = _names(value.get_node() for value in node.input_values())
        if sources & (reached | layers):
            reached.add(str(node.get_friendly_name()))
    return reached


def _in_front_of_a_layer(model: ov.Model, layers: set[str]) -> set[str]:
    """Names of the nodes whose output reaches a layer."""
    reaching: set[str] = set()
    for node in reversed(model.get_ordered_ops()):
        name = str(node.get_friendly_name())
        if name in layers or name in reaching:
            reaching |= _names(value.get_node() for value in node.input_values())
    return reaching


def _names(nodes: Iterator[ov.Node]) -> set[str]:
    return {str(node.get_friendly_name()) for node in nodes}
