"""A copy of a model that is cut again and again, without being copied again."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Skeleton:
    """A copy of a model, in which tensors from elsewhere take the place of the parameters.

    What was done to it (channels removed, modules and hooks attached) is undone before it is given out the next time: copying
    a model for every step takes longer than cutting it.
    """

    def __init__(self, original: nn.Module) -> None:
        self._model = copy.deepcopy(original)
        self._whole = [(module, _copied(vars(module))) for module in self._model.modules()]
        self._places = _parameter_places(self._model)

    def filled(self, tensor: Callable[[str], torch.Tensor]) -> nn.Module:
        """The whole model with other tensors; valid until the next call.

        Args:
            tensor: name of a parameter → what takes its place.
        """
        for module, attributes in self._whole:
            vars(module).clear()
            vars(module).update(_copied(attributes))
        for name, places in self._places.items():
            value = tensor(name)
            value = value.view_as(value)  # no parameter, whatever it was: cutting it lets gradients flow on
            for module, attribute in places:
                module._parameters[attribute] = value  # type: ignore[assignment]
        return self._model


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """A module's attributes; its registries of parameters, modules and hooks are copied, for they change in place."""
    return {name: value.copy() if type(value) in (dict, OrderedDict) else value for name, value in attributes.items()}


def _parameter_places(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Parameter → where it is registered; a tied one has several places."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found[names[id(parameter)]].append((module, attribute))
    return found
