"""Where a graph's activations become integers, and their ranges: NNCF's placement and calibration."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from autocompress.data import Inputs
from autocompress.errors import ConversionError
from autocompress.target.evaluate import WIDENED_ELEMENTS, feed, widened

TOGETHER = 32
"""Samples of one call at most: with more, a small network's calibration takes no less time."""
SAMPLE_BY_SAMPLE = {
    *("Parameter", "Constant", "Result", "Convert", "FakeQuantize", "MatMul", "BatchNormInference", "Softmax"),
    *("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData"),
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "Sqrt", "Abs", "Negative", "Exp", "Clamp"),
    *("Relu", "PRelu", "Elu", "Sigmoid", "HSigmoid", "HardSigmoid", "Tanh", "Swish", "HSwish", "Gelu", "Mish", "SoftPlus"),
    *("MaxPool", "AvgPool", "AdaptiveAvgPool", "ReduceMean", "ReduceMax", "ReduceSum", "Interpolate"),
    *("Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual", "LogicalAnd", "LogicalOr", "LogicalNot", "Select"),
    *("Gather", "MVN", "ScaledDotProductAttention"),
    *("Concat", "Pad", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "SpaceToDepth"),
}
"""Operations that treat the samples along their first axis one by one if their outputs have them there too; see `_may_mix`."""
UNITING = ("get_full_hw_pattern_graph", "get_full_ignored_pattern_graph")
"""NNCF's functions that unite patterns."""

Named = dict[str, NDArray[np.generic]]
"""Arrays by the names of a graph's inputs."""

_united: dict[tuple[Any, ...], Any] = {}


def quantize_activations(model: ov.Model, samples: Sequence[Inputs], float_nodes: Sequence[str], correct_bias: bool) -> ov.Model:
    """A copy of a graph with quantizers in front of what runs in INT8.

    Args:
        model: the graph.
        samples: inputs from which the ranges are taken; each has the deployed batch size and repeats one sample.
        float_nodes: names of the nodes that stay in float.
        correct_bias: let NNCF shift biases.

    Raises:
        ConversionError: NNCF refuses the graph.
    """
    given = [_named(model, sample) for sample in samples]
    count = 1 if correct_bias else _calls_in_one(given)  # NNCF corrects biases by what single samples give
    wide = _for_many(model, count) if count > 1 else None
    if wide is not None:
        with contextlib.suppress(Exception):  # whatever it was, sample by sample it may be otherwise
            batches = [_joined(given[first : first + count]) for first in range(0, len(given), count)]
            quantized = _quantized(wide, batches, float_nodes, correct_bias, of_many=True)
            quantized.reshape({port.get_any_name(): port.partial_shape for port in model.inputs})
            return quantized
    try:
        return _quantized(model.clone(), given, float_nodes, correct_bias)
    except Exception as error:
        raise ConversionError(f"NNCF cannot quantize this model: {type(error).__name__}: {error}") from error


def _quantized(
    model: ov.Model, data: Sequence[Named], float_nodes: Sequence[str], correct_bias: bool, *, of_many: bool = False
) -> ov.Model:
    """What NNCF makes of a graph. A range is the mean of its samples' own, also `of_many` that come together."""
    import nncf  # takes 3 s, and only models with an integer layer need it

    logging.getLogger("nncf").setLevel(logging.ERROR)
    still = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)  # it would move weights off their grids
    advanced = nncf.AdvancedQuantizationParameters(
        disable_bias_correction=not correct_bias, smooth_quant_alphas=still, batchwise_statistics=of_many
    )
    scope = nncf.IgnoredScope(names=list(float_nodes))
    with _without_bars(), _own_patterns():
        return nncf.quantize(model, nncf.Dataset(data), subset_size=len(data), ignored_scope=scope, advanced_parameters=advanced)


def _calls_in_one(samples: Sequence[Named]) -> int:
    """How many inputs a call takes; all calls take as many."""
    most = min(TOGETHER, WIDENED_ELEMENTS // max(1, *(array.size for array in samples[0].values())))
    return next((count for count in range(most, 1, -1) if len(samples) % count == 0), 1)


def _joined(samples: Sequence[Named]) -> Named:
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _for_many(model: ov.Model, count: int) -> ov.Model | None:
    """A copy of a static graph that takes `count` times as many samples; None where they may not stay apart."""
    kinds = {op.get_type_name() for op in model.get_ops()}
    if model.is_dynamic() or not kinds <= SAMPLE_BY_SAMPLE or any(not port.shape for port in model.inputs):
        return None
    try:
        wide = widened(model, count)
    except RuntimeError:  # a graph may be made for one batch size
        return None
    return wide if not wide.is_dynamic() and _stay_apart(model, wide, count) else None


def _stay_apart(model: ov.Model, wide: ov.Model, count: int) -> bool:
    """Do all values that depend on the samples have them along their first axis, and are the two graphs the same otherwise?"""
    ops, wide_ops = model.get_ordered_ops(), wide.get_ordered_ops()
    if [*map(_name_and_kind, ops)] != [*map(_name_and_kind, wide_ops)]:
        return False
    batch = model.inputs[0].shape[0]
    depending: set[int] = set()
    for op, wide_op in zip(ops, wide_ops, strict=True):
        read = [value for value in op.input_values() if value.get_node().get_instance_id() in depending]
        depends = bool(read) or op.get_type_name() == "Parameter"
        if depends:
            depending.add(op.get_instance_id())
        if _may_mix(op, [len(value.shape) for value in read]):
            return False
        for one, many in zip((list(value.shape) for value in op.outputs()), wide_op.outputs(), strict=True):
            expected = [count * batch, *one[1:]] if depends else one
            if list(many.shape) != expected or (depends and one[0] != batch):
                return False
    return True


def _may_mix(op: ov.Node, ranks: Sequence[int]) -> bool:
    """Whether an operation that reads values of some ranks, which depend on the samples, might see one's beside another's."""
    kind = op.get_type_name()
    if len(set(ranks)) > 1:  # the first axis of the lower one meets another axis
        return True
    if kind == "Gather":
        return len(ranks) > 1  # samples say which samples
    if not ranks or kind not in ("Softmax", "MVN"):
        return False
    axes = [op.get_attributes()["axis"]] if kind == "Softmax" else _constant(op.input_value(1))
    return axes is None or not {0, -ranks[0]}.isdisjoint(axes)


def _constant(value: ov.Output) -> list[int] | None:
    """Whole numbers; None where they are computed."""
    node = value.get_node()
    return node.data.ravel().tolist() if node.get_type_name() == "Constant" else None


def _name_and_kind(op: ov.Node) -> tuple[str, str]:
    return op.get_friendly_name(), op.get_type_name()


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """NNCF draws its bars on rich's own console, in a terminal as in a notebook."""
    import rich  # comes with nncf

    console = rich.get_console()
    shown = console.__dict__
    rich.reconfigure(file=io.StringIO(), force_jupyter=False)
    try:
        yield
    finally:
        console.__dict__ = shown


@contextlib.contextmanager
def _own_patterns() -> Iterator[None]:
    """NNCF's patterns of operations, without that for which it leaves squeeze-and-excite blocks in float: the policy decides.

    It unites all of them anew for every graph, which takes as long as calibrating a small network; here they are kept.
    """
    from nncf.common.graph.patterns.manager import PatternsManager
    from nncf.common.graph.patterns.patterns import IgnoredPatternNames
    from nncf.openvino.quantization.ignored_patterns import OPENVINO_IGNORED_PATTERNS

    patterns, left_out = OPENVINO_IGNORED_PATTERNS.registry_dict, IgnoredPatternNames.SE_BLOCK
    uniting = {name: vars(PatternsManager)[name] for name in UNITING if name in vars(PatternsManager)}
    pattern = patterns.pop(left_out, None)
    try:
        for name in uniting:
            setattr(PatternsManager, name, staticmethod(_kept(getattr(PatternsManager, name))))
        yield
    finally:
        for name, original in uniting.items():
            setattr(PatternsManager, name, original)
        if pattern is not None:
            patterns[left_out] = pattern


def _kept(uniting: Callable[..., Any]) -> Callable[..., Any]:
    """NNCF's function, called once for every choice of arguments."""

    def called(*arguments: Any, **named: Any) -> Any:
        key = uniting, arguments, tuple(named.items())
        if key not in _united:
            _united[key] = uniting(*arguments, **named)
        return _united[key]

    return called


def _named(model: ov.Model, sample: Inputs) -> Named:
    return {model.inputs[i].get_any_name(): array for i, array in feed(model, sample).items()}
