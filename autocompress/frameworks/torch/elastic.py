"""The elastic model: the task's own model with one set of weights, under a policy that may change with every step.

Nothing is cut out of it. The weights that read a channel are silenced, before they are put on a grid and before the range of
their input is taken, and that is exactly what removing the channel does: whatever a batch norm or a sigmoid makes of a channel,
nobody hears it. Channels are ranked once, so what a policy keeps is part of what every larger one keeps.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from autocompress.frameworks.base import Candidate
from autocompress.frameworks.channels import ChannelGroup, Role
from autocompress.frameworks.torch.elastic_layers import NONE, ElasticInput, ElasticWeight
from autocompress.frameworks.torch.layers import HEAVY, TRANSPOSED, layers_of
from autocompress.frameworks.torch.prune import kept_index, remove_channels
from autocompress.frameworks.torch.pruning import Pruning
from autocompress.frameworks.torch.simulate import attach_input, simulate, simulated_weights
from autocompress.frameworks.torch.thin import Thin
from autocompress.policy import UNCHANGED, Policy

Removed = Mapping[str, Sequence[int]]
Place = tuple[str, int | None]
WIDTHS = (8, 7, 4, 3, 2)
"""Weight widths that the elastic model knows. Each has a step of its own, so that no width has to live with another's."""
PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original$")


class Elastic:
    """A task's model whose weights serve every policy.

    Attributes:
        model: the elastic copy.
    """

    def __init__(self, original: nn.Module, example: Any, pruning: Pruning, criterion: str) -> None:
        self.original, self.example, self.pruning, self.criterion = original, example, pruning, criterion
        self.model: nn.Module = copy.deepcopy(original)
        self._weights: list[tuple[str, ElasticWeight, torch.Tensor]] = []
        self._inputs: list[tuple[str, ElasticInput, int]] = []
        shared_name = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self._tensors = {name: shared_name[id(m.weight)] for name, m in self.model.named_modules() if isinstance(m, HEAVY)}
        for name in self._tensors:
            self._attach_layer(name, self.model.get_submodule(name))
        for tensor, axis in _read_outside_of_layers(pruning, set(self._tensors.values())):
            self._attach_weight(tensor, tensor, 1 - axis, axis, ())

    def obey(self, policy: Policy, removed: Removed | None = None) -> None:
        """Let a policy be in force; ranges of inputs are forgotten.

        Args:
            policy: what is done.
            removed: the channels that go; by default the least important.
        """
        removed = self.removed(policy) if removed is None else removed
        inputs, outputs = (_lost(self.pruning.groups, removed, role) for role in ("reads", "writes"))
        layers = {self._tensors[name]: layer for name, layer in policy.layers.items()}
        for tensor, elastic, weight in self._weights:
            lost = inputs.get((tensor, elastic.input_axis), NONE), outputs.get((tensor, elastic.axis), NONE)
            elastic.obey(weight, layers.get(tensor, UNCHANGED), *lost)
        for name, quantizer, axis in self._inputs:
            tensor = self._tensors[name]
            quantizer.obey(policy.layer(name), inputs.get((tensor, axis), inputs.get((tensor, None), NONE)))

    def removed(self, policy: Policy) -> dict[str, list[int]]:
        """Group → the channels that a policy removes."""
        return self.pruning.least_important(policy.pruning, self.criterion) if policy.pruning else {}

    def thin(self, policy: Policy) -> nn.Module:
        """The model under a policy with the channels cut out, whose gradients reach the weights of the elastic model.

        It gives what `model` gives that obeys the policy, in the time that the candidate takes, until the next one is asked for.
        """
        removed = self.removed(policy)
        self.obey(policy, removed)
        tensors = {name: cast(torch.Tensor, getattr(module, attribute)) for name, module, attribute in self._places}
        return self._thin.cut(policy, removed, tensors)

    def candidate(self, policy: Policy, removed: Removed | None = None) -> Candidate:
        """The model under a policy, with the channels cut out and the weights and steps that the elastic model has now."""
        removed = self.removed(policy) if removed is None else removed
        model = copy.deepcopy(self.original)
        state = {PARAMETRIZED.sub(r"\1", name): tensor for name, tensor in self.model.state_dict().items()}
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        remove_channels(model, self.pruning.groups, removed, self.pruning.proof.follow)
        macs = {layer.name: layer.macs for layer in layers_of(model, self.example)}
        simulate(model, policy)
        self._hand_over_steps(model, _lost(self.pruning.groups, removed, "writes"))
        return Candidate(model.eval(), policy, macs, removed)

    def _attach_layer(self, name: str, module: Any) -> None:
        axis, input_axis = (1, 0) if isinstance(module, TRANSPOSED) else (0, 1)
        quantizer = ElasticInput(module)
        self._attach_weight(f"{name}.weight".lstrip("."), self._tensors[name], axis, input_axis, WIDTHS)
        attach_input(module, quantizer)
        self._inputs.append((name, quantizer, input_axis))

    def _attach_weight(self, place: str, tensor: str, axis: int, input_axis: int, widths: Iterable[int]) -> None:
        owner, _, attribute = place.rpartition(".")
        module = self.model.get_submodule(owner)
        weight = getattr(module, attribute)
        elastic = ElasticWeight(weight, axis, input_axis, widths)
        parametrize.register_parametrization(module, attribute, elastic)
        self._weights.append((tensor, elastic, weight))

    @cached_property
    def _thin(self) -> Thin:
        return Thin(self.original, self.pruning, self.model)

    @cached_property
    def _places(self) -> list[tuple[str, nn.Module, str]]:
        """Each parameter of the original, and which attribute of which module stands for it under the policy in force."""
        names = [name for name, _ in self.original.named_parameters()]
        return [(name, self.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]

    def _hand_over_steps(self, model: nn.Module, lost: Mapping[Place, NDArray[np.int64]]) -> None:
        """Let the simulation of a candidate go on with the steps that were learned."""
        for name, simulation, _ in simulated_weights(model):
            mine: Any = self.model.get_submodule(name)
            widths = mine.parametrizations["weight"][0].widths
            if simulation.factor is None or str(simulation.bits) not in widths:
                continue
            learned, axis = widths[str(simulation.bits)], simulation.axis
            index = kept_index(learned.clip.shape[axis], lost.get((self._tensors[name], axis), NONE)).to(learned.clip.device)
            with torch.no_grad():
                simulation.clip.copy_(learned.clip.index_select(axis, index))
                simulation.factor.copy_(learned.factor.index_select(axis, index))


def _read_outside_of_layers(pruning: Pruning, layers: set[str]) -> list[tuple[str, int]]:
    """Tensor and axis of the parameters that read proven channels and are no layer's weight."""
    members = [member for name in pruning.proof.proven for member in pruning.groups[name].members if member.role == "reads"]
    return list(dict.fromkeys((m.tensor, m.axis) for m in members if m.axis is not None and m.tensor not in layers))


def _lost(groups: Mapping[str, ChannelGroup], removed: Removed, role: Role) -> dict[Place, NDArray[np.int64]]:
    """Tensor and axis → the indices that are lost; without an axis, the input channels of a grouped convolution."""
    found: dict[Place, list[NDArray[np.int64]]] = {}
    for name, channels in removed.items():
        for member in groups[name].members:
            if member.role == role and len(channels):
                found.setdefault((member.tensor, member.axis), []).append(member.indices[list(channels)].reshape(-1))
    return {place: np.unique(np.concatenate(parts)) for place, parts in found.items()}
