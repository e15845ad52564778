"""All that is real about precision: INT8 placement by NNCF, then each layer's own weight grid written into the graph.

Both frameworks hand over an `ov.Model` whose convolution and matrix-product nodes carry the layers' names, and the codes of
every quantized layer's trained grid. The weights in that graph already lie on those grids, up to one factor per output
channel (a folded batch norm), so the steps are read from the graph and the codes are written exactly as they were trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress import grids
from autocompress.data import Inputs
from autocompress.errors import ConversionError
from autocompress.policy import Policy
from autocompress.target.binary import binarize, obstacle
from autocompress.target.calibration import quantize_activations
from autocompress.target.grid_nodes import Range, coarse_quantizer, grid_constant, quantizer_in_front, range_of
from autocompress.target.uneven_bias import make_bias_uneven

HEAVY_OPERATIONS = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
)
WEIGHT_OPERATIONS = ("Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape")
"""What may stand between a constant and the layer whose weight it is."""
RECURRENT_OPERATIONS = ("LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell", "TensorIterator", "Loop")
WITHOUT_INTEGER_KERNEL = ("GroupConvolutionBackpropData",)
"""OpenVINO's low-precision transformations leave them in float, so a quantizer in front of them would only cost time."""
COARSE_LEVELS = {4: 16, 1: 2}
"""Activation bits below 8 → levels."""
COPY_MARK = "#"
"""A layer that the model calls twice is two nodes: "fc" and "fc#2"."""
BOUNDS_APART = 1e-6
"""Of their difference: too little to change a value, enough for OpenVINO not to unite two quantizers."""
MISFIT = 1e-3
"""How far, in steps, a weight in the graph may lie from its code: float rounding in the folding of batch norm."""


@dataclass(frozen=True)
class LayerGrid:
    """The trained codes of one layer, in the memory layout of the graph's weight.

    Attributes:
        codes: the weight's codes.
        bits: of the grid.
        axis: the output-channel axis of `codes`.
    """

    codes: NDArray[np.int8]
    bits: int
    axis: int = 0


@dataclass
class Converted:
    """A converted model, before any precision is real.

    Attributes:
        model: the graph; its heavy nodes carry the layers' names.
        grids: layer name → its codes, for the layers with quantized weights.
        input_ranges: layer name → lowest and highest value of its trained input quantizer. They are taken where the input has
            less than 256 levels; with 256, layers that read one value share the range that calibration finds for it.
        notes: what could not be done as asked, in words.
    """

    model: ov.Model
    grids: Mapping[str, LayerGrid] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Add a note once: precision may be placed several times."""
        if text not in self.notes:
            self.notes.append(text)


def place_precision(
    converted: Converted,
    policy: Policy,
    samples: Sequence[Inputs],
    *,
    wide: Iterable[str] = (),
    correct_bias: bool = False,
    compact: bool = True,
) -> ov.Model:
    """The graph with integer activations where the policy asks for them, and every trained grid in place.

    Args:
        converted: what the framework handed over; its notes are added to, the graph is not changed.
        policy: which layers run in INT8 or in 1 bit.
        samples: inputs, each with the deployed batch size, from which activation ranges are taken.
        wide: layers whose low-bit codes are stored in 8 bits, and which have no binary kernel.
        correct_bias: let NNCF shift biases (for models that were not fine-tuned).
        compact: store 4-, 3- and 2-bit codes in 4 or 2 bits.

    Raises:
        ConversionError: NNCF or OpenVINO refuses the graph.
    """
    heavy = heavy_nodes(converted.model)
    weights = {name: [_weight(node) for node in heavy[name]] for name in converted.grids if name in heavy}
    model = converted.model.clone()
    if any(policy.layer(name).is_integer for name in heavy):
        _put_constants_second(model)
        model = quantize_activations(model, samples, _float_names(converted, policy), correct_bias)
    writer = _Writer(converted, policy, frozenset(wide), compact)
    for name, nodes in heavy_nodes(model).items():
        if name in weights:
            for node, weight in zip(nodes, weights[name], strict=True):
                writer.write(name, node, weight)
        if policy.layer(name).is_integer:
            for node in nodes:
                make_bias_uneven(node)
    model.validate_nodes_and_infer_types()
    return model


def heavy_nodes(model: ov.Model) -> dict[str, list[ov.Node]]:
    """Layer name → its convolution or matrix-product nodes with a constant weight."""
    found: dict[str, list[ov.Node]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in HEAVY_OPERATIONS and weight_port(node) is not None:
            found.setdefault(node.get_friendly_name().split(COPY_MARK)[0], []).append(node)
    return found


def weight_port(node: ov.Node) -> int | None:
    """The input of a heavy node at which its constant weight is; None if it is computed. A matrix product may have it first."""
    ports = (1, 0) if node.get_type_name() == "MatMul" else (1,)
    constant = [port for port in ports if _is_constant(node.input_value(port))]
    return constant[0] if len(constant) == 1 else None


def save(model: ov.Model, path: Path) -> None:
    """Write the IR with its float constants in full precision, whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    try:
        ov.save_model(model, temporary, compress_to_fp16=False)
        temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".bin").unlink(missing_ok=True)


@dataclass(frozen=True)
class _Writer:
    """Writes the trained grids of one model's layers into its graph, and quantizers of less than 256 levels in front of them."""

    converted: Converted
    policy: Policy
    wide: frozenset[str]
    compact: bool
    coarse: dict[tuple[Any, ...], ov.Node] = field(default_factory=dict)
    binary: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def write(self, name: str, node: ov.Node, weight: NDArray[np.float32]) -> None:
        """One layer, or one call of it; `weight` is the one it had before any precision was real."""
        grid, activations = self.converted.grids[name], self.policy.layer(name).activations
        codes, step = _folded_grid(weight, grid, name, self.converted)
        coarse = activations in COARSE_LEVELS and node.get_type_name() not in WITHOUT_INTEGER_KERNEL
        bounds = self._bounds(name, node) if coarse else None
        if grid.bits == 1 and activations == 1 and bounds is not None and self._can_be_binary(name, node, grid, bounds):
            scale = step * np.abs(codes).max(tuple(range(1, codes.ndim)), keepdims=True)  # 0 under a batch-norm scale of 0
            source = _unquantized(node.input_value(0))
            signs = np.where(codes < 0, np.int8(-1), np.int8(1))
            binarize(node, signs, scale, source, self._bounds_of_its_own(source, bounds))
            return
        port = weight_port(node)
        assert port is not None  # heavy_nodes() chose it for that
        node.input(port).replace_source_output(grid_constant(codes, step, self._storage_bits(name, grid)).output(0))
        if bounds is not None:
            self._coarsen(node.input(1 - port), COARSE_LEVELS[int(activations)], bounds)

    def _bounds_of_its_own(self, source: ov.Output, bounds: Range) -> Range:
        """Bounds that no other binary layer has on this value: one quantizer in front of two binary layers crashes OpenVINO."""
        place = _place(source, bounds)
        others = self.binary[place] = self.binary.get(place, -1) + 1
        low, high = bounds
        return low, np.asarray(high + others * BOUNDS_APART * (high - low), np.float32)

    def _storage_bits(self, name: str, grid: LayerGrid) -> int:
        if not self.compact or grid.bits > 4 or name in self.wide:
            return 8
        return 4 if grid.bits > 2 else 2

    def _bounds(self, name: str, node: ov.Node) -> Range | None:
        """The range of a layer's input: the trained one, or else that of NNCF's quantizer."""
        if name in self.converted.input_ranges:
            low, high = (np.float32(bound) for bound in self.converted.input_ranges[name])
            return np.asarray(low), np.asarray(high)
        quantizer = quantizer_in_front(node.input_value(1 - (weight_port(node) or 0)))
        if quantizer is None:
            self.converted.note(f"{name}: its input has no quantizer, so its activations stay as they are")
            return None
        return range_of(quantizer)

    def _can_be_binary(self, name: str, node: ov.Node, grid: LayerGrid, bounds: Range) -> bool:
        reason = "its binary form did not keep its kernel" if name in self.wide else obstacle(node, grid.codes, bounds)
        if reason is not None:
            self.converted.note(f"{name}: 1 bit in an 8-bit kernel, because {reason}")
        return reason is None

    def _coarsen(self, port: ov.Input, levels: int, bounds: Range) -> None:
        """Put a coarse quantizer in front of one consumer. Layers that read one value on one range share it."""
        source = _unquantized(port.get_source_output())
        place = (*_place(source, bounds), levels)
        if place not in self.coarse:
            self.coarse[place] = coarse_quantizer(source, levels, bounds)
        port.replace_source_output(self.coarse[place].output(0))


def _place(source: ov.Output, bounds: Range) -> tuple[Any, ...]:
    """Equal for layers that read one value on one range."""
    return source.get_node().get_friendly_name(), source.get_index(), *(bound.tobytes() for bound in bounds)


def _unquantized(value: ov.Output) -> ov.Output:
    """The value in front of a quantizer, which other consumers may keep."""
    node = value.get_node()
    return node.input_value(0) if node.get_type_name() == "FakeQuantize" else value


def _float_names(converted: Converted, policy: Policy) -> list[str]:
    """The nodes that NNCF leaves alone: what the policy leaves in float, and what has no integer kernel, with a note."""
    names = []
    for name, nodes in heavy_nodes(converted.model).items():
        without_kernel = nodes[0].get_type_name() in WITHOUT_INTEGER_KERNEL
        if without_kernel and policy.layer(name).is_integer:
            converted.note(f"{name}: a grouped transposed convolution has no integer kernel, so its input stays in float")
        if without_kernel or not policy.layer(name).is_integer:
            names += [node.get_friendly_name() for node in nodes]
    for node in converted.model.get_ordered_ops():
        if node.get_type_name() in RECURRENT_OPERATIONS:
            names.append(node.get_friendly_name())
            converted.note(f"{node.get_friendly_name()}: a recurrent cell ({node.get_type_name()}) stays in float")
    return [*dict.fromkeys([*names, *_after_float_layers(converted.model, policy)])]


def _after_float_layers(model: ov.Model, policy: Policy) -> list[str]:
    """Operations without weights that compute from what float layers give, and from nothing that an integer layer gives.

    NNCF would quantize sums, pooling, means and attention there too, and the conversions cost more than the integers save.
    """
    integer = {
        node.get_friendly_name(): policy.layer(name).is_integer for name, nodes in heavy_nodes(model).items() for node in nodes
    }
    sources: dict[str, frozenset[bool]] = {}
    """Node → whether the layers that it computes from are integer ones."""
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        met = (sources[value.get_node().get_friendly_name()] for value in node.input_values())
        sources[name] = frozenset({integer[name]}) if name in integer else frozenset().union(*met)
    results = {result.get_friendly_name() for result in model.get_results()}
    return [name for name, met in sources.items() if met == {False} and name not in integer and name not in results]


def _put_constants_second(model: ov.Model) -> None:
    """Turn W @ x into (xᵀ @ Wᵀ)ᵀ, in place: with its weight as the first operand a matrix product gets no integer kernel."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or weight_port(node) != 0:
            continue
        attributes = node.get_attributes()
        weight, value = node.input_values()
        if value.get_partial_shape().rank.get_length() < 2:
            continue
        product = ops.matmul(value, weight, not attributes["transpose_b"], not attributes["transpose_a"])
        rank = node.get_output_partial_shape(0).rank.get_length()
        order = [*range(rank - 2), rank - 1, rank - 2]
        turned = ops.transpose(product, ops.constant(np.array(order, np.int64)))
        product.set_friendly_name(node.get_friendly_name())
        for consumer in node.output(0).get_target_inputs():
            consumer.replace_source_output(turned.output(0))


def _is_constant(value: ov.Output) -> bool:
    """True where a value is computed from constants by conversions and quantizers alone."""
    node = value.get_node()
    if node.get_type_name() in WEIGHT_OPERATIONS:
        return all(_is_constant(source) for source in node.input_values())
    return bool(node.get_type_name() == "Constant")


def _weight(node: ov.Node) -> NDArray[np.float32]:
    """The weight of a heavy node of a converted model, where nothing but a conversion or a reshape can be behind it."""
    port = weight_port(node)
    assert port is not None  # heavy_nodes() chose it for that
    source = node.input_value(port).get_node()
    while source.get_type_name() != "Constant":
        source = source.input_value(0).get_node()
    return np.array(source.data, dtype=np.float32).reshape(tuple(node.input(port).get_shape()))


def _folded_grid(
    weight: NDArray[np.float32], grid: LayerGrid, name: str, converted: Converted
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and steps of the graph's weight, both in its shape (the step with 1s where it is shared).

    Folding multiplies each output channel by a factor of its own, and may turn its sign. The step is the least-squares fit
    of the weight to its codes. Where something else was folded in (a scale per *input* channel), the trained grid no longer
    fits; then a new one is taken from the weight, and a note says so.
    """
    if weight.size != grid.codes.size:
        raise ConversionError(f"Layer {name}: the converted weight does not have the size of its grid, {grid.codes.shape}.")
    codes = grid.codes.reshape(weight.shape).astype(np.float32)
    others = _step_axes(weight.ndim, grid)
    squares = (codes**2).sum(others, keepdims=True)
    signed = (weight * codes).sum(others, keepdims=True) / np.maximum(squares, 1)
    step = np.where(signed == 0, np.float32(1), np.abs(signed)).astype(np.float32)
    codes = codes * np.sign(signed)
    if np.abs(weight - codes * step).max() <= MISFIT * step.max():
        return codes.astype(np.int8), step
    converted.note(f"{name}: another operation was folded into its input channels, so its grid was taken anew")
    if grid.bits == 1:
        step = grids.mean_magnitude(weight, others)
    else:
        step = np.maximum(np.abs(weight).max(others, keepdims=True) / grids.largest_code(grid.bits), grids.TINY).astype(
            np.float32
        )
    return grids.quantize(weight, step, grid.bits), step


def _step_axes(ndim: int, grid: LayerGrid) -> tuple[int, ...]:
    """The axes that share a step. A grouped weight has one axis more than the layer's: (groups, outputs of a group, …)."""
    own = {grid.axis} if ndim == grid.codes.ndim else {0, grid.axis + 1}
    return tuple(axis for axis in range(ndim) if axis not in own)
