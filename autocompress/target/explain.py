"""Why a model is not faster: what each layer was asked to be, what ran instead, where the time goes, and what to do about it.

The graph says what was asked (`requested.py`), the device says what ran (`executed.py`). Each rule below compares the two and
names at most one reason. A finding is a fault where something costs time that the model's author would not have expected to
pay, and a note where it only explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from autocompress.capabilities import Capabilities, Form
from autocompress.device import Target
from autocompress.policy import FLOAT
from autocompress.target.executed import Conversion, Execution, Layer, Precision, execute
from autocompress.target.layer_graphs import Signature, layer_graph, signature_of
from autocompress.target.load import request_shapes
from autocompress.target.meter import measure
from autocompress.target.requested import FULL_LEVELS, LARGEST_INTEGER_BITS, RequestedLayer, node_of
from autocompress.target.runtime import compile_model

Severity = Literal["fault", "note"]

NEGLIGIBLE = 0.01
"""Of the time: what costs less is never a fault."""
ISLAND_OF_ALL, ISLAND_OF_OWN = 0.03, 0.25
"""Conversions around a float island are a fault from this share of all the time, or of its layers' own."""
ISLAND_LOSS = 0.05
"""So is running the island in float, where the integer kernel would save this share of the time."""
STEP_SHARE, STEP_MARGIN, STEP_HALF_WIDTH, STEP_CANDIDATES = 0.02, 1.05, 0.03, 4
"""Which layers' channels are timed, how much more than their share they must cost, how precisely it is measured."""
IMAGE_CHANNELS = 3
MANY_ZEROS, MANY_WEIGHTS, NATURAL_ZEROS_BITS = 0.3, 1000, 2
"""Zeros are looked at in layers of so many weights, from this fraction on; ternary grids have them by nature."""
OVERHEAD = 0.5
"""A request rules from this share of the time that one without any work takes."""
MOSTLY = 0.5
"""A float model has at least this share of its multiplications in float layers."""


@dataclass(frozen=True)
class Finding:
    """One reason why the model is not faster.

    Attributes:
        reason: its name, for example "levels-without-kernel".
        layers: the layers that it is about; none for the model as a whole.
        words: what is the case.
        remedy: what to do.
        severity: "fault" costs time, "note" explains.
        share: what it costs, as a share of a request's time; None where that is not known.
    """

    reason: str
    layers: tuple[str, ...]
    words: str
    remedy: str
    severity: Severity
    share: float | None = None


@dataclass(frozen=True)
class Explanation:
    """Where the time of a request goes, and why it is not less. Shares are of a request's time; all of them add up to 1.

    Attributes:
        layers: in the graph's order.
        conversions: in the order of execution.
        other: share of all other operations.
        overhead: share of what is in no operation: the call, handing over the inputs and outputs.
        below_resolution: share that the device's clock, which counts microseconds, may have missed.
        findings: faults first.
        latency_ms: median time of a request.
        float_precision: in which float operations run where nothing is asked; None if the target's capabilities are not known.
    """

    layers: tuple[Layer, ...]
    conversions: tuple[Conversion, ...]
    other: float
    overhead: float
    below_resolution: float
    findings: tuple[Finding, ...]
    latency_ms: float
    float_precision: str | None = None

    @property
    def healthy(self) -> bool:
        """Nothing is wrong."""
        return not self.faults

    @property
    def faults(self) -> list[Finding]:
        """The findings that cost time."""
        return [finding for finding in self.findings if finding.severity == "fault"]

    @property
    def integer_share(self) -> float:
        """The layers that run in integer or binary kernels, as a share of all multiplications."""
        macs = sum(layer.asked.macs for layer in self.layers)
        return sum(layer.asked.macs for layer in self.layers if layer.precision in ("int8", "binary")) / max(1, macs)

    def share_of(self, *precisions: Precision) -> float:
        """The share of the time of the layers that ran so."""
        return sum(layer.share for layer in self.layers if layer.precision in precisions)

    def findings_of(self, layer: str) -> list[Finding]:
        """What is said about a layer."""
        return [finding for finding in self.findings if layer in finding.layers]

    @property
    def summary(self) -> str:
        """One sentence."""
        fast = sum(layer.precision in ("int8", "binary") for layer in self.layers)
        facts = f"{fast} of {len(self.layers)} layers in integer kernels ({self.integer_share:.0%} of the multiplications)"
        verdict = "Nothing is wrong" if self.healthy else f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)}"
        return f"{verdict}: {facts}, {self.latency_ms:.3g} ms a request."

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "healthy": self.healthy,
            "summary": self.summary,
            "latency_ms": self.latency_ms,
            "float_precision": self.float_precision,
            "integer_share": self.integer_share,
            "layers": [_layer_dict(layer) for layer in self.layers],
            "conversions": [asdict(conversion) for conversion in self.conversions],
            "other": self.other,
            "overhead": self.overhead,
            "below_resolution": self.below_resolution,
            "findings": [asdict(finding) for finding in self.findings],
        }


def explain(model: ov.Model, target: Target, capabilities: Capabilities | None) -> Explanation:
    """Run a model and say what ran, where the time goes and why it is not less.

    Args:
        model: as it was given, with static shapes (see `load.load_model`).
        target: where it runs.
        capabilities: what was found out about the target; rules that need it are left out without it.

    Raises:
        TargetError: the device refuses the model.
    """
    case = _Case(model, target, capabilities, execute(model, target))
    findings = [finding for rule in RULES if (finding := rule(case))]
    findings.sort(key=lambda finding: (finding.severity != "fault", -(finding.share or 0)))
    ran = case.execution
    nodes = sum(ran.profile.share(node) for node in ran.profile.nodes)
    spent = sum(layer.share for layer in ran.layers) + sum(conversion.share for conversion in ran.conversions)
    return Explanation(
        layers=ran.layers,
        conversions=ran.conversions,
        other=max(0.0, nodes - spent),
        overhead=max(0.0, 1 - nodes),
        below_resolution=ran.profile.below_resolution,
        findings=tuple(findings),
        latency_ms=ran.profile.median_ms,
        float_precision=capabilities.float_precision if capabilities else None,
    )


@dataclass(frozen=True)
class _Case:
    """All that a rule may look at."""

    model: ov.Model
    target: Target
    capabilities: Capabilities | None
    execution: Execution

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.execution.layers

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    def share(self, layers: Iterable[Layer]) -> float:
        return sum(layer.share for layer in layers)

    def integer_gain(self, form: Form) -> float:
        """How much faster than default float an INT8 layer is; 1 where that is not known."""
        fact = self.capabilities.best(form, 8, 8) if self.capabilities else None
        return max(1.0, fact.speedup_default) if fact and fact.integer else 1.0

    def loss(self, layers: Iterable[Layer]) -> float:
        """The share of the time that integer kernels would save."""
        return sum(layer.share * (1 - 1 / self.integer_gain(layer.asked.form)) for layer in layers)

    def finding(self, reason: str, layers: Sequence[Layer], words: str, remedy: str, share: float | None = None) -> Finding:
        """A fault, unless the layers take next to no time."""
        severity: Severity = "fault" if self.share(layers) >= NEGLIGIBLE else "note"
        return Finding(reason, tuple(layer.name for layer in layers), words, remedy, severity, share)


# The rules


def _levels_without_kernel(case: _Case) -> Finding | None:
    lost = [one for one in case.layers if one.lost_integer and one.asked.levels not in FULL_LEVELS]
    if not lost:
        return None
    levels = _listed(sorted({one.asked.levels for one in lost if one.asked.levels}))
    words = f"activations of {levels} levels have no integer kernel on this device, so {_count(lost)} ran in {_kinds(lost)}"
    remedy = "Put a 256-level quantizer that holds the same grid behind the one of fewer levels, or use 8 bits."
    return case.finding("levels-without-kernel", lost, words, remedy, case.loss(lost) or None)


def _low_bits_fell_to_float(case: _Case) -> Finding | None:
    lost = [one for one in case.layers if one.lost_integer and one.asked.direct]
    if not lost:
        return None
    stored = _listed(sorted({one.asked.storage for one in lost}))
    words = f"{stored} weights are converted straight to float, so {_count(lost)} ran in {_kinds(lost)} instead of INT8"
    remedy = "Convert the constant to i8 first and to float then, as autocompress writes it, or store the same grid in i8."
    return case.finding("i4-fell-to-float", lost, words, remedy, case.loss(lost) or None)


def _not_integer(case: _Case) -> Finding | None:
    lost = [one for one in case.layers if one.lost_integer and one.asked.levels in FULL_LEVELS and not one.asked.direct]
    if not lost:
        return None
    words = f"{_count(lost)} with quantized weights and input ran in {_kinds(lost)}: the device found no integer kernel"
    return case.finding("not-integer", lost, words, _remedy_for_weights(lost[0].asked), case.loss(lost) or None)


def _remedy_for_weights(asked: RequestedLayer) -> str:
    """What to try first, from how the weights are written."""
    if asked.storage[0] == "u":
        return "Store the weights signed (i8), with zero as their zero point."
    if asked.storage[0] == "f" and asked.weights != LARGEST_INTEGER_BITS:
        return "Store the codes in an i8 constant (then Convert and Multiply) instead of a weight quantizer of so few levels."
    return "Check that scales are positive and that nothing stands between the quantizer and the layer."


def _weights_only(case: _Case) -> Finding | None:
    found = [one for one in case.layers if one.asked.weights != FLOAT and one.asked.levels is None and one.precision == "float"]
    if not found:
        return None
    words = (
        f"{_count(found)} with integer weights and float activations ran in {_kinds(found)}: the file is smaller, not the time"
    )
    remedy = "Quantize the layers' inputs too."
    return Finding("weights-only", tuple(one.name for one in found), words, remedy, "note", case.loss(found) or None)


def _float_island(case: _Case) -> Finding | None:
    names = {name for island in case.execution.islands for name in island}
    found = [one for one in case.layers if one.name in names]
    if not found:
        return None
    conversions, own, loss = sum(one.conversions for one in found), case.share(found), case.loss(found)
    dear = conversions >= ISLAND_OF_ALL or (conversions >= max(NEGLIGIBLE, ISLAND_OF_OWN * own))
    severity: Severity = "fault" if dear or loss >= ISLAND_LOSS else "note"
    words = (
        f"{_count(found)} in {_kinds(found)} between integer layers: {own:.1%} of the time, "
        f"and {conversions:.1%} for the conversions around {'it' if len(found) == 1 else 'them'}"
    )
    remedy = "Quantize it as well; if accuracy forbids it, leave whole blocks in float rather than single layers."
    return Finding("float-island", tuple(one.name for one in found), words, remedy, severity, conversions + loss)


def _channels_over_a_step(case: _Case) -> Finding | None:
    dear = _dear_channels(case)
    if not dear:
        return None
    layers = [case.by_name[width.layer] for width in dear]
    costs = ", ".join(f"{w.channels} cost {w.ratio:.2f}× what {w.floor} do" for w in _distinct(dear))
    words = f"channels lie just over a step of this device in {_count(layers)}: {costs}"
    remedy = f"Use {_listed(sorted({w.floor for w in dear}))} channels, or fill the step up to the next multiple for little more."
    waste = sum(case.by_name[w.layer].share * (1 - w.channels / w.floor / w.ratio) for w in dear)
    clear = waste >= NEGLIGIBLE and any(w.just_over for w in dear)
    return Finding("channels-over-a-step", tuple(w.layer for w in dear), words, remedy, "fault" if clear else "note", waste)


def _zeros_do_not_pay(case: _Case) -> Finding | None:
    found = [one for one in case.layers if _has_many_zeros(one.asked) and _zeros_pay(case, one) is False]
    if not found:
        return None
    zeros = sum(one.asked.zeros * one.asked.size for one in found) / sum(one.asked.size for one in found)
    words = f"{zeros:.0%} of the weights of {_count(found)} are zero, and zeros save no time on this device"
    remedy = "Remove whole channels instead; zeros only make the compressed file smaller."
    return case.finding("zeros-do-not-pay", found, words, remedy)


def _baseline_already_low(case: _Case) -> Finding | None:
    capabilities = case.capabilities
    if not capabilities or case.target.precision or capabilities.float_precision not in ("bf16", "f16"):
        return None
    floats = [one for one in case.layers if one.asked.weights == FLOAT and one.precision in ("float", "fused")]
    macs = sum(one.asked.macs for one in case.layers)
    if not floats or sum(one.asked.macs for one in floats) < MOSTLY * macs:
        return None
    kind, gain = capabilities.float_precision, capabilities.float_gain()
    halved = any(one.asked.storage in ("f16", "bf16") for one in floats)
    stored = "weights stored in 16 bits save no time, for " if halved else ""
    words = f"{stored}float layers already run in {kind} here, {gain:.2g}× as fast as FP32, without being asked"
    remedy = "Compare with this, not with FP32; for less time quantize to INT8 or remove channels."
    return Finding("baseline-already-bf16", tuple(one.name for one in floats), words, remedy, "note")


def _overhead_rules(case: _Case) -> Finding | None:
    if 1 - sum(one.share for one in case.layers) <= OVERHEAD:
        return None
    compiled = compile_model(case.model, case.target)
    idle = measure([compile_model(_idle(case), case.target)], compiled, 1.0)[0].ratio
    if idle <= OVERHEAD:
        return None
    words = f"a request that computes nothing takes {idle:.0%} of this model's time: the call costs more than the layers"
    remedy = "Put more work in a request (a larger batch, or several steps in one model); compression cannot help."
    return Finding("overhead-rules", (), words, remedy, "fault", idle)


RULES: tuple[Callable[[_Case], Finding | None], ...] = (
    _levels_without_kernel,
    _low_bits_fell_to_float,
    _not_integer,
    _weights_only,
    _float_island,
    _channels_over_a_step,
    _zeros_do_not_pay,
    _baseline_already_low,
    _overhead_rules,
)


# What the rules measure and look up


@dataclass(frozen=True)
class _Width:
    """A layer whose channels were timed against fewer, and cost more than their share."""

    layer: str
    channels: int
    floor: int
    step: int
    ratio: float

    @property
    def just_over(self) -> bool:
        """Less than half a step is used."""
        return 2 * (self.channels - self.floor) < self.step


def _dear_channels(case: _Case) -> list[_Width]:
    """The layers over a step, the most expensive first; each shape of a layer is timed once, and only a few of them."""
    timed: dict[tuple[Signature, Signature], tuple[float, float]] = {}
    found: list[_Width] = []
    for layer in sorted(case.layers, key=lambda one: -one.share):
        step = _step(case, layer)
        for channels, whole, fewer in _narrower(case, layer, step):
            floor = channels - channels % step
            if (whole, fewer) not in timed and len(timed) < STEP_CANDIDATES:
                timed[whole, fewer] = _time_ratio(case.target, whole, fewer)
            ratio, low = timed.get((whole, fewer), (0.0, 0.0))
            if ratio > channels / floor * STEP_MARGIN and low > channels / floor:
                found.append(_Width(layer.name, channels, floor, step, ratio))
                break
    return found


def _step(case: _Case, layer: Layer) -> int:
    if case.capabilities is None or layer.share < STEP_SHARE or layer.precision not in ("int8", "float"):
        return 1
    precision = "int8" if layer.precision == "int8" else case.capabilities.float_precision
    return case.capabilities.channel_step(layer.asked.form, precision)


def _narrower(case: _Case, layer: Layer, step: int) -> list[tuple[int, Signature, Signature]]:
    """The channel counts of a layer that lie just over a step, with the layer as it is and with the count rounded down."""
    asked = layer.asked
    over = {count: count % step for count in (asked.outputs, asked.inputs)}
    dear = {count for count, rest in over.items() if count > step and 1 <= rest <= step // 2}
    if not dear or asked.form == "grouped":
        return []
    integer = layer.precision == "int8"
    whole = signature_of(node_of(case.model, layer.name)).at(asked.inputs, asked.outputs, integer)
    found = []
    if asked.outputs in dear and not asked.is_last:
        fewer = asked.outputs - over[asked.outputs]
        found.append((asked.outputs, whole, whole.at(fewer if asked.form == "depthwise" else asked.inputs, fewer, integer)))
    if asked.inputs in dear and asked.inputs > IMAGE_CHANNELS and asked.form != "depthwise":
        found.append((asked.inputs, whole, whole.at(asked.inputs - over[asked.inputs], asked.outputs, integer)))
    return found


def _time_ratio(target: Target, whole: Signature, fewer: Signature) -> tuple[float, float]:
    """How many times longer a layer takes than with fewer channels, and the lower end of the interval.

    What the graphs cost without the layer is taken out; it is small, so it need not be known well.
    """
    copies = whole.copies
    reference = compile_model(layer_graph(fewer, copies), target)
    (more,) = measure([compile_model(layer_graph(whole, copies), target)], reference, 1.0, STEP_HALF_WIDTH)
    (empty,) = measure([compile_model(layer_graph(fewer, 0), target)], reference, 1.0, 5 * STEP_HALF_WIDTH)
    rest = min(empty.ratio, 0.9)
    return (more.ratio - rest) / (1 - rest), (more.ratio_low - rest) / (1 - rest)


def _has_many_zeros(asked: RequestedLayer) -> bool:
    """More zeros than a grid of its bits has by itself: about half as many as there are weights one step from zero."""
    coarse = asked.weights != FLOAT and int(asked.weights) <= NATURAL_ZEROS_BITS
    return not coarse and asked.size >= MANY_WEIGHTS and asked.zeros >= MANY_ZEROS and asked.zeros - asked.ones >= MANY_ZEROS / 2


def _zeros_pay(case: _Case, layer: Layer) -> bool | None:
    """What the probe found for the layer's form, or for any form where that was not probed; None without a finding."""
    if case.capabilities is None or layer.precision not in ("int8", "float"):
        return None
    precision = "int8" if layer.precision == "int8" else case.capabilities.float_precision
    facts = [f for f in case.capabilities.sparsity if f.precision == precision and f.pattern == "unstructured"]
    facts = [fact for fact in facts if fact.form == layer.asked.form] or facts
    return min(facts, key=lambda fact: abs(fact.level - layer.asked.zeros)).pays if facts else None


def _idle(case: _Case) -> ov.Model:
    """A graph that takes the model's inputs and computes nothing of them."""
    shapes = request_shapes(case.model, case.target)
    parameters = [ops.parameter(shape, port.element_type) for shape, port in zip(shapes, case.model.inputs, strict=True)]
    first, step, flat = (ops.constant(np.array([value], np.int64)) for value in (0, 1, -1))
    outputs = [ops.slice(ops.reshape(parameter, flat, False), first, step, step) for parameter in parameters]
    return ov.Model(outputs, parameters, "idle")


def _layer_dict(layer: Layer) -> dict[str, Any]:
    kernel = layer.kernel.primitive if layer.kernel else None
    facts = {"precision": layer.precision, "ran": layer.ran, "kernel": kernel, "share": layer.share}
    return {"name": layer.name, "asked": asdict(layer.asked), **facts, "conversions": layer.conversions}


def _distinct(widths: Sequence[_Width]) -> list[_Width]:
    """The dearest of each pair of channel counts."""
    return list({(width.channels, width.floor): width for width in sorted(widths, key=lambda width: width.ratio)}.values())


def _count(layers: Sequence[Layer]) -> str:
    return f"layer {layers[0].name}" if len(layers) == 1 else f"{len(layers)} layers"


def _kinds(layers: Sequence[Layer]) -> str:
    return _listed(sorted({layer.ran for layer in layers}))


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
