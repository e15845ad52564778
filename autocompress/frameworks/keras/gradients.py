"""Gradients of the task's loss at the original's weights, for the criteria that ask what a channel does to the loss."""

from __future__ import annotations

from itertools import islice
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.keras.batches import training_batches
from autocompress.frameworks.keras.graph import rebuild
from autocompress.frameworks.keras.losses import loss_of
from autocompress.frameworks.keras.nodes import as_argument, graph_of
from autocompress.frameworks.keras.prune import weights_by_name
from autocompress.frameworks.keras.strided import subsampled
from autocompress.task import Task

BATCHES = 10


def mean_gradients(task: Task, graph: keras.Model, squared: bool) -> dict[str, NDArray[Any]]:
    """Weight → mean over some training batches of the gradient, or of its square. Weights without a gradient are left out.

    Raises:
        TaskError: there is no loss.
    """
    copy = rebuild(graph, lambda name, layer: None)
    copy.trainable = True
    model = _Still(graph_of(copy).input, graph_of(copy).output)
    recorder = _Recorder(squared)
    model.compile(recorder, **loss_of(task), run_eagerly=True)
    count = 0
    with subsampled(copy):
        for batch in islice(training_batches(task, copy, np.random.default_rng(0)), BATCHES):
            model.train_on_batch(as_argument(batch.inputs), batch.targets, batch.weights)
            count += 1
    names = {id(weight): name for name, weight in weights_by_name(copy).items()}
    return {names[key]: total / count for key, total in recorder.sums.items() if key in names}


class _Still(keras.Model):
    """A model that behaves as it does when it is used, also while its loss is differentiated."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        """The outputs."""
        return super().call(inputs, training=False, mask=mask)


class _Recorder(keras.optimizers.Optimizer):
    """Keeps gradients and changes nothing, so that any backend's own training step gives them."""

    def __init__(self, squared: bool) -> None:
        super().__init__(learning_rate=0.0)
        self.squared = squared
        self.sums: dict[int, NDArray[Any]] = {}

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Add the gradients of a batch."""
        for gradient, variable in zip(grads, trainable_variables or self._trainable_variables, strict=True):
            if gradient is not None:
                value = np.asarray(keras.ops.convert_to_numpy(gradient), float)
                self.sums[id(variable)] = self.sums.get(id(variable), 0.0) + (value**2 if self.squared else value)
