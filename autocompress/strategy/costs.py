"""What points of a space are estimated to cost, many at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.policy import FLOAT, sparsity_of
from autocompress.space import SearchSpace
from autocompress.structure import Structure
from autocompress.target.predict import Batch, Predictor, stored_bits

Array = NDArray[np.float64]
Points = NDArray[np.int64]

SCALE_BYTES = 4
"""Of the step of an output channel."""


class PointCosts:
    """Estimates points of a space without making their policies.

    Args:
        space: whose points are estimated.
        structure: of the model.
        predictor: of latencies; what it learns later changes the estimates.
        reference_ms: latency of the original.
    """

    def __init__(self, space: SearchSpace, structure: Structure, predictor: Predictor, reference_ms: float) -> None:
        self._structure, self._predictor, self._reference_ms = structure, predictor, reference_ms
        self._columns = {decision.name: i for i, decision in enumerate(space.decisions)}
        self._choices = {d.name: d.choices for d in (*space.decisions, *space.fixed)}

    def latency_ms(self, points: Points) -> Array:
        """Estimated latencies in milliseconds, (n,)."""
        inputs, outputs = self._lost(points)
        integer = {layer.name: self._chosen(points, f"bits:{layer.name}", _is_integer, False) for layer in self._structure.layers}
        return self._reference_ms * self._predictor.ratios(Batch(len(points), inputs, outputs, integer))

    def size_bytes(self, points: Points) -> Array:
        """Estimated bytes of the weights as they are stored, (n,)."""
        total = np.zeros(len(points))
        for weights, outputs, bits, _ in self._weights(points):
            total += weights * bits / 8 + np.where(bits < 32, SCALE_BYTES * outputs, 0)
        return total

    def compressed_bytes(self, points: Points) -> Array:
        """The same where zeros are nearly free: each weight takes the entropy of being zero, and its bits if it is not."""
        total = np.zeros(len(points))
        for weights, outputs, bits, zeros in self._weights(points):
            kept = 1 - zeros
            entropy = -sum(np.where(p > 0, p * np.log2(np.maximum(p, 1e-12)), 0.0) for p in (zeros, kept))
            total += weights * (entropy + kept * bits) / 8 + np.where(bits < 32, SCALE_BYTES * outputs, 0)
        return total

    def _weights(self, points: Points) -> Any:
        """Of each layer: weights and output channels that are left, bits of a stored weight, share of zeros; all (n,)."""
        lost_inputs, lost_outputs = self._lost(points)
        none = np.zeros(len(points), dtype=np.int64)
        for layer in self._structure.layers:
            inputs, outputs = layer.channels
            left_outputs = outputs - lost_outputs.get(layer.name, none)
            left = left_outputs / outputs
            if layer.groups == 1:
                left = left * (1 - lost_inputs.get(layer.name, none) / inputs)
            bits = self._chosen(points, f"bits:{layer.name}", _stored, 32)
            zeros = self._chosen(points, f"sparsity:{layer.name}", sparsity_of, 0.0)
            yield np.prod(layer.weight_shape) * left, left_outputs, bits, zeros

    def _lost(self, points: Points) -> tuple[Mapping[str, NDArray[np.int64]], Mapping[str, NDArray[np.int64]]]:
        """Input and output channels that each layer loses, (n,) each; see `Structure.lost_channels`."""
        inputs: dict[str, Any] = {}
        outputs: dict[str, Any] = {}
        for group in self._structure.groups:
            removed = self._chosen(points, f"prune:{group.name}", group.removed, 0)
            for name, count in group.readers:
                inputs[name] = inputs.get(name, 0) + count * removed
            for name in group.layers:
                outputs[name] = outputs.get(name, 0) + group.width(name) * removed
        return inputs, outputs

    def _chosen(self, points: Points, decision: str, value: Any, otherwise: Any) -> NDArray[Any]:
        """The value of what each point chooses, (n,)."""
        if decision not in self._choices:
            return np.full(len(points), otherwise)
        values = np.array([value(choice) for choice in self._choices[decision]])
        if decision not in self._columns:
            return np.full(len(points), values[0])
        chosen: NDArray[Any] = values[points[:, self._columns[decision]]]
        return chosen


def _is_integer(choice: tuple[Any, Any]) -> bool:
    return FLOAT not in choice


def _stored(choice: tuple[Any, Any]) -> int:
    return stored_bits(choice[0])
