"""What really ran: read from the graph that the device executes, not from the one it was given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import openvino as ov

from autocompress.device import Target
from autocompress.policy import FLOAT
from autocompress.target.load import request_shapes
from autocompress.target.meter import random_input
from autocompress.target.requested import RequestedLayer, requested_layers
from autocompress.target.runtime import compile_model, is_cpu

Precision = Literal["int8", "binary", "float", "fused", "absent"]

HEAVY_TYPES = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "Gemm", "BinaryConvolution")
FUSED_TYPE = "Subgraph"
"""Consecutive small linear layers may be fused into one node, which keeps their names."""
INTEGER_TYPES = ("i8", "u8")
BINARY_TYPES = ("u1", "bin")
SCALED_SUFFIX = "/DequantizationMultiply"
"""OpenVINO names a matrix product after the scale that it pulls through it."""
CONVERSION_TYPES = ("Reorder", "Convert", "FakeQuantize", "Quantize", "Transpose")
"""What a device inserts between layers of different layouts or precisions; a Transpose only where the model has none."""
CONSTANT_TYPES = ("Const", "Constant")

WARM_UP_CALLS = 3
SECONDS, MAX_SECONDS = 1.0, 5.0
MIN_CALLS, MAX_CALLS = 200, 5000
"""Of a profile: a second, or 200 requests if they fit into five seconds."""
FEWEST_CALLS = 5


@dataclass(frozen=True)
class Kernel:
    """The kernel that runs one convolution or linear layer.

    Attributes:
        layer: the layer's name in the IR.
        primitive: the device's name for it, for example "brgconv_avx512_I8".
        precision: element type that the device reports for it, for example "u8" or "f32".
    """

    layer: str
    primitive: str
    precision: str

    @property
    def is_integer(self) -> bool:
        """True for an 8-bit integer kernel."""
        return self.primitive.lower().endswith(INTEGER_TYPES)

    @property
    def is_low(self) -> bool:
        """True for an 8-bit integer or a 1-bit kernel."""
        return self.is_integer or self.is_binary

    @property
    def is_binary(self) -> bool:
        """True for a 1-bit kernel."""
        return self.primitive.lower().endswith(BINARY_TYPES)


@dataclass(frozen=True)
class ExecutedNode:
    """One node of the graph that the device executes; constants and what is computed from them alone are left out.

    Attributes:
        name: the device's name for it.
        kind: its type, for example "Convolution", "Reorder" or "Subgraph".
        primitive, precision: of its kernel.
        output: element type that it writes.
        origins: names of the given operations that became this node; none for one that the device inserted.
        sources: names of the executed nodes that it reads.
        microseconds: mean time of one request; 0 where the node does not run or takes less than the clock can tell.
        runs: it is executed at all.
    """

    name: str
    kind: str
    primitive: str
    precision: str
    output: str
    origins: tuple[str, ...]
    sources: tuple[str, ...]
    microseconds: float
    runs: bool


@dataclass(frozen=True)
class Profile:
    """Where the time of a request goes.

    Attributes:
        nodes: in the order of execution.
        mean_us: mean time of a request, at least the sum of its nodes. Their times are means too, so they are shares of this.
        median_ms: median time of a request, which says more on a busy machine.
        calls: requests that were timed.
    """

    nodes: tuple[ExecutedNode, ...]
    mean_us: float
    median_ms: float
    calls: int

    @cached_property
    def by_name(self) -> Mapping[str, ExecutedNode]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """Name of a node → names of the nodes that read it."""
        found: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for source in node.sources:
                found[source].append(node.name)
        return {name: tuple(names) for name, names in found.items()}

    @property
    def below_resolution(self) -> float:
        """The share of a request that the clock may have missed: up to one microsecond for each node that runs."""
        return min(1.0, sum(node.runs for node in self.nodes) / self.mean_us)

    def share(self, node: ExecutedNode) -> float:
        """The node's share of a request."""
        return node.microseconds / self.mean_us


@dataclass(frozen=True)
class Layer:
    """A layer: asked and executed.

    Attributes:
        asked: as the graph writes it.
        kernel: what ran; None where the device runs nothing that it could be.
        fused: it was fused with other layers into one node, whose inner precision the device does not tell.
        share: of a request's time, without conversions.
        conversions: share of the conversions and reorders that serve it.
    """

    asked: RequestedLayer
    kernel: Kernel | None
    fused: bool
    share: float
    conversions: float = 0.0

    @property
    def name(self) -> str:
        """Its name in the IR."""
        return self.asked.name

    @property
    def precision(self) -> Precision:
        """In which kind of kernel it ran."""
        if self.kernel is None:
            return "absent"
        if self.fused:
            return "fused"
        return "binary" if self.kernel.is_binary else "int8" if self.kernel.is_integer else "float"

    @property
    def ran(self) -> str:
        """The same in short, with the type of a float kernel."""
        return self.kernel.primitive.rpartition("_")[2].lower() if self.kernel and self.precision == "float" else self.precision

    @property
    def lost_integer(self) -> bool:
        """It was asked to be integer, and ran in float."""
        return self.asked.is_integer and self.precision == "float"


@dataclass(frozen=True)
class Conversion:
    """A node that only changes layout or precision.

    Attributes:
        name, kind: the device's own.
        change: element types, for example "bf16 → u8".
        share: of a request's time.
        layers: the layers that it serves.
    """

    name: str
    kind: str
    change: str
    share: float
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Execution:
    """One model's layers and conversions, timed.

    Attributes:
        profile: all nodes.
        layers: in the graph's order.
        conversions: in the order of execution.
        islands: names of float layers, connected with each other, between integer layers.
    """

    profile: Profile
    layers: tuple[Layer, ...]
    conversions: tuple[Conversion, ...]
    islands: tuple[tuple[str, ...], ...]


def kernels(compiled: ov.CompiledModel, layers: Iterable[str]) -> dict[str, Kernel]:
    """The kernel of each of the layers that the device runs as a convolution or matrix product."""
    wanted = set(layers)
    found: dict[str, Kernel] = {}
    for node in executed_nodes(compiled):
        if node.kind in (*HEAVY_TYPES, FUSED_TYPE):
            found |= {name: Kernel(name, node.primitive, node.precision) for name in layer_names(node) if name in wanted}
    return found


def layer_names(node: ExecutedNode) -> tuple[str, ...]:
    """The names that layers which became this node may have in the IR."""
    names = (node.name, *node.origins)
    return tuple(dict.fromkeys(name.removesuffix(SCALED_SUFFIX) if node.kind in HEAVY_TYPES else name for name in names))


def executed_nodes(compiled: ov.CompiledModel) -> list[ExecutedNode]:
    """The graph that the device executes, with the mean times of the requests so far (if compiled with PERF_COUNT)."""
    nodes: list[ExecutedNode] = []
    computed: set[str] = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        name, kind = str(node.get_friendly_name()), _text(info, "layerType")
        sources = tuple(str(value.get_node().get_friendly_name()) for value in node.input_values())
        if kind in CONSTANT_TYPES or (sources and not computed & set(sources)):
            continue
        computed.add(name)
        origins = tuple(filter(None, _text(info, "originalLayersNames").split(",")))
        told = _text(info, "execTimeMcs")
        output = _text(info, "outputPrecisions").split(",")[0]
        kernel = (_text(info, "primitiveType"), _text(info, "runtimePrecision"))
        time_us = float(told) if told.isdigit() else 0.0
        read = tuple(source for source in sources if source in computed)
        nodes.append(ExecutedNode(name, kind, *kernel, output, origins, read, time_us, told.isdigit()))
    return nodes


def profile(compiled: ov.CompiledModel, clock: Callable[[], float], shapes: Sequence[Sequence[int]] | None = None) -> Profile:
    """Time every node over so many requests that its mean is finer than the clock of 1 µs that the device times it with.

    Args:
        compiled: a model compiled with PERF_COUNT.
        clock: seconds, for whole requests: the thread's CPU time where the calling thread does all the work, else wall time.
        shapes: of the inputs; needed where they are dynamic.
    """
    request = compiled.create_infer_request()
    generator = np.random.default_rng(0)
    ports = zip(compiled.inputs, shapes or [tuple(port.shape) for port in compiled.inputs], strict=True)
    inputs = {index: random_input(port, generator, shape) for index, (port, shape) in enumerate(ports)}
    for _ in range(WARM_UP_CALLS):
        request.infer(inputs)
    warm_up = {node.name: node.microseconds for node in executed_nodes(compiled)}
    seconds = _timed_calls(request, inputs, clock)
    calls = len(seconds)
    nodes = tuple(_without_warm_up(node, warm_up[node.name], calls) for node in executed_nodes(compiled))
    mean_us = max(float(np.mean(seconds) * 1e6), sum(node.microseconds for node in nodes))
    return Profile(nodes, mean_us, float(np.median(seconds) * 1e3), calls)


def execute(model: ov.Model, target: Target) -> Execution:
    """Run a model and time its layers and conversions.

    Args:
        model: with static shapes.
        target: where it runs.

    Raises:
        TargetError: the device refuses the model.
    """
    alone = target.threads == 1 and is_cpu(target.device) and not target.is_for_throughput
    clock = time.thread_time if alone else time.perf_counter
    ran = profile(compile_model(model, target, PERF_COUNT=True), clock, request_shapes(model, target))
    asked = requested_layers(model)
    places = _places(asked, ran)
    layers = [_layer(one, places.get(one.name), asked, places, ran) for one in asked]
    around = _Surroundings(ran, places)
    islands = _islands(layers, around)
    conversions = _conversions(model, ran, around, {name for island in islands for name in island})
    charged = {layer.name: sum(c.share / len(c.layers) for c in conversions if layer.name in c.layers) for layer in layers}
    whole = tuple(replace(one, conversions=charged[one.name]) for one in layers)
    return Execution(ran, whole, tuple(conversions), islands)


def _places(asked: Sequence[RequestedLayer], ran: Profile) -> dict[str, ExecutedNode]:
    """Layer name → the node that runs it."""
    names = {one.name for one in asked}
    heavy = [node for node in ran.nodes if node.kind in (*HEAVY_TYPES, FUSED_TYPE)]
    places = {name: node for node in heavy for name in layer_names(node) if name in names}
    for one in asked:
        if one.name not in places:
            behind = [node for name in one.followers for node in heavy if name in layer_names(node) and node.kind != FUSED_TYPE]
            places |= {one.name: behind[0]} if behind else {}
    # OpenVINO makes binary convolutions of quantized ones under new names, in the order of the graph.
    taken = {node.name for node in places.values()}
    nameless = [node for node in heavy if node.kind == "BinaryConvolution" and node.name not in taken]
    missing = [one for one in asked if one.is_binary and one.name not in places]
    if len(nameless) == len(missing):
        places |= {one.name: node for one, node in zip(missing, nameless, strict=True)}
    return places


def _layer(
    one: RequestedLayer,
    node: ExecutedNode | None,
    asked: Sequence[RequestedLayer],
    places: Mapping[str, ExecutedNode],
    ran: Profile,
) -> Layer:
    """A layer with its part of the node that runs it; several layers in one node share its time by their multiplications."""
    if node is None:
        return Layer(one, None, False, 0.0)
    macs = sum(other.macs for other in asked if places.get(other.name) is node)
    kernel = Kernel(one.name, node.primitive, node.precision)
    return Layer(one, kernel, node.kind == FUSED_TYPE, ran.share(node) * one.macs / max(1, macs))


class _Surroundings:
    """Which layers stand next to a node, seen through all that is not a layer."""

    def __init__(self, ran: Profile, places: Mapping[str, ExecutedNode]) -> None:
        self._ran = ran
        self._layers: dict[str, list[str]] = {}
        for name, node in places.items():
            self._layers.setdefault(node.name, []).append(name)
        self._nodes = {name: node.name for name, node in places.items()}

    def before(self, node: str) -> tuple[str, ...]:
        """The nearest layers from which a node gets its input."""
        return self._nearest(node, lambda name: self._ran.by_name[name].sources)

    def behind(self, node: str) -> tuple[str, ...]:
        """The nearest layers that a node's output reaches."""
        return self._nearest(node, lambda name: self._ran.consumers[name])

    def node(self, layer: str) -> str | None:
        """The node that runs a layer."""
        return self._nodes.get(layer)

    def _nearest(self, node: str, following: Callable[[str], Sequence[str]]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        seen, waiting = set[str](), list(following(node))
        while waiting:
            name = waiting.pop()
            if name in self._layers:
                found |= dict.fromkeys(self._layers[name])
            elif name not in seen:
                waiting += following(name)
            seen.add(name)
        return tuple(found)


def _islands(layers: Sequence[Layer], around: _Surroundings) -> tuple[tuple[str, ...], ...]:
    """Float layers, connected with each other, that get their input from integer layers and give their output to some."""
    by_name = {layer.name: layer for layer in layers}
    left = {one.name for one in layers if one.asked.weights == FLOAT and one.precision == "float"}
    islands = []
    while left:
        island, waiting, shores = set[str](), [min(left)], [set[str](), set[str]()]
        while waiting:
            name = waiting.pop()
            island.add(name)
            left.discard(name)
            for shore, near in zip(shores, (around.before, around.behind), strict=True):
                neighbours = near(around.node(name) or "")
                waiting += [other for other in neighbours if other in left and other not in island]
                shore |= set(neighbours)
        ends = any(by_name[name].asked.is_first or by_name[name].asked.is_last for name in island)
        integer = [any(by_name[name].precision in ("int8", "binary") for name in shore) for shore in shores]
        if not ends and all(integer):
            islands.append(tuple(layer.name for layer in layers if layer.name in island))
    return tuple(islands)


def _conversions(model: ov.Model, ran: Profile, around: _Surroundings, islands: set[str]) -> list[Conversion]:
    """Every conversion with the layers that it serves: a float island beside it, else what reads it, else what it reads."""
    given = {str(node.get_friendly_name()): str(node.get_type_name()) for node in model.get_ops()}
    found = []
    for node in ran.nodes:
        if node.runs and _only_converts(node, given):
            before, behind = around.before(node.name), around.behind(node.name)
            served = tuple(name for name in (*before, *behind) if name in islands) or behind or before
            source = ran.by_name[node.sources[0]].output if node.sources else node.precision
            change = f"{source} → {node.output}" if source != node.output else f"{source}, layout"
            found.append(Conversion(node.name, node.kind, change, ran.share(node), tuple(dict.fromkeys(served))))
    return found


def _only_converts(node: ExecutedNode, given: Mapping[str, str]) -> bool:
    """It was inserted by the device, or quantizes alone because it could not be fused into a layer."""
    kinds = {given[name] for name in node.origins if name in given}
    if node.kind in CONVERSION_TYPES:
        return node.kind != "Transpose" or "Transpose" not in kinds
    return node.kind == FUSED_TYPE and "FakeQuantize" in kinds and kinds <= {"FakeQuantize", "Convert"}


def _timed_calls(request: ov.InferRequest, inputs: Mapping[int, object], clock: Callable[[], float]) -> list[float]:
    """Seconds of each request."""
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < MAX_CALLS:
        before = clock()
        request.infer(inputs)
        seconds.append(clock() - before)
        passed = time.perf_counter() - start
        if (passed > SECONDS and len(seconds) >= MIN_CALLS) or (passed > MAX_SECONDS and len(seconds) >= FEWEST_CALLS):
            break
    return seconds


def _without_warm_up(node: ExecutedNode, warm_up_us: float, calls: int) -> ExecutedNode:
    """The device tells the mean of all requests of a compiled model; the first ones, which are slow, are taken out."""
    total = node.microseconds * (calls + WARM_UP_CALLS) - warm_up_us * WARM_UP_CALLS
    return replace(node, microseconds=max(0.0, total / calls))


def _text(info: ov.RTMap, key: str) -> str:
    if key not in info:
        return ""
    value = info[key]
    return str(getattr(value, "value", value))
