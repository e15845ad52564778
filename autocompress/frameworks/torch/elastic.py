"""The elastic model: the task's own model with one set of weights, under a policy that may change with every step.

Nothing is cut out of it. The weights that read a channel are silenced, before they are put on a grid and before the range of
their input is taken, and that is exactly what removing the channel does: whatever a batch norm or a sigmoid makes of a channel,
nobody hears it. Channels are ranked once, so what a policy keeps is part of what every larger one keeps.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from autocompress import grids
from autocompress.frameworks.base import Candidate
from autocompress.frameworks.channels import ChannelGroup, Role
from autocompress.frameworks.torch.inputs import SimulatedInput
from autocompress.frameworks.torch.layers import HEAVY, TRANSPOSED, layers_of
from autocompress.frameworks.torch.prune import kept_index, remove_channels
from autocompress.frameworks.torch.pruning import Pruning
from autocompress.frameworks.torch.simulate import quantize_input, simulate, simulate_inputs, simulated_weights
from autocompress.frameworks.torch.weights import SimulatedWeight
from autocompress.policy import FLOAT, Bits, LayerPolicy, Policy

Removed = Mapping[str, Sequence[int]]
Place = tuple[str, int | None]
NONE = np.zeros(0, np.int64)
WIDTHS = (8, 7, 4, 3, 2)
"""Weight widths that the elastic model knows. Each has a step of its own, so that no width has to live with another's."""
PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original$")


class ElasticWeight(nn.Module):
    """A weight of which a policy silences inputs, sets some to zero and puts the rest on a grid.

    Attributes:
        widths: bits → the simulation of that grid.
        mask: 1 for what is kept, broadcast against the weight; None where all of it is.
        bits: the width that is in force, or float.
    """

    def __init__(self, weight: torch.Tensor, axis: int, input_axis: int, widths: Iterable[int]) -> None:
        super().__init__()
        self.axis, self.input_axis = axis, input_axis
        found = {str(bits): SimulatedWeight(weight, LayerPolicy(bits), axis, input_axis) for bits in widths}
        self.widths = nn.ModuleDict(found)
        self.mask: torch.Tensor | None = None
        self.bits: Bits = FLOAT

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight under the policy."""
        kept = weight if self.mask is None else weight * self.mask
        return kept if self.bits == FLOAT else cast(torch.Tensor, self.widths[str(self.bits)](kept))

    def set_progress(self, weight: torch.Tensor, fraction: float) -> None:
        """Nothing: every policy is in force as a whole from the first step on."""

    def obey(self, weight: torch.Tensor, layer: LayerPolicy, inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> None:
        """Follow a policy.

        Args:
            weight: what is trained.
            layer: what is done to it.
            inputs: the input channels that it loses.
            outputs: the output channels that it loses.
        """
        self.bits, self.mask = layer.weights, None
        if layer.sparsity:
            self.mask = self._zeros(weight, layer, inputs, outputs)
        elif len(inputs):
            shape = [-1 if a == self.input_axis else 1 for a in range(weight.ndim)]
            self.mask = _kept_mask(weight.shape[self.input_axis], inputs, weight.device).reshape(shape)

    def _zeros(
        self, weight: torch.Tensor, layer: LayerPolicy, inputs: NDArray[np.int64], outputs: NDArray[np.int64]
    ) -> torch.Tensor:
        """The zeros that the weight would get once it has lost its channels, and those of its silenced inputs."""
        values = weight.detach().cpu().numpy()
        kept = [np.arange(size) for size in values.shape]
        kept[self.input_axis] = np.setdiff1d(kept[self.input_axis], inputs)
        kept[self.axis] = np.setdiff1d(kept[self.axis], outputs)
        mask = np.zeros(values.shape, np.float32)
        if all(map(len, kept)):
            mask[np.ix_(*kept)] = grids.mask(values[np.ix_(*kept)], layer.sparsity, layer.block, self.input_axis)
        return torch.from_numpy(mask).to(weight.device)


class ElasticInput(SimulatedInput):
    """An input of 8 bits that a policy may leave in float. Silenced channels do not count in its range.

    A range belongs to one policy, so it is forgotten with each; while training it is that of the batch.

    Attributes:
        channels: how many a layer reads.
        shape: in which one number per channel is broadcast against the input.
        mask: 1 for the channels that are read; None where all are.
        is_float: the policy leaves the input as it is.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        linear = isinstance(layer, nn.Linear)
        self.channels = int(layer.in_features if linear else layer.in_channels)
        self.shape = [-1] if linear else [-1, *[1] * len(layer.kernel_size)]
        self.mask: torch.Tensor | None = None
        self.is_float = True

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The value on its grid, or as it is."""
        return value if self.is_float else super().forward(value)

    def obey(self, layer: LayerPolicy, lost: NDArray[np.int64]) -> None:
        """Follow a policy; `lost` are the channels that are not read any more."""
        self.forget()
        self.is_float = layer.activations == FLOAT
        self.mask = _kept_mask(self.channels, lost, self.low.device).reshape(self.shape) if len(lost) else None

    def _observe(self, value: torch.Tensor) -> None:
        super()._observe(value if self.mask is None else value * self.mask)


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
            elastic.obey(weight, layers.get(tensor, LayerPolicy()), *lost)
        for name, quantizer, axis in self._inputs:
            tensor = self._tensors[name]
            quantizer.obey(policy.layer(name), inputs.get((tensor, axis), inputs.get((tensor, None), NONE)))

    def removed(self, policy: Policy) -> dict[str, list[int]]:
        """Group → the channels that a policy removes."""
        return self.pruning.least_important(policy.pruning, self.criterion) if policy.pruning else {}

    def thin(self, policy: Policy) -> nn.Module:
        """The model under a policy with the channels cut out, whose gradients reach the weights of the elastic model.

        It gives what `model` gives that obeys the policy, in the time that the candidate takes.
        """
        removed = self.removed(policy)
        self.obey(policy, removed)
        thin = copy.deepcopy(self.original, {id(own): self._tensor(name) for name, own in self.original.named_parameters()})
        remove_channels(thin, self.pruning.groups, removed, self.pruning.proof.follow, differentiable=True)
        simulate_inputs(thin, policy)
        modes = {name: module.training for name, module in self.model.named_modules()}
        for name, module in thin.named_modules():
            module.training = modes.get(name, self.model.training)  # what is in the place of a removed branch does not care
        return thin

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
        quantizer = ElasticInput(module).to(module.weight.device)
        self._attach_weight(f"{name}.weight".lstrip("."), self._tensors[name], axis, input_axis, WIDTHS)
        module.add_module("simulated_input", quantizer)
        module.register_forward_pre_hook(quantize_input)
        self._inputs.append((name, quantizer, input_axis))

    def _attach_weight(self, place: str, tensor: str, axis: int, input_axis: int, widths: Iterable[int]) -> None:
        owner, _, attribute = place.rpartition(".")
        module = self.model.get_submodule(owner)
        weight = getattr(module, attribute)
        elastic = ElasticWeight(weight, axis, input_axis, widths)
        parametrize.register_parametrization(module, attribute, elastic)
        self._weights.append((tensor, elastic, weight))

    def _tensor(self, name: str) -> torch.Tensor:
        """What stands for a parameter under the policy that is in force."""
        owner, _, attribute = name.rpartition(".")
        return cast(torch.Tensor, getattr(self.model.get_submodule(owner), attribute))

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


def _kept_mask(size: int, lost: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    return torch.ones(size, device=device).index_fill_(0, torch.from_numpy(lost).to(device), 0)
