"""What can be removed from one task's model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import keras

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.keras.graph import operation_names
from autocompress.frameworks.keras.importance import KerasImportance
from autocompress.frameworks.keras.inspect import prove
from autocompress.frameworks.keras.layers import layers_of
from autocompress.frameworks.keras.trace import channel_groups
from autocompress.frameworks.proof import Proof
from autocompress.frameworks.pruning import BasePruning, shapes
from autocompress.structure import Layer
from autocompress.task import Task


class Pruning(BasePruning):
    """Groups, proof and rankings of a task's model.

    Args:
        task: with data and loss.
        graph: of its model. Groups hold names of operations, which are others each time a model is traced.
        example: inputs.
        digest: of the model.
    """

    def __init__(self, task: Task, graph: keras.Model, example: Any, digest: str) -> None:
        names = hashlib.sha256(" ".join(operation_names(graph)).encode()).hexdigest()[:16]
        super().__init__(digest, shapes(example), names, keras.__version__, keras.backend.backend())
        self._task, self.graph, self._example = task, graph, example

    def _find_groups(self) -> dict[str, ChannelGroup]:
        return channel_groups(self.graph, self._example)

    def _prove(self, groups: Mapping[str, ChannelGroup]) -> Proof:
        return prove(self.graph, self._example, groups)

    def _layers(self) -> tuple[Layer, ...]:
        return layers_of(self.graph, self._example)

    def _importance(self) -> KerasImportance:
        return KerasImportance(self._task, self.graph)
