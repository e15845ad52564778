"""What can be removed from one task's module."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.proof import Proof
from autocompress.frameworks.pruning import BasePruning, shapes
from autocompress.frameworks.torch.calls import on_cpu
from autocompress.frameworks.torch.channels import channel_groups
from autocompress.frameworks.torch.importance import TorchImportance
from autocompress.frameworks.torch.inspect import prove
from autocompress.frameworks.torch.layers import layers_of
from autocompress.structure import Layer
from autocompress.task import Task


class Pruning(BasePruning):
    """Groups, proof and rankings of a task's module. Following and proving happen on the CPU."""

    def __init__(self, task: Task, example: Any, digest: str) -> None:
        super().__init__(digest, shapes(example), torch.__version__)
        self._task, self._example = task, on_cpu(example)

    def _find_groups(self) -> dict[str, ChannelGroup]:
        return channel_groups(self._model(), self._example)

    def _prove(self, groups: Mapping[str, ChannelGroup]) -> Proof:
        return prove(self._model(), self._example, groups)

    def _layers(self) -> tuple[Layer, ...]:
        return layers_of(self._model(), self._example)

    def _importance(self) -> TorchImportance:
        return TorchImportance(self._task)

    def _model(self) -> nn.Module:
        """A copy of the original."""
        model: nn.Module = copy.deepcopy(self._task.model)
        return model.cpu()
