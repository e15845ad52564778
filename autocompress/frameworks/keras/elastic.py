"""The elastic model: the task's own model with one set of weights, under a policy that may change with every step.

Nothing is cut out of it. The kernels that read a channel are silenced, before they are put on a grid and before the range of
their input is taken, and that is exactly what removing the channel does. Channels are ranked once, so what a policy keeps is
part of what every larger one keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.base import Candidate
from autocompress.frameworks.channels import Role
from autocompress.frameworks.keras.elastic_layers import ElasticInput, ElasticWeight, Lost
from autocompress.frameworks.keras.graph import HEAVY, copied, layers_by_name, rebuild
from autocompress.frameworks.keras.kernels import kernel_axes, kernel_of
from autocompress.frameworks.keras.layer_rules import INPUTS
from autocompress.frameworks.keras.layers import DEPTHWISE, einsum_places, layers_of
from autocompress.frameworks.keras.prune import remove_channels
from autocompress.frameworks.keras.pruning import Pruning
from autocompress.frameworks.keras.rules import channel_axis
from autocompress.frameworks.keras.simulate import Simulated, simulate
from autocompress.frameworks.keras.weights import SimulatedWeight
from autocompress.policy import Policy

Removed = Mapping[str, Sequence[int]]
Part = tuple[keras.layers.Layer, ElasticWeight, ElasticInput]
"""A simulated layer's own layer, its kernel and its input."""


class Elastic:
    """A task's model whose weights serve every policy.

    Attributes:
        model: the elastic copy.
    """

    def __init__(self, graph: keras.Model, example: Any, pruning: Pruning, criterion: str) -> None:
        self.example, self.pruning, self.criterion = example, pruning, criterion
        self.model = rebuild(graph, lambda name, layer: _elastic(copied(layer)) if isinstance(layer, HEAVY) else None)
        simulated = {name: layer for name, layer in layers_by_name(self.model).items() if isinstance(layer, Simulated)}
        self._parts = {name: cast(Part, (one.layer, one.weight, one.input_quantizer)) for name, one in simulated.items()}

    def obey(self, policy: Policy, removed: Removed | None = None) -> None:
        """Let a policy be in force; ranges of inputs are forgotten.

        Args:
            policy: what is done.
            removed: the channels that go; by default the least important.
        """
        removed = self.removed(policy) if removed is None else removed
        reads, writes = self._lost(removed, "reads"), self._lost(removed, "writes")
        for name, (layer, weight, quantizer) in self._parts.items():
            kernel, done = kernel_of(layer), policy.layer(name)
            tensor = f"{name}/{kernel.name}"
            weight.obey(kernel, done, reads.get(tensor, {}), writes.get(tensor, {}))
            quantizer.obey(done, _lost_inputs(layer, reads.get(tensor, {}), reads.get(name + INPUTS, {})))

    def refresh(self) -> None:
        """Look at the variables again, after they were loaded."""
        for _, weight, quantizer in self._parts.values():
            weight.refresh()
            quantizer.refresh()

    def removed(self, policy: Policy) -> dict[str, list[int]]:
        """Group → the channels that a policy removes."""
        return self.pruning.least_important(policy.pruning, self.criterion) if policy.pruning else {}

    def candidate(self, policy: Policy, removed: Removed | None = None) -> Candidate:
        """The model under a policy, with the channels cut out and the weights and steps that the elastic model has now."""
        removed = self.removed(policy) if removed is None else removed
        smaller = remove_channels(self._plain_of_now(), self.pruning.groups, removed)
        macs = {layer.name: layer.macs for layer in layers_of(smaller, self.example)}
        model = simulate(smaller, policy, owned=True)
        self._hand_over_steps(model, self._lost(removed, "writes"))
        return Candidate(model, policy, macs, removed)

    def _plain_of_now(self) -> keras.Model:
        """The plain graph with the weights that the elastic model has now."""
        own = layers_by_name(self.model)
        for name, layer in layers_by_name(self._plain).items():
            layer.set_weights(_plain_layer(own[name]).get_weights())
        return self._plain

    @cached_property
    def _plain(self) -> keras.Model:
        return rebuild(self.model, lambda name, layer: copied(_plain_layer(layer)))

    def _hand_over_steps(self, model: keras.Model, writes: Mapping[str, Lost]) -> None:
        """Let the simulation of a candidate go on with the steps that were learned."""
        for name, learner in _learners(model).items():
            layer, weight, _ = self._parts[name]
            gone, bits = writes.get(f"{name}/{kernel_of(layer).name}", {}), cast(int, learner.bits)
            for variable, learned in zip((learner.clip, learner.factor), weight.steps(bits), strict=True):
                for axis, indices in gone.items():
                    learned = np.delete(learned, indices, axis)
                variable.assign(learned)

    def _lost(self, removed: Removed, role: Role) -> dict[str, dict[Any, NDArray[np.int64]]]:
        """Tensor → axis → the indices that are lost; without an axis, the input channels of a grouped convolution."""
        found: dict[str, dict[Any, NDArray[np.int64]]] = {}
        for name, channels in removed.items():
            for member in self.pruning.groups[name].members:
                if member.role == role and len(channels):
                    places = found.setdefault(member.tensor, {})
                    gone = member.indices[list(channels)].reshape(-1)
                    places[member.axis] = np.union1d(places.get(member.axis, gone), gone)
        return found


def _plain_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer that is simulated, or a layer itself."""
    return layer.layer if isinstance(layer, Simulated) else layer


def _elastic(layer: keras.layers.Layer) -> Simulated:
    axes = kernel_axes(layer)
    weight = ElasticWeight(keras.ops.convert_to_numpy(kernel_of(layer)), axes)
    return Simulated(layer, weight, ElasticInput(_input_channels(layer)))


def _learners(model: keras.Model) -> dict[str, SimulatedWeight]:
    """Layer name → the simulation of its kernel, of those whose steps are learned."""
    simulated = {name: layer.weight for name, layer in layers_by_name(model).items() if isinstance(layer, Simulated)}
    return {name: weight for name, weight in simulated.items() if weight is not None and weight.is_learned}


def _input_places(layer: keras.layers.Layer) -> dict[int, int]:
    """Axis of the kernel → axis of the input, counted from the end, for the channels that are summed over."""
    axes = kernel_axes(layer)
    if isinstance(layer, keras.layers.EinsumDense):
        return einsum_places(layer, axes.inputs)
    ndim = len(axes.shape) if len(axes.shape) > 2 else 2
    return {axis: channel_axis(layer, ndim) - ndim for axis in axes.inputs}


def _input_channels(layer: keras.layers.Layer) -> dict[int, int]:
    """Axis of the input, counted from the end → its channels."""
    axes = kernel_axes(layer)
    if isinstance(layer, DEPTHWISE):
        return {channel_axis(layer, len(axes.shape)) - len(axes.shape): axes.shape[-2]}
    groups = getattr(layer, "groups", 1)
    return {place: axes.shape[axis] * groups for axis, place in _input_places(layer).items()}


def _lost_inputs(layer: keras.layers.Layer, lost: Lost, grouped: Mapping[Any, NDArray[np.int64]]) -> Lost:
    """Axis of the input, counted from the end → the channels that are not read any more."""
    if None in grouped:
        (axis,) = _input_channels(layer)
        return {axis: grouped[None]}
    places = _input_places(layer)
    return {places[axis]: gone for axis, gone in lost.items() if axis in places}
