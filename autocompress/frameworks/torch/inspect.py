"""Layers and dependency groups of a module; every group is proven before it is reported as prunable."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from autocompress.frameworks.torch.calls import call, outputs_of
from autocompress.frameworks.torch.prune import (
    HEAVY,
    TRANSPOSED,
    dependency_graph,
    group_of,
    quiet,
    remove_channels,
    silence_consumers,
)
from autocompress.structure import FrozenGroup, Group, Layer, Structure

TOLERANCE = 1e-4
"""Largest difference of a pruned and a silenced model's outputs, relative to their range. Float rounding stays far below."""


def inspect(model: nn.Module, example: Any) -> Structure:
    """The structure of a module, seen on an example input. The module is not changed."""
    return Structure(layers_of(model, example), *_groups_of(model, example))


def layers_of(model: nn.Module, example: Any) -> tuple[Layer, ...]:
    """Every convolution and linear layer that runs, with its multiply-accumulates for one sample."""
    layers: dict[str, Layer] = {}
    hooks = []

    def count(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            weight = module.weight
            macs = _positions(module, inputs[0], output) * weight.numel() + (layers[name].macs if name in layers else 0)
            layers[name] = Layer(name, type(module).__name__, tuple(weight.shape), macs, getattr(module, "groups", 1))

        return hook

    model.eval()
    for name, module in model.named_modules():
        if isinstance(module, HEAVY):
            hooks.append(module.register_forward_hook(count(name)))
    try:
        with torch.no_grad(), quiet():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(layers[name] for name, _ in model.named_modules() if name in layers)


def _positions(module: Any, value: torch.Tensor, output: torch.Tensor) -> int:
    """How often the whole weight is applied to the one sample of the example."""
    if isinstance(module, TRANSPOSED):
        return value.numel() // int(module.in_channels)
    return output.numel() // int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _groups_of(model: nn.Module, example: Any) -> tuple[tuple[Group, ...], tuple[FrozenGroup, ...]]:
    """Groups that can be removed together with all groups before them, and the ones that are frozen, with the reason."""
    perturbed = _perturbed(model)
    try:
        graph = dependency_graph(copy.deepcopy(perturbed), example)
        found = list(graph.get_all_groups(root_module_types=HEAVY))
    except Exception as error:  # torch-pruning traces arbitrary user code
        return (), (FrozenGroup("the whole model", f"it cannot be traced for pruning ({type(error).__name__}: {error})"),)
    names = {module: name for name, module in graph.model.named_modules()}
    proven: list[Group] = []
    frozen: list[FrozenGroup] = []
    for members in found:
        group = _described(graph, members, names)
        reason = _refuted(perturbed, example, [*proven, group])
        if reason is None:
            proven.append(group)
        else:
            frozen.append(FrozenGroup(group.name, reason))
    return tuple(proven), tuple(frozen)


def _described(graph: tp.DependencyGraph, members: tp.Group, names: dict[nn.Module, str]) -> Group:
    channels = len(members[0].idxs)
    layers: list[str] = []
    read: dict[str, set[int]] = {}
    for dependency, indices in members:
        module = dependency.target.module
        if not isinstance(module, HEAVY):
            continue
        name, loses_outputs = names[module], graph.is_out_channel_pruning_fn(dependency.handler)
        if loses_outputs and name not in layers:
            layers.append(name)
        if not loses_outputs or _is_depthwise(module):
            read.setdefault(name, set()).update(indices)
    readers = tuple((name, len(indices) // channels) for name, indices in read.items())
    return Group(names[members[0].dep.target.module], channels, tuple(layers), readers)


def _is_depthwise(module: Any) -> bool:
    """True where torch-pruning removes inputs and outputs in one."""
    return getattr(module, "groups", 1) == getattr(module, "out_channels", 0) > 1


def _refuted(model: nn.Module, example: Any, groups: list[Group]) -> str | None:
    """None if removing half the channels of all groups equals silencing them in the whole model; else why not."""
    last = groups[-1]
    if last.channels < 2:
        return "it has a single channel"
    removed = {group.name: _irregular_half(group.channels) for group in groups}
    try:
        pruned = copy.deepcopy(model)
        remove_channels(pruned, example, removed)
        with torch.no_grad(), quiet():
            actual = outputs_of(call(pruned.eval(), example))
            expected = outputs_of(call(_silenced(model, example, removed).eval(), example))
    except Exception as error:  # a wrong mapping shows as any error that a user's forward can raise
        return f"the pruned model does not run ({type(error).__name__}: {_first_line(error)})"
    if [a.shape for a in actual] != [e.shape for e in expected]:
        return "its channels are the model's output"
    difference = max(_relative_difference(a, e) for a, e in zip(actual, expected, strict=True))
    if not difference <= TOLERANCE:
        return f"removing its channels changes the output by {difference:.1e} of its range more than silencing them"
    return None


def _irregular_half(channels: int) -> list[int]:
    """Half of the channels, unevenly spread: every second one would hide that a grouped convolution needs as many per group."""
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(channels))
    return sorted(order[: channels // 2].tolist())


def _silenced(model: nn.Module, example: Any, removed: dict[str, list[int]]) -> nn.Module:
    silenced = copy.deepcopy(model)
    graph = dependency_graph(silenced, example)
    for name, indices in removed.items():
        silence_consumers(graph, group_of(graph, silenced.get_submodule(name), indices))
    return silenced


def _perturbed(model: nn.Module) -> nn.Module:
    """A copy in which every block matters: a zero-initialised norm or a tiny layer scale would hide a wrong mapping."""
    perturbed = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in perturbed.parameters():
            if parameter.ndim <= 1:
                noise = torch.rand(parameter.shape, generator=generator) + 0.5
            else:
                noise = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            parameter.copy_(noise)
        for name, buffer in perturbed.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return perturbed


def _relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    span = float(expected.max() - expected.min())
    return float((actual - expected).abs().max()) / max(span, 1e-12)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
