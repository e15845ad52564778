"""What a module remembers, and putting it back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

REGISTRIES = ("_parameters", "_buffers", "_modules")
OF_EVERY_MODULE = frozenset(vars(nn.Module()))
CONTAINERS = (dict, list, set)
PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    Enum,
    type,
    FunctionType,
    BuiltinFunctionType,
    torch.dtype,
    torch.device,
    torch.memory_format,
)


class Remembered:
    """All that a module holds at one moment, but for the values of its parameters.

    Args:
        module: whose attributes are kept, and what its containers contain.
        itself: what is not copied with an object that holds it, by its id.

    Attributes:
        objects: attributes that hold more than numbers, names, functions, and containers of these: an LSTM's list of its weights,
            a configuration. A step may change them from within, so each needs copies of its own, where that is possible.
        parameters: by attribute.
    """

    def __init__(self, module: nn.Module, itself: Mapping[int, Any]) -> None:
        self._module = module
        objects = {name: held for name, held in vars(module).items() if name not in OF_EVERY_MODULE and not _is_simple(held)}
        self.objects = {name: held for name, held in objects.items() if _can_be_copied(held, itself)}
        attributes = {name: held for name, held in vars(module).items() if name not in self.objects}
        self._attributes = {name: dict(held) if name in REGISTRIES else held for name, held in attributes.items()}
        containers = [held for name, held in self._attributes.items() if name not in REGISTRIES and isinstance(held, CONTAINERS)]
        self._containers = [(held, copy.copy(held)) for held in containers]
        self._buffers = [(buffer, buffer.clone(), buffer._version) for buffer in module._buffers.values() if buffer is not None]
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in module._parameters.items() if parameter is not None
        }

    @property
    def containers(self) -> list[Any]:
        """Those that are put back: an object that holds one as well goes on holding it."""
        return [held for held, _ in self._containers]

    def put_back(self, objects: Mapping[str, Any]) -> None:
        """Let the module be as it was, with copies of its objects.

        Attributes are set at once: a module looks for each of them in three registries.
        """
        own = self._module.__dict__
        own.clear()
        own.update(self._attributes)
        own.update(objects)
        own.update({registry: dict(own[registry]) for registry in REGISTRIES})
        for container, contents in self._containers:
            if container or contents:
                _refill(container, contents)
        for place, (buffer, before, version) in enumerate(self._buffers):
            if buffer._version != version:
                buffer.copy_(before)
                self._buffers[place] = buffer, before, buffer._version


def _can_be_copied(held: Any, itself: Mapping[int, Any]) -> bool:
    """A lock cannot, for example."""
    try:
        copy.deepcopy(held, dict(itself))
    except Exception:  # of a user's class
        return False
    return True


def _is_simple(held: Any) -> bool:
    return _is_plain(held) or (type(held) in CONTAINERS and all(map(_is_plain, _contents(held))))


def _is_plain(held: Any) -> bool:
    return isinstance(held, PLAIN) or (isinstance(held, (tuple, frozenset)) and all(map(_is_plain, held)))


def _contents(container: Any) -> list[Any]:
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(contents)
    else:
        container.update(contents)
