"""The elastic model: the task's own model with one set of weights, under a policy that may change with every step.

It has two forms. In the masked one the kernels that read a channel are silenced, before they are put on a grid and before the
range of their input is taken, and that is exactly what removing the channel does. In the thin one, which some groups of channels
allow (`thin.py`), it is not computed. Channels are ranked once, so what a policy keeps is part of what every larger one keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.base import FEATURES_ARE_WHOLE, Candidate
from autocompress.frameworks.channels import Role, removed_slices
from autocompress.frameworks.keras.elastic_layers import WIDTHS, ElasticInput, ElasticWeight, Lost
from autocompress.frameworks.keras.graph import HEAVY, copied, layers_by_name, rebuild
from autocompress.frameworks.keras.kernels import kernel_axes, kernel_of
from autocompress.frameworks.keras.layer_rules import INPUTS
from autocompress.frameworks.keras.layers import DEPTHWISE, einsum_places, layers_of
from autocompress.frameworks.keras.prune import by_tensor, remove_channels, weights_by_name, what_remains
from autocompress.frameworks.keras.pruning import Pruning
from autocompress.frameworks.keras.resting import predicted
from autocompress.frameworks.keras.rules import channel_axis
from autocompress.frameworks.keras.simulate import Simulated, simulate, simulated_layers
from autocompress.frameworks.keras.thin import Cut, Kept, Place, Thin, can_be_thin, open_sizes, places_of, whole, why_not_computed
from autocompress.frameworks.keras.weights import SimulatedWeight
from autocompress.policy import FLOAT, Policy

Removed = Mapping[str, Sequence[int]]
Part = tuple[keras.layers.Layer, ElasticWeight, ElasticInput]
"""A simulated layer's own layer, its kernel and its input."""
OPEN_ON_A_CPU_ALONE = "sizes stay open only where TensorFlow compiles steps for a CPU"
NO_GROUP_CAN_BE_THIN = "no group of channels lies in layers alone whose sizes can stay open"


class Elastic:
    """A task's model whose weights serve every policy.

    Args:
        graph: the original.
        example: inputs.
        pruning: its groups and rankings.
        criterion: of the ranking.
        may_be_thin: false makes masked steps a tenth faster.

    Attributes:
        model: the elastic copy.
        thin_groups: whose channels need not be computed.
        masked_because: why there are none; None where there are some.
    """

    def __init__(self, graph: keras.Model, example: Any, pruning: Pruning, criterion: str, may_be_thin: bool = True) -> None:
        self.example, self.pruning, self.criterion = example, pruning, criterion
        reason = FEATURES_ARE_WHOLE if not may_be_thin else None if can_be_thin() else OPEN_ON_A_CPU_ALONE
        places = places_of(graph, pruning.groups, pruning.proof.proven) if reason is None else {}
        self._build(graph, places)
        if places and (reason := self._why_wrong_when_thin()):
            self._build(graph, {})
        self.masked_because = None if self.thin_groups else reason or NO_GROUP_CAN_BE_THIN

    def _build(self, graph: keras.Model, places: Mapping[str, Collection[Place]]) -> None:
        """Make the model, which can be thin where some groups lie."""
        self.thin_groups = frozenset(places)
        weights, thin = weights_by_name(graph), {place for found in places.values() for place in found}
        kept = self._kept = Kept({(tensor, axis): int(weights[tensor].shape[axis]) for tensor, axis in thin if tensor in weights})

        def replace(name: str, layer: keras.layers.Layer) -> keras.layers.Layer:
            own = copied(layer)
            made = _elastic(own) if isinstance(layer, HEAVY) else own
            cuts = _cuts(name, made, thin)
            if cuts or isinstance(own, keras.layers.Reshape):
                open_sizes(own, name, thin)
            return Thin(made, cuts, kept) if cuts else made

        self.model = rebuild(graph, replace)
        simulated = simulated_layers(self.model).items()
        self._parts = {name: cast(Part, (one.layer, one.weight, one.input_quantizer)) for name, one in simulated}

    def _why_wrong_when_thin(self) -> str | None:
        """Why the thin form without half of its channels is not what a candidate is that has lost them; None where it is."""
        policy = Policy(dict.fromkeys(self.thin_groups, 0.5))
        expected = predicted(self.candidate(policy).model, [self.example])
        self.obey(policy, thin=True)
        reason = why_not_computed(self.model, self.example, expected)
        self.obey(Policy())
        return reason

    def obey(self, policy: Policy, removed: Removed | None = None, thin: bool = False) -> None:
        """Let a policy be in force; ranges of inputs are forgotten.

        Args:
            policy: what is done.
            removed: the channels that go; by default the least important.
            thin: do not compute them, where that is possible. The model then has to run as a graph.
        """
        removed = self.removed(policy) if removed is None else removed
        thinned = self._thinned(removed) if thin else {}
        self._kept.obey(removed_slices(self.pruning.groups, thinned))
        silent = self._lost({name: gone for name, gone in removed.items() if name not in thinned}, "reads")
        for name, (layer, weight, quantizer) in self._parts.items():
            kernel, done = kernel_of(layer), policy.layer(name)
            tensor = f"{name}/{kernel.name}"
            weight.obey(done, silent.get(tensor, {}))
            quantizer.obey(done, _lost_inputs(layer, silent.get(tensor, {}), silent.get(name + INPUTS, {})))
        self._obey_zeros(policy, removed)

    def _obey_zeros(self, policy: Policy, removed: Removed) -> None:
        """Let a policy's zeros be in force: those of what is left of each kernel."""
        sparse = [name for name, (_, weight, _) in self._parts.items() if weight.is_sparse or policy.layer(name).sparsity]
        lost = [self._lost(removed, role) for role in ("writes", "reads")] if sparse else []
        for name in sparse:
            layer, weight, _ = self._parts[name]
            tensor = f"{name}/{kernel_of(layer).name}"
            gone = {axis: indices for of_role in lost for axis, indices in of_role.get(tensor, {}).items()}
            weight.obey_zeros(kernel_of(layer), policy.layer(name), gone)

    def trains_like_candidate(self, policy: Policy) -> bool:
        """Does a step compute what a candidate's own does? Zeros of a candidate grow while it is trained."""
        layers = [policy.layer(name) for name in self._parts]
        is_known = all(layer.weights in (FLOAT, *WIDTHS) and layer.activations in (FLOAT, 8) for layer in layers)
        return is_known and not any(layer.sparsity for layer in layers) and all(ratio < 1 for ratio in policy.pruning.values())

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

    def hand_over(self, heir: Candidate) -> None:
        """Give a candidate that was made here the weights and steps that the elastic model has now."""
        gone = by_tensor(removed_slices(self.pruning.groups, heir.removed))
        own = layers_by_name(self.model)
        for name, layer in layers_by_name(heir.model).items():
            weights = _plain_layer(own[name]).weights
            _plain_layer(layer).set_weights([what_remains(one, gone.get(f"{name}/{one.name}", {})) for one in weights])
        self._hand_over_steps(heir.model, self._lost(heir.removed, "writes"))

    def _thinned(self, removed: Removed) -> Removed:
        """What goes from the groups that can be thin and keep a channel."""
        groups = self.pruning.groups
        return {n: gone for n, gone in removed.items() if n in self.thin_groups and len(gone) < groups[n].channels}

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
    own = whole(layer)
    return own.layer if isinstance(own, Simulated) else own


def _elastic(layer: keras.layers.Layer) -> Simulated:
    axes = kernel_axes(layer)
    weight = ElasticWeight(keras.ops.convert_to_numpy(kernel_of(layer)), axes)
    return Simulated(layer, weight, ElasticInput(_input_channels(layer)))


def _learners(model: keras.Model) -> dict[str, SimulatedWeight]:
    """Layer name → the simulation of its kernel, of those whose steps are learned."""
    simulated = {name: layer.weight for name, layer in simulated_layers(model).items()}
    return {name: weight for name, weight in simulated.items() if weight is not None and weight.is_learned}


def _cuts(name: str, layer: keras.layers.Layer, places: Collection[Place]) -> list[Cut]:
    """The variables of a layer of the elastic model that have channels at some places."""
    plain = _plain_layer(layer)
    found = [(weight, {axis: (f"{name}/{weight.name}", axis) for axis in range(weight.ndim)}) for weight in plain.weights]
    if isinstance(layer, Simulated):
        kernel = f"{name}/{kernel_of(plain).name}"
        read_axes = _read_axes(plain)
        inputs = [(mask, {0: read_axes[int(axis)]}) for axis, mask in cast(ElasticInput, layer.input_quantizer).masks.items()]
        for variable, axes in [*cast(ElasticWeight, layer.weight).channel_axes, *inputs]:
            found.append((variable, {axis: (kernel, of_kernel) for axis, of_kernel in axes.items()}))
    cuts = ((variable, {axis: place for axis, place in axes.items() if place in places}) for variable, axes in found)
    return [(variable, axes) for variable, axes in cuts if axes]


def _read_axes(layer: keras.layers.Layer) -> dict[int, int]:
    """Axis of the input, counted from the end → the axis of the kernel that has its channels."""
    axes = kernel_axes(layer)
    if isinstance(layer, keras.layers.EinsumDense):
        return {place: axis for axis, place in einsum_places(layer, axes.inputs).items()}
    ndim = len(axes.shape) if len(axes.shape) > 2 else 2
    return {channel_axis(layer, ndim) - ndim: ndim - 2 if isinstance(layer, DEPTHWISE) else axes.inputs[0]}


def _input_channels(layer: keras.layers.Layer) -> dict[int, int]:
    """Axis of the input, counted from the end → its channels."""
    shape, groups = kernel_axes(layer).shape, getattr(layer, "groups", 1)
    return {place: shape[axis] * groups for place, axis in _read_axes(layer).items()}


def _lost_inputs(layer: keras.layers.Layer, lost: Lost, grouped: Mapping[Any, NDArray[np.int64]]) -> Lost:
    """Axis of the input, counted from the end → the channels that are not read any more."""
    if None in grouped:
        (axis,) = _input_channels(layer)
        return {axis: grouped[None]}
    return {place: lost[axis] for place, axis in _read_axes(layer).items() if axis in lost}
