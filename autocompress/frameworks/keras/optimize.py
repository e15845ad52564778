"""Optimizer and learning-rate schedule of a fine-tuning."""

from __future__ import annotations

import copy
from typing import Any

import keras

from autocompress.frameworks.keras.batches import batch_norms
from autocompress.frameworks.keras.losses import is_compiled
from autocompress.frameworks.keras.straight import is_tensorflow_on_a_cpu
from autocompress.frameworks.schedule import ADAM_RATE, PRUNED_SGD_RATE, SGD_RATE, OptimizerKind, cosine_share, shared_rate
from autocompress.task import Task

SGD_DECAY, ADAMW_DECAY = 5e-3, 1e-2
"""Keras decays weights beside the gradient; of SGD with a momentum of 0.9, ten times the usual 5e-4 does the same."""
CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")


def optimizer_of(task: Task, model: keras.Model, highest: float | None, gradient_norm: float) -> Any:
    """A new optimizer: the task's, or one like that which the user's model was compiled with, or the default.

    The compiled one is used only where the compiled loss is. Norms, biases and steps of grids do not decay.
    """
    if task.optimizer is not None:
        return task.optimizer(model.trainable_variables)
    if task.loss is None and is_compiled(task.model):
        optimizer = _like(task.model.optimizer, highest, gradient_norm, keeps_schedule=task.scheduler is None)
    else:
        optimizer = _default(model, gradient_norm)
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if not _decays(v)])
    return optimizer


def pruned_rate(task: Task, model: keras.Model) -> float | None:
    """The highest rate for a model that has lost channels; None where the optimizer is the user's own, or not SGD."""
    return PRUNED_SGD_RATE if not _is_own(task) and batch_norms(model) else None


def highest_shared_rate(task: Task, model: keras.Model, named: float | None) -> float | None:
    """The highest rate of a shared training; None for the optimizer's own. One whose gradients are not clipped keeps its rate.

    Args:
        task: with its optimizer.
        model: the elastic one.
        named: the user's rate for candidates.
    """
    has_norms = bool(batch_norms(model))
    if not _is_own(task):
        return shared_rate(named, "sgd" if has_norms else "adam", has_norms)
    if task.optimizer is not None or named is None:
        return named
    kind = _kind_of(task.model.optimizer)
    return named if kind is None else shared_rate(named, kind, has_norms)


class Rates:
    """The learning rate of each step: the task's own schedule, that of the compiled optimizer, or a cosine with warm-up."""

    def __init__(self, task: Task, optimizer: Any, highest: float | None, steps: int) -> None:
        self.optimizer, self.steps = optimizer, steps
        self.schedule = task.scheduler(optimizer, steps) if task.scheduler else None
        is_scheduled = isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)
        self.is_fixed = is_scheduled and self.schedule is None and highest is None
        if not self.is_fixed:
            self.own = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            self.highest = highest or self.own

    @property
    def can_be_renewed(self) -> bool:
        """Can the optimizer begin another training? Not with a schedule, and not one that may look at channels that are gone."""
        return self.can_be_shortened and _kind_of(self.optimizer) is not None

    @property
    def can_be_shortened(self) -> bool:
        """Does the rate follow the length of the training? A schedule of the user's does not."""
        return self.schedule is None and not self.is_fixed

    def renewed(self, highest: float | None, steps: int) -> Rates:
        """Those of another training by the same optimizer."""
        other = copy.copy(self)
        other.highest, other.steps = highest or self.own, steps
        return other

    def set(self, step: int) -> None:
        """Give the optimizer its rate for a step."""
        if not self.is_fixed:
            rate = self.schedule(step) if self.schedule else self.highest * cosine_share(min(step, self.steps), self.steps)
            self.optimizer.learning_rate = float(rate)


def _kind_of(optimizer: Any) -> OptimizerKind | None:
    if isinstance(optimizer, keras.optimizers.SGD):
        return "sgd"
    return "adam" if isinstance(optimizer, keras.optimizers.Adam) else None


def _is_own(task: Task) -> bool:
    return task.optimizer is not None or (task.loss is None and is_compiled(task.model))


def _default(model: keras.Model, gradient_norm: float) -> Any:
    """SGD for networks with batch norm, AdamW for others, as for PyTorch."""
    if batch_norms(model):
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": SGD_DECAY}
        return _sgd()(SGD_RATE, **options, global_clipnorm=gradient_norm)
    return keras.optimizers.AdamW(ADAM_RATE, weight_decay=ADAMW_DECAY, global_clipnorm=gradient_norm)


def _like(optimizer: Any, highest: float | None, gradient_norm: float, *, keeps_schedule: bool) -> Any:
    """A new optimizer of the same settings, which clips gradients if the user's does not."""
    config = optimizer.get_config()
    if highest or not keeps_schedule:
        config["learning_rate"] = highest or float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    if not any(config.get(name) for name in CLIPPING):
        config["global_clipnorm"] = gradient_norm
    kind = type(optimizer)
    return (_sgd() if kind is keras.optimizers.SGD else kind).from_config(config)


def _sgd() -> Any:
    return FusedSGD if is_tensorflow_on_a_cpu() else keras.optimizers.SGD


class FusedSGD(keras.optimizers.SGD):
    """Keras' SGD, with TensorFlow's own operation for a step with momentum.

    Keras makes a dozen operations of it for every variable. Without them a tenth less is traced for a MobileNetV2.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable and its momentum in place."""
        import tensorflow as tf

        if not self.momentum or isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(gradient, variable.dtype),
            momentum=tf.cast(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


def _decays(variable: Any) -> bool:
    return len(variable.shape) > 1 and variable.name != "factor"
