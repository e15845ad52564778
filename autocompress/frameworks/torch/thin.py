"""The thin form of the elastic model: a copy that is cut anew for every policy, out of tensors that the elastic model holds.

The copy is made once and put in order before it is cut again: one of its own for each step would take several times as long.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autocompress.frameworks.torch.elastic_layers import NONE, ElasticInput
from autocompress.frameworks.torch.layers import HEAVY
from autocompress.frameworks.torch.prune import remove_channels
from autocompress.frameworks.torch.pruning import Pruning
from autocompress.frameworks.torch.remembered import Remembered
from autocompress.frameworks.torch.simulate import attach_input, keep_plain_tensors
from autocompress.policy import Policy

Tensors = Mapping[str, torch.Tensor]


class Thin:
    """What a policy leaves of a model.

    Args:
        original: the model; it stays as it is.
        pruning: its groups.
        source: a model of the same modules and their simulated inputs, whose modes count.
    """

    def __init__(self, original: nn.Module, pruning: Pruning, source: nn.Module) -> None:
        self._pruning = pruning
        self._model: nn.Module = copy.deepcopy(original)
        self._parameters = {id(own): name for name, own in self._model.named_parameters()}
        self._layers = {name: module for name, module in self._model.named_modules() if isinstance(module, HEAVY)}
        for layer in self._layers.values():
            attach_input(layer, ElasticInput(layer))
        keep_plain_tensors(self._model)
        self._modules = dict(self._model.named_modules())
        parts = *self._modules.values(), *self._model.parameters(), *self._model.buffers()
        self._itself: dict[int, Any] = {id(part): part for part in parts}
        self._remembered = {module: Remembered(module, self._itself) for module in self._modules.values()}
        kept = (container for remembered in self._remembered.values() for container in remembered.containers)
        self._itself.update({id(container): container for container in kept})
        self._sources = {name: source.get_submodule(name) for name in self._modules}

    def cut(self, policy: Policy, removed: Mapping[str, Sequence[int]], tensors: Tensors) -> nn.Module:
        """The model under a policy, until the next one is asked for.

        Args:
            policy: what is done.
            removed: group → its channels that go.
            tensors: take the place of the whole parameters, by name, and get their gradients.
        """
        self._put_in_order(tensors)
        for name, module in self._modules.items():
            module.__dict__["training"] = self._sources[name].training
        for name in self._layers:
            quantizer: Any = self._modules[f"{name}.simulated_input".lstrip(".")]
            quantizer.obey(policy.layer(name), NONE)
        groups, follow = self._pruning.groups, self._pruning.proof.follow
        remove_channels(self._model, groups, removed, follow, differentiable=True)
        return self._model

    def _put_in_order(self, tensors: Tensors) -> None:
        """Let the modules of the copy be as they were before they were cut, with the tensors as their parameters."""
        given: dict[int, Any] = {own: tensors[name] for own, name in self._parameters.items()}
        objects = copy.deepcopy([remembered.objects for remembered in self._remembered.values()], self._itself | given)
        for (module, remembered), own_objects in zip(self._remembered.items(), objects, strict=True):
            remembered.put_back(own_objects)
            registry: dict[str, Any] = module._parameters
            registry.update({name: given[id(own)] for name, own in remembered.parameters.items()})
