"""What can be removed from one task's model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import keras

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.keras.graph import functional
from autocompress.frameworks.keras.importance import KerasImportance
from autocompress.frameworks.keras.inspect import prove
from autocompress.frameworks.keras.layers import layers_of
from autocompress.frameworks.keras.trace import channel_groups
from autocompress.frameworks.proof import Proof
from autocompress.frameworks.pruning import BasePruning, shapes
from autocompress.structure import Layer
from autocompress.task import Task


class Pruning(BasePruning):
    """Groups, proof and rankings of a task's model."""

    def __init__(self, task: Task, example: Any, digest: str) -> None:
        super().__init__(digest, shapes(example), keras.__version__, keras.backend.backend())
        self._task, self._example = task, example

    @cached_property
    def graph(self) -> keras.Model:
        """The task's model as a graph."""
        return functional(self._task.model, self._example)

    def _find_groups(self) -> dict[str, ChannelGroup]:
        return channel_groups(self.graph, self._example)

    def _prove(self, groups: Mapping[str, ChannelGroup]) -> Proof:
        return prove(self.graph, self._example, groups)

    def _layers(self) -> tuple[Layer, ...]:
        return layers_of(self.graph, self._example)

    def _importance(self) -> KerasImportance:
        return KerasImportance(self._task, self.graph)
