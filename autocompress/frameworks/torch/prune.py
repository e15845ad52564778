"""Physical removal of channels, with torch-pruning's dependency graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

HEAVY = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CRITERIA = {"l1": 1, "l2": 2}


@contextmanager
def quiet() -> Iterator[None]:
    """Tracing warns about what is no concern of the user's: unwrapped parameters, Python branches on shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def dependency_graph(model: nn.Module, example: Any) -> tp.DependencyGraph:
    """torch-pruning's graph; tracing needs gradients and evaluation mode."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with quiet(), torch.enable_grad():
        return tp.DependencyGraph().build_dependency(model, example_inputs=example)


def group_of(graph: tp.DependencyGraph, module: nn.Module, indices: list[int]) -> tp.Group:
    """The group that removes these output channels of a module."""
    return graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, indices)


def removed_channels(model: nn.Module, example: Any, ratios: Mapping[str, float], criterion: str) -> dict[str, list[int]]:
    """Group name → the channels that go: the least important of the *original* model.

    Every group is ranked once, whatever happens to the others, so the channels of a smaller ratio are among those of a larger.
    """
    graph = dependency_graph(copy.deepcopy(model), example)
    importance = tp.importance.GroupMagnitudeImportance(p=CRITERIA[criterion])
    removed = {}
    for name, ratio in ratios.items():
        module = graph.model.get_submodule(name)
        channels = graph.get_out_channels(module)
        scores = importance(group_of(graph, module, list(range(channels))))
        order = torch.argsort(scores, stable=True).tolist()
        removed[name] = sorted(order[: min(round(channels * ratio), channels - 1)])
    return removed


def remove_channels(model: nn.Module, example: Any, removed: Mapping[str, Sequence[int]]) -> None:
    """Remove channels in place, group by group."""
    if not removed:
        return
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    graph = dependency_graph(model, example)
    for name, indices in removed.items():
        group_of(graph, model.get_submodule(name), list(indices)).prune()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])


def silence_consumers(graph: tp.DependencyGraph, group: tp.Group) -> None:
    """Zero, in place, the weights with which a group's channels are read.

    The channels still run through batch norms and activations, but nothing listens: exactly what removing them does.
    """
    for dependency, indices in group:
        module = dependency.target.module
        if not isinstance(module, HEAVY) or getattr(module, "groups", 1) > 1:
            continue
        if dependency.handler == graph.get_pruner_of_module(module).prune_in_channels:
            axis = 0 if isinstance(module, TRANSPOSED) else 1
            channels = torch.as_tensor(sorted(set(indices)), device=module.weight.device)
            with torch.no_grad():
                module.weight.index_fill_(axis, channels, 0)
