"""All that is real about precision: INT8 placement by NNCF, then each layer's own weight grid written into the graph.

Both frameworks hand over an `ov.Model` whose convolution and matrix-product nodes carry the layers' names, and the codes of
every quantized layer's trained grid. The weights in that graph already lie on those grids, up to one factor per output
channel (a folded batch norm), so the steps are read from the graph and the codes are written exactly as they were trained.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress import grids
from autocompress.data import Inputs
from autocompress.errors import ConversionError
from autocompress.policy import Policy
from autocompress.target.evaluate import feed

HEAVY_OPERATIONS = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
)
COPY_MARK = "#"
"""A layer that the model calls twice is two nodes: "fc" and "fc#2"."""
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
        notes: what could not be done as asked, in words.
    """

    model: ov.Model
    grids: Mapping[str, LayerGrid] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
        converted: what the framework handed over; it is not changed.
        policy: which layers run in INT8.
        samples: inputs, each with the deployed batch size, from which activation ranges are taken.
        wide: layers whose low-bit codes are stored in 8 bits.
        correct_bias: let NNCF shift biases (for models that were not fine-tuned).
        compact: store 4-, 3- and 2-bit codes in 4 or 2 bits.

    Raises:
        ConversionError: NNCF or OpenVINO refuses the graph.
    """
    heavy = heavy_nodes(converted.model)
    float_nodes = [
        node.get_friendly_name() for name, nodes in heavy.items() if not policy.layer(name).is_integer for node in nodes
    ]
    integer = any(policy.layer(name).is_integer for name in heavy)
    model = _quantize_activations(converted.model, samples, float_nodes, correct_bias) if integer else converted.model.clone()
    weights = {name: [_weight(node) for node in heavy[name]] for name in converted.grids if name in heavy}
    stored_wide = set(wide)
    for name, nodes in heavy_nodes(model).items():
        if name in weights:
            for node, weight in zip(nodes, weights[name], strict=True):
                grid = converted.grids[name]
                codes, step = _folded_grid(weight, grid, name, converted.notes)
                storage = grid.bits if compact and grid.bits <= 4 and name not in stored_wide else 8
                node.input(1).replace_source_output(_grid_constant(codes, step, storage).output(0))
    model.validate_nodes_and_infer_types()
    return model


def heavy_nodes(model: ov.Model) -> dict[str, list[ov.Node]]:
    """Layer name → its convolution or matrix-product nodes with a constant weight."""
    found: dict[str, list[ov.Node]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() in HEAVY_OPERATIONS and _constant_source(node) is not None:
            found.setdefault(node.get_friendly_name().split(COPY_MARK)[0], []).append(node)
    return found


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


def _quantize_activations(model: ov.Model, samples: Sequence[Inputs], float_nodes: list[str], correct_bias: bool) -> ov.Model:
    """NNCF's placement and calibration. Its progress bars are kept off the user's screen."""
    import nncf  # takes 3 s, and only models with an integer layer need it
    from nncf.common.graph.patterns.patterns import IgnoredPatternNames
    from nncf.openvino.quantization.ignored_patterns import OPENVINO_IGNORED_PATTERNS

    # NNCF leaves squeeze-and-excite blocks in float on its own; here the policy decides.
    OPENVINO_IGNORED_PATTERNS.registry_dict.pop(IgnoredPatternNames.SE_BLOCK, None)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    dataset = nncf.Dataset([_positional(model, sample) for sample in samples])
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=not correct_bias,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(
            convolution=-1, matmul=-1
        ),  # it would move weights off their grids
    )
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return nncf.quantize(
                model.clone(),
                dataset,
                subset_size=len(samples),
                ignored_scope=nncf.IgnoredScope(names=float_nodes),
                advanced_parameters=advanced,
            )
    except Exception as error:
        raise ConversionError(f"NNCF cannot quantize this model: {type(error).__name__}: {error}") from error


def _positional(model: ov.Model, sample: Inputs) -> dict[str, NDArray[np.generic]]:
    return {model.inputs[i].get_any_name(): array for i, array in feed(model, sample).items()}


def _constant_source(node: ov.Node) -> ov.Node | None:
    """The constant that a heavy node's weight comes from, looking through conversions and quantizers; None if it is computed."""
    source = node.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape"):
        source = source.input_value(0).get_node()
    return source if source.get_type_name() == "Constant" else None


def _weight(node: ov.Node) -> NDArray[np.float32]:
    source = _constant_source(node)
    assert source is not None  # heavy_nodes() chose it for that
    return np.array(source.data, dtype=np.float32)


def _folded_grid(
    weight: NDArray[np.float32], grid: LayerGrid, name: str, notes: list[str]
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
    notes.append(f"{name}: another operation was folded into its input channels, so its grid was taken anew")
    step = np.maximum(np.abs(weight).max(others, keepdims=True) / grids.largest_code(grid.bits), grids.TINY).astype(np.float32)
    return grids.quantize(weight, step, grid.bits), step


def _step_axes(ndim: int, grid: LayerGrid) -> tuple[int, ...]:
    """The axes that share a step. A grouped weight has one axis more than the layer's: (groups, outputs of a group, …)."""
    own = {grid.axis} if ndim == grid.codes.ndim else {0, grid.axis + 1}
    return tuple(axis for axis in range(ndim) if axis not in own)


def _grid_constant(codes: NDArray[np.int8], step: NDArray[np.float32], storage_bits: int) -> ov.Node:
    """Integer constant → Convert(i8) → Convert(f32) → Multiply(step), the form that keeps an INT8 kernel.

    2 bits are stored unsigned, with the shift back to -1 … 1 done in i8; a shift done in float would cost the kernel.
    """
    if storage_bits == 8:
        integer = ops.constant(codes)
    elif storage_bits == 2:
        integer = ops.subtract(_packed_constant(codes + np.int8(1), 2, ov.Type.u2), ops.constant(np.int8(1)))
    else:
        integer = _packed_constant(codes, 4, ov.Type.i4)
    return ops.multiply(ops.convert(integer, np.float32), ops.constant(step))


def _packed_constant(codes: NDArray[np.int8], bits: int, element: ov.Type) -> ov.Node:
    tensor = ov.Tensor(element, ov.Shape(codes.shape))
    tensor.data.view(np.uint8)[:] = grids.pack(codes, bits)
    return ops.convert(ops.constant(tensor), np.int8)
