"""What a candidate is trained for: the user's own loss, and the outputs and features of the original."""

from __future__ import annotations

import re
from typing import Any

import keras
from keras import ops

from autocompress.errors import TaskError
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.keras.calls import arrays, call, outputs_of
from autocompress.frameworks.keras.features import FeaturePairs
from autocompress.frameworks.keras.nodes import graph_of, innermost
from autocompress.frameworks.proof import first_line
from autocompress.task import Task

TEMPERATURE = 3.0
"""Of distillation; Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2."""
SMALLEST_PROBABILITY = 1e-7
FUNCTION_NODE = re.compile(r"\{\{.*?\}\} *")
"""TensorFlow's name of the place where an error came from."""


def loss_of(task: Task) -> dict[str, Any]:
    """The loss with its weights, as `compile` takes them: the task's own, or that which the model was compiled with.

    Raises:
        TaskError: there is neither.
    """
    if task.loss is not None:
        return {"loss": task.loss}
    if not is_compiled(task.model):
        remedy = "Call model.compile(loss=...) or say Task(..., loss=...)."
        raise TaskError("A Keras model that is fine-tuned has a loss", f"{task.model.name}, which is not compiled", remedy)
    return {"loss": task.model.loss, "loss_weights": task.model._compile_loss._user_loss_weights}


def require_loss(task: Task, graph: keras.Model) -> None:
    """Check that there is a loss, and that it takes what the model gives for a batch of the train data.

    Args:
        task: with data and loss.
        graph: the task's model as a graph; its weights and how it was compiled stay as they are.

    Raises:
        TaskError: it does not.
    """
    options = loss_of(task)
    batch = next(task.splits["train"].batches()).map(arrays)
    outputs = call(graph, batch.inputs)
    measured = keras.Model(graph_of(graph).input, graph_of(graph).output)
    try:
        measured.compile(**options, run_eagerly=True, jit_compile=False)
        measured.compute_loss(x=None, y=batch.targets, y_pred=outputs, sample_weight=batch.weights, training=False)
    except Exception as error:  # of any library
        shapes = ", ".join(str(tuple(tensor.shape[1:])) for tensor in graph.outputs)
        received = f"{type(error).__name__}: {FUNCTION_NODE.sub('', first_line(error))}"
        remedy = f"Each sample's outputs have the shapes {shapes}; give it targets that fit."
        raise TaskError("The loss takes the model's outputs and the targets of the train data", received, remedy) from error


def is_compiled(model: keras.Model) -> bool:
    """True where a model was compiled with a loss."""
    return bool(model.compiled) and model._compile_loss is not None


class Objective:
    """What is minimized: a model's own loss on a batch, mixed with its distance from the teacher."""

    def __init__(self, task: Task, model: keras.Model, teacher: keras.Model, settings: TuneSettings) -> None:
        self.teacher = teacher
        self.share, self.feature_weight = settings.distillation, settings.feature_distillation
        self.features = FeaturePairs(model, teacher) if self.feature_weight else None
        self.gives_probabilities = _ends_in_softmax(model)
        self.is_classification = self.gives_probabilities or _is_of_classes(loss_of(task)["loss"])

    def mixed(self, own: Any, inputs: Any, outputs: Any) -> Any:
        """The loss, a scalar."""
        if self.share == 0 and self.features is None:
            return own
        taught = keras.tree.map_structure(ops.stop_gradient, self.teacher(inputs, training=False))
        total = (1 - self.share) * own + self.share * self._distance(outputs, taught) if self.share else own
        return total if self.features is None else total + self.feature_weight * self.features.distance()

    def _distance(self, outputs: Any, taught: Any) -> Any:
        """Kullback-Leibler divergence of softened classes where the outputs are classes, else mean squared difference."""
        pairs = list(zip(outputs_of(outputs), outputs_of(taught), strict=True))
        if not self.is_classification or len(pairs) > 1 or pairs[0][0].shape[-1] == 1:
            return sum(ops.mean(ops.square(mine - theirs)) for mine, theirs in pairs)
        mine, theirs = (ops.log_softmax(self._logits(output) / TEMPERATURE, -1) for output in pairs[0])
        return ops.mean(ops.sum(ops.exp(theirs) * (theirs - mine), -1)) * TEMPERATURE**2

    def _logits(self, output: Any) -> Any:
        """Up to a constant, which a softmax does not see."""
        return ops.log(ops.maximum(output, SMALLEST_PROBABILITY)) if self.gives_probabilities else output


def _ends_in_softmax(model: keras.Model) -> bool:
    outputs = outputs_of(graph_of(model).outputs)
    last = outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        return _ends_in_softmax(last)
    last = innermost(last)
    return len(outputs) == 1 and (
        isinstance(last, keras.layers.Softmax)
        or getattr(last, "activation", None) is keras.activations.softmax
        or (type(last).__module__.startswith("keras.src.ops") and type(last).__name__ == "Softmax")
    )


def _is_of_classes(loss: Any) -> bool:
    names = [
        part if isinstance(part, str) else getattr(part, "name", getattr(part, "__name__", ""))
        for part in keras.tree.flatten(loss)
    ]
    return any("categorical" in name for name in names)
