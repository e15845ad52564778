"""How much each channel of a graph's groups matters."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.channels import Member
from autocompress.frameworks.criteria import Gradients, Importance
from autocompress.frameworks.keras.gradients import mean_gradients
from autocompress.frameworks.keras.graph import layers_by_name
from autocompress.frameworks.keras.prune import weights_by_name
from autocompress.task import Task


class KerasImportance(Importance):
    """Scores of a task's original."""

    def __init__(self, task: Task, graph: keras.Model) -> None:
        """Prepare.

        Args:
            task: with data and loss.
            graph: the task's model as a graph.
        """
        self._task, self._graph = task, graph
        self._weights, self._layers = weights_by_name(graph), layers_by_name(graph)

    def weight(self, tensor: str) -> NDArray[Any]:
        """A variable of a layer."""
        return np.asarray(keras.ops.convert_to_numpy(self._weights[tensor]))

    def is_batch_norm_scale(self, member: Member) -> bool:
        """True for the scale of a batch normalization."""
        owner, _, attribute = member.tensor.rpartition("/")
        return attribute == "gamma" and isinstance(self._layers.get(owner), keras.layers.BatchNormalization)

    def gradients(self, squared: bool) -> Gradients:
        """Of the task's loss."""
        return mean_gradients(self._task, self._graph, squared)
