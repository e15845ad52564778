"""What can be removed from one task's module."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.proof import Proof
from autocompress.frameworks.pruning import BasePruning, shapes
from autocompress.frameworks.torch.channels import channel_groups
from autocompress.frameworks.torch.importance import TorchImportance
from autocompress.frameworks.torch.inspect import prove
from autocompress.frameworks.torch.layers import layers_of
from autocompress.structure import Layer
from autocompress.task import Task


class Pruning(BasePruning):
    """Groups, proof and rankings of a task's module."""

    def __init__(self, task: Task, example: Any, digest: str) -> None:
        super().__init__(digest, shapes(example), torch.__version__)
        self._task, self._example = task, example

    def _find_groups(self) -> dict[str, ChannelGroup]:
        return channel_groups(copy.deepcopy(self._task.model), self._example)

    def _prove(self, groups: Mapping[str, ChannelGroup]) -> Proof:
        return prove(self._task.model, self._example, groups)

    def _layers(self) -> tuple[Layer, ...]:
        return layers_of(copy.deepcopy(self._task.model), self._example)

    def _importance(self) -> TorchImportance:
        return TorchImportance(self._task)
