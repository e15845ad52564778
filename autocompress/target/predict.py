"""What a policy will cost, estimated without building the candidate: latency, size, multiply-accumulates, bit operations.

The latency is linear in what the policy changes: the sums of the layer table (`layer_table.py`) in float and in 8 bits, the
elements that are converted where a float layer meets an 8-bit one, and what is the same for all policies. The slopes begin at the
table's own scale and are fitted again with every whole model that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from autocompress.policy import FLOAT, UNCHANGED, Bits, LayerPolicy, Policy
from autocompress.structure import Structure
from autocompress.target.layer_table import LayerTable
from autocompress.target.precision import heavy_nodes


@dataclass(frozen=True)
class Prior:
    """Where a slope lies before anything was measured."""

    mean: float
    spread: float


COMMON_FEATURES = {
    "float layers": Prior(0.9, 0.2),
    "8-bit layers": Prior(0.9, 0.2),
    "constant": Prior(0.1, 0.1),
    "to 8 bits": Prior(0.8, 0.3),
    "to float": Prior(0.1, 0.3),
    "sum to float": Prior(2.0, 1.0),
    "float into sum": Prior(0.5, 0.7),
    "8 bits into float sum": Prior(0.5, 0.7),
}
"""Only where fitting begins: the table's sum is most of the latency, and what moves between layers costs a little.

Conversions are in units of the one that the table holds. A sum is computed by the layer that is finished last. An 8-bit layer
that adds a shortcut for a float reader works in FP32 there: the shortcut is converted to it, and the result back. That was seen
to cost more than every other conversion.
"""
OWN = 0.1
"""How far one kind of layer may lie from all layers of its precision."""
NOISE = 0.05
"""Of a measured ratio, relative: how closely observations are to be met."""
NOISE_OF_ORIGINAL = 0.25
"""The original's ratio is known exactly, but its graph, without any quantizer, is of another kind than the candidates'."""


@dataclass(frozen=True)
class Edge:
    """A tensor that layers read.

    Attributes:
        producer: the last layer that it comes from, through element-wise operations and pooling; None is a model's input.
        joined: the last layers of what was added to (or multiplied, or put beside) the producer's output.
        readers: the layers that read it.
        elements: of a request in the original.
    """

    producer: str | None
    joined: tuple[str | None, ...]
    readers: tuple[str, ...]
    elements: int


def dataflow(graph: ov.Model) -> tuple[Edge, ...]:
    """Between which layers of the original tensors go, in the order in which they are read."""
    layer_of = {node.get_friendly_name(): name for name, nodes in heavy_nodes(graph).items() for node in nodes}
    place: dict[str | None, int] = {None: -1}
    sources: dict[str, tuple[str | None, tuple[str | None, ...]]] = {}
    readers: dict[tuple[str, int], list[str]] = {}
    elements = {}
    for node in graph.get_ordered_ops():
        name = node.get_friendly_name()
        values = [value for value in node.input_values() if not _is_constant(value.get_node(), sources)]
        if name in layer_of:
            tensor = (values[0].get_node().get_friendly_name(), values[0].get_index())
            readers.setdefault(tensor, []).append(layer_of[name])
            elements[tensor] = int(np.prod(list(values[0].get_shape())))
            place.setdefault(layer_of[name], len(place))
            sources[name] = (layer_of[name], ())
        elif len(values) == 1:
            sources[name] = sources[values[0].get_node().get_friendly_name()]
        elif values or node.get_type_name() == "Parameter":
            *joined, last = sorted(
                (sources[value.get_node().get_friendly_name()][0] for value in values), key=place.__getitem__
            ) or [None]
            sources[name] = (last, tuple(joined))
    return tuple(Edge(*sources[tensor[0]], tuple(names), elements[tensor]) for tensor, names in readers.items())


def _is_constant(node: ov.Node, sources: Mapping[str, object]) -> bool:
    """True where nothing that the node is made of comes from the model's inputs."""
    return node.get_friendly_name() not in sources


FLOAT_BITS = 32
"""Of a float number, in bit operations and in stored weights."""
SMALLEST_RATIO = 1e-3


@dataclass(frozen=True)
class Estimate:
    """What a policy is estimated to cost.

    Attributes:
        latency_ratio: latency relative to the original at the target's default precision.
        size_bytes: of the weights as they are stored, with a step for each output channel of a quantized layer.
        macs: multiply-accumulates for one sample.
        bops: bit operations for one sample: multiply-accumulates × weight bits × activation bits, 32 for those in float.
    """

    latency_ratio: float
    size_bytes: int
    macs: int
    bops: int


@dataclass(frozen=True)
class Batch:
    """What of many policies their latency depends on.

    Attributes:
        count: how many policies.
        inputs: layer name → input channels that each policy takes from it, (n,). Layers that lose none may be missing.
        outputs: the same of output channels.
        integer: layer name → whether it is in 8 bits, (n,).
    """

    count: int
    inputs: Mapping[str, NDArray[np.int64]]
    outputs: Mapping[str, NDArray[np.int64]]
    integer: Mapping[str, NDArray[np.bool_]]

    def lost_inputs(self, layer: str) -> NDArray[np.int64]:
        """Input channels that a layer loses, (n,)."""
        return self.inputs.get(layer, np.zeros(self.count, dtype=np.int64))

    def lost_outputs(self, layer: str) -> NDArray[np.int64]:
        """Output channels that a layer loses, (n,)."""
        return self.outputs.get(layer, np.zeros(self.count, dtype=np.int64))

    def is_integer(self, layer: str | None) -> NDArray[np.bool_]:
        """Whether a layer is in 8 bits, (n,); a model's input never is."""
        return np.zeros(self.count, dtype=bool) if layer is None else self.integer[layer]


class Predictor:
    """Estimates policies of one model on one target, and learns from every latency that is measured.

    The latency ratio is linear in the features. Its slopes are the most probable ones where they deviate normally and
    independently from the table's own scale (Bayesian linear regression; Bishop 2006, section 3.3), so any number of observations
    will do. The original's own ratio, 1 by definition, is the first.
    """

    def __init__(self, table: LayerTable, structure: Structure, graph: ov.Model) -> None:
        """Prepare for a model.

        Args:
            table: of its layers.
            structure: of the same model.
            graph: the converted original from which the table was built.
        """
        self._table = table
        self._structure = structure
        self._edges = dataflow(graph)
        self._kinds = {kind: i for i, kind in enumerate(dict.fromkeys(s for found in table.nodes.values() for s in found))}
        self._memory: dict[tuple[str, int, int, bool], list[tuple[int, float]]] = {}
        self._unit = sum(time for name in table.nodes for _, time in self._times(name, 0, 0, False))
        self._rows = [self.features(Policy())]
        self._ratios = [1.0]
        self._noise = [NOISE_OF_ORIGINAL]
        self._slopes: NDArray[np.float64] | None = None

    def features(self, policy: Policy) -> NDArray[np.float64]:
        """What the latency is linear in: the COMMON_FEATURES, then the table's time of each kind of layer in float and in 8 bits.

        Times, those of converted elements as well, are relative to the table's sum for the original.
        """
        layers = policy.layers
        inputs, outputs = (
            {name: np.array([count]) for name, count in lost.items()} for lost in self._structure.lost_channels(policy.pruning)
        )
        integer = {name: np.array([name in layers and layers[name].is_integer]) for name in self._table.nodes}
        found: NDArray[np.float64] = self._features(Batch(1, inputs, outputs, integer))[0]
        return found

    def ratios(self, batch: Batch) -> NDArray[np.float64]:
        """Estimated latencies of many policies relative to the original, (n,)."""
        if self._slopes is None:
            self._slopes = self._fitted()
        found: NDArray[np.float64] = np.maximum(self._features(batch) @ self._slopes, SMALLEST_RATIO)
        return found

    def ratio(self, policy: Policy) -> float:
        """Estimated latency relative to the original."""
        if self._slopes is None:
            self._slopes = self._fitted()
        return max(float(self.features(policy) @ self._slopes), SMALLEST_RATIO)

    def observe(self, policy: Policy, ratio: float) -> None:
        """Learn from a measured latency, relative to the original's."""
        self._rows.append(self.features(policy))
        self._ratios.append(ratio)
        self._noise.append(NOISE)
        self._slopes = None

    def estimate(self, policy: Policy) -> Estimate:
        """Everything that is estimated of a policy."""
        inputs, outputs = self._structure.lost_channels(policy.pruning)
        layers, macs_of = policy.layers, self._structure.macs(policy.pruning)
        size = macs = bops = 0
        for layer in self._structure.layers:
            if layer.name not in self._table.nodes:
                continue
            original = self._table.nodes[layer.name][0]
            pruned = original.at(
                original.inputs - inputs.get(layer.name, 0), original.outputs - outputs.get(layer.name, 0), False
            )
            weights, activations, stored = _bits(layers.get(layer.name, UNCHANGED))
            own = macs_of[layer.name]
            macs += own
            bops += own * weights * activations
            size += (pruned.weights * stored + 7) // 8 + (pruned.outputs * FLOAT_BITS // 8 if stored != FLOAT_BITS else 0)
        return Estimate(self.ratio(policy), size, macs, bops)

    def _features(self, batch: Batch) -> NDArray[np.float64]:
        own = np.zeros((batch.count, len(self._kinds), 2))
        for name in self._table.nodes:
            keys = (batch.lost_inputs(name), batch.lost_outputs(name), batch.integer[name])
            for row, (inputs, outputs, is_integer) in enumerate(zip(*(key.tolist() for key in keys), strict=True)):
                for kind, seconds in self._times(name, inputs, outputs, is_integer):
                    own[row, kind, int(is_integer)] += seconds / self._unit
        return np.hstack(
            [own.sum(1), np.ones((batch.count, 1)), self._conversions(batch), own.reshape(batch.count, 2 * len(self._kinds))]
        )

    def _times(self, name: str, inputs: int, outputs: int, integer: bool) -> list[tuple[int, float]]:
        """(kind, time) of a layer's nodes when it has lost channels."""
        key = name, inputs, outputs, integer
        if key not in self._memory:
            self._memory[key] = [
                (self._kinds[node], self._table.time(node, node.inputs - inputs, node.outputs - outputs, integer))
                for node in self._table.nodes[name]
            ]
        return self._memory[key]

    def _conversions(self, batch: Batch) -> NDArray[np.float64]:
        """The table's time for the elements of each kind of conversion in COMMON_FEATURES, (n, kinds)."""
        found = np.zeros((5, batch.count))
        for edge in self._edges:
            whole = self._table.nodes[edge.readers[0]][0].inputs
            elements = edge.elements * (1 - batch.lost_inputs(edge.readers[0]) / whole)
            readers = np.stack([batch.integer[name] for name in edge.readers])
            is_integer = batch.is_integer(edge.producer)
            shortcuts = np.sum([batch.is_integer(name) for name in edge.joined], axis=0) + np.zeros(batch.count)
            to_float = is_integer & ~readers.all(0)
            found[0] += elements * (~is_integer & readers.any(0))
            found[1] += elements * to_float
            found[2] += elements * to_float * bool(edge.joined)
            found[3] += elements * is_integer * (len(edge.joined) - shortcuts)
            found[4] += elements * ~is_integer * shortcuts
        return found.T * (self._table.conversion / self._unit)

    def _fitted(self) -> NDArray[np.float64]:
        """The most probable slopes under relative noise; errors count relative to the measured ratio."""
        own = 2 * len(self._kinds)
        mean = np.concatenate([[prior.mean for prior in COMMON_FEATURES.values()], np.zeros(own)])
        spread = np.concatenate([[prior.spread for prior in COMMON_FEATURES.values()], np.full(own, OWN)])
        weights = 1 / np.array(self._noise)
        rows = np.array(self._rows) * (weights / np.array(self._ratios))[:, None]
        missed = weights - rows @ mean
        scaled = rows * spread
        precision = scaled.T @ scaled + np.eye(len(mean))
        slopes: NDArray[np.float64] = mean + spread * np.linalg.solve(precision, scaled.T @ missed)
        return slopes


def stored_bits(bits: Bits) -> int:
    """Of a stored weight that has so many bits."""
    return next(stored for stored in (2, 4, 8, FLOAT_BITS) if (FLOAT_BITS if bits == FLOAT else int(bits)) <= stored)


def _bits(layer: LayerPolicy) -> tuple[int, int, int]:
    """Of weights, of activations, and of a stored weight."""
    weights, activations = (FLOAT_BITS if bits == FLOAT else int(bits) for bits in (layer.weights, layer.activations))
    return weights, activations, stored_bits(layer.weights)
