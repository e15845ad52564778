"""The thin form of the elastic model: a copy that is cut anew for every policy, out of tensors that the elastic model holds.

The copy is made once and put in order before it is cut again. Where a module holds a tensor that it has not registered (an LSTM
its weights), each step has a copy of its own, which takes several times as long.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autocompress.frameworks.torch.elastic_layers import NONE, ElasticInput
from autocompress.frameworks.torch.layers import HEAVY
from autocompress.frameworks.torch.prune import remove_channels
from autocompress.frameworks.torch.pruning import Pruning
from autocompress.frameworks.torch.simulate import attach_input
from autocompress.policy import Policy

REGISTRIES = ("_parameters", "_buffers", "_modules")
Tensors = Mapping[str, torch.Tensor]


class Thin:
    """What a policy leaves of a model.

    Args:
        original: the model; it stays as it is.
        pruning: its groups.
        source: a model of the same modules and their simulated inputs, whose modes count.
    """

    def __init__(self, original: nn.Module, pruning: Pruning, source: nn.Module) -> None:
        self._pruning, lookups = pruning, _Lookups()
        self._model: nn.Module = copy.deepcopy(original, lookups)
        self._is_reused = all(lookups.of[tensor] == times for tensor, times in _registrations(original).items())
        self._parameters = {id(own): name for name, own in self._model.named_parameters()}
        self._buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        self._layers = {name: module for name, module in self._model.named_modules() if isinstance(module, HEAVY)}
        for layer in self._layers.values():
            attach_input(layer, ElasticInput(layer))
        self._modules = dict(self._model.named_modules())
        self._attributes = {name: _attributes(module) for name, module in self._modules.items()}
        self._modes = {name: source.get_submodule(name) for name in self._modules}

    def cut(self, policy: Policy, removed: Mapping[str, Sequence[int]], tensors: Tensors) -> nn.Module:
        """The model under a policy, until the next one is asked for.

        Args:
            policy: what is done.
            removed: group → its channels that go.
            tensors: take the place of the whole parameters, by name, and get their gradients.
        """
        modules = self._in_order(tensors) if self._is_reused else self._another(tensors)
        for name, module in modules.items():
            vars(module)["training"] = self._modes[name].training  # at once: modules look for what is set in three places
        for name in self._layers:
            quantizer: Any = modules[f"{name}.simulated_input"]
            quantizer.obey(policy.layer(name), NONE)
        groups, follow = self._pruning.groups, self._pruning.proof.follow
        remove_channels(modules[""], groups, removed, follow, differentiable=True)
        return modules[""]

    def _in_order(self, tensors: Tensors) -> Mapping[str, nn.Module]:
        """The modules of the copy, as they were before they were cut."""
        for name, module in self._modules.items():
            own = module.__dict__
            own.clear()
            own.update(self._attributes[name])
            own.update({registry: dict(own[registry]) for registry in REGISTRIES})
            for attribute, parameter in self._attributes[name]["_parameters"].items():
                if parameter is not None:
                    own["_parameters"][attribute] = tensors[self._parameters[id(parameter)]]
        for buffer, before in self._buffers:
            buffer.copy_(before)
        return self._modules

    def _another(self, tensors: Tensors) -> Mapping[str, nn.Module]:
        """The modules of a new copy."""
        given = {own: tensors[name] for own, name in self._parameters.items()}
        return dict(copy.deepcopy(self._model, given).named_modules())


class _Lookups(dict[int, Any]):
    """A memo of `copy.deepcopy` that counts how often an object was met."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()

    def get(self, key: int, default: Any = None) -> Any:
        self.of[key] += 1
        return super().get(key, default)


def _registrations(model: nn.Module) -> Counter[int]:
    """How often each tensor of a model is registered."""
    registries = (registry for module in model.modules() for registry in (module._parameters, module._buffers))
    return Counter(id(tensor) for registry in registries for tensor in registry.values() if tensor is not None)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """All of a module, so that what it registers is not changed when it changes."""
    return {name: dict(value) if name in REGISTRIES else value for name, value in vars(module).items()}
