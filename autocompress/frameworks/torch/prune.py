"""Physical removal of channels, and its counterpart in the whole model: silencing those who read them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.frameworks.channels import ChannelGroup, removed_slices
from autocompress.frameworks.torch.layers import TRANSPOSED
from autocompress.frameworks.torch.vanish import vanish

Groups = Mapping[str, ChannelGroup]


def remove_channels(
    model: nn.Module,
    groups: Groups,
    removed: Mapping[str, Sequence[int]],
    follow: Iterable[str] = (),
    *,
    differentiable: bool = False,
) -> None:
    """Remove channels in place.

    Args:
        model: the original.
        groups: of the original.
        removed: group → its channels that go. Where all go, the layers between them and the next that have other inputs go too.
        follow: groups with whose widths the numbers that modules remember (heads, widths) are to change.
        differentiable: what is left of a parameter is no parameter, and its gradient reaches the whole one.
    """
    slices = {place: gone for place, gone in removed_slices(groups, removed).items() if gone.size}
    modules = dict(model.named_modules())
    followed = [name for name in follow if removed.get(name)]
    before = {name: _width(module) for name, module in modules.items()} if followed else {}
    homes = _homes(modules.values())
    for (tensor, axis), gone in slices.items():
        value = _registered(modules, tensor)
        cut = value.index_select(axis, kept_index(value.shape[axis], gone).to(value.device))
        if isinstance(value, nn.Parameter) and not differentiable:
            cut = nn.Parameter(cut.detach(), value.requires_grad)
        _replace(homes, value, cut)
    for owner in {owner for tensor, _ in slices for owner, _ in homes[id(_registered(modules, tensor))]}:
        synchronize(owner)
    for name in followed:
        _follow(model, groups[name], len(removed[name]), before)
    vanish(model, groups, removed)


def kept_index(size: int, lost: NDArray[np.int64]) -> torch.Tensor:
    """The indices of an axis that are not lost, ascending."""
    return torch.from_numpy(np.delete(np.arange(size), lost))


def silenced(model: nn.Module, groups: Groups, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy in which nothing reads some channels.

    They still run through batch norms and activations, but the weights that read them are zero: exactly what removing them does.
    """
    quiet = copy.deepcopy(model)
    with torch.no_grad():
        for (tensor, axis), gone in removed_slices(groups, removed, ("reads",)).items():
            weight = quiet.get_parameter(tensor)
            weight.index_fill_(axis, torch.from_numpy(gone).to(weight.device), 0)
    return quiet


def synchronize(module: Any) -> None:
    """Let the numbers that a module remembers of its shape follow its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, TRANSPOSED):
        module.groups = module.groups * module.weight.shape[0] // module.in_channels if module.groups > 1 else 1
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif hasattr(module, "kernel_size") and hasattr(module, "groups"):
        module.groups = module.groups * module.weight.shape[0] // module.out_channels if module.groups > 1 else 1
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif hasattr(module, "num_features"):
        module.num_features = len(next(t for t in (module.weight, module.running_mean) if t is not None))
    elif isinstance(module, nn.LayerNorm) or hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = module.num_groups * len(module.weight) // module.num_channels
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _width(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a layer; zeros of another module."""
    for names in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if all(isinstance(getattr(module, name, None), int) for name in names):
            return getattr(module, names[0]), getattr(module, names[1])
    return 0, 0


def _follow(model: nn.Module, group: ChannelGroup, lost: int, before: Mapping[str, tuple[int, int]]) -> None:
    """Change the numbers of heads and widths that the modules around a group's layers remember."""
    kept = group.channels - lost
    for parent in {member.layer.rpartition(".")[0]: None for member in group.members if member.layer}:
        module = model.get_submodule(parent)
        changed: dict[int, int] = {}
        for member in group.members:
            if member.layer.rpartition(".")[0] == parent and member.layer in before:
                width = before[member.layer][int(member.role == "writes")]
                changed[width] = width - lost * member.width
        for name, value in list(vars(module).items()):
            if type(value) is int and "head" in name and value == group.channels:
                setattr(module, name, kept)
            elif type(value) is int and value in changed:
                setattr(module, name, changed[value])


def _registered(modules: Mapping[str, nn.Module], tensor: str) -> torch.Tensor:
    """A parameter or buffer of its name."""
    module, _, attribute = tensor.rpartition(".")
    return cast(torch.Tensor, getattr(modules[module], attribute))


def _homes(modules: Iterable[nn.Module]) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every place in which a parameter or buffer is registered; a tied one has several."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in modules:
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                found.setdefault(id(tensor), []).append((module, name))
    return found


def _replace(homes: dict[int, list[tuple[nn.Module, str]]], old: torch.Tensor, new: torch.Tensor) -> None:
    for module, name in homes[id(old)]:
        registry: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
        registry[name] = new
    homes[id(new)] = homes[id(old)]
