"""Fine-tuning a candidate: calibrated ranges, one cycle of training with the original as teacher, fresh batch-norm statistics."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import keras
import numpy as np

from autocompress.errors import DivergedError
from autocompress.frameworks.base import Progress, TuneSettings
from autocompress.frameworks.hopeless import Prospects
from autocompress.frameworks.keras.batches import batch_norms, training_batches
from autocompress.frameworks.keras.calls import calls_replaced, in_mode
from autocompress.frameworks.keras.fused import fused_norms
from autocompress.frameworks.keras.graph import rebuild
from autocompress.frameworks.keras.losses import Objective, loss_of
from autocompress.frameworks.keras.nodes import graph_of
from autocompress.frameworks.keras.optimize import Rates, optimizer_of
from autocompress.frameworks.keras.reestimate import calibrate_ranges, reestimate_batch_norm
from autocompress.frameworks.keras.resting import predicted
from autocompress.frameworks.keras.simulate import set_progress, share_binary_scales
from autocompress.frameworks.keras.strided import subsampled
from autocompress.frameworks.pace import Pace
from autocompress.frameworks.schedule import gradual_epochs
from autocompress.task import Task

WORTH_TRACING = 20
"""Steps of a training from which it pays to make a graph of a step; that takes as long as a dozen steps without one."""

AroundStep = Callable[[], None]
"""Called before or after every step of the optimizer."""


def fine_tune(task: Task, model: keras.Model, original: keras.Model, settings: TuneSettings, progress: Progress) -> int:
    """Train a simulated model in place.

    Args:
        task: with data and loss.
        model: the candidate.
        original: the task's model as a graph.
        settings: how long and how hard.
        progress: told the finished fraction.

    Returns:
        How many epochs it was trained for.

    Raises:
        TaskError: there is no loss.
        DivergedError: the loss is not a number.
        HopelessError: the settings ask for an early end, and the first epoch was in vain.
    """
    make_repeatable(model, settings.seed)
    share_binary_scales(model, settings.binarization == "dorefa")
    calibrate_ranges(task, model, trains=task.fine_tune is None)
    teacher = teacher_of(original)
    if task.fine_tune is not None:
        task.fine_tune(model, teacher=teacher, epochs=settings.epochs)
        epochs = settings.epochs
    else:
        epochs = Trainer(task, model, settings, teacher).run(progress)
    set_progress(model, 1.0)
    reestimate_batch_norm(model, task)
    progress(1.0)
    return epochs


def teacher_of(original: keras.Model) -> keras.Model:
    """A copy of a graph that is not trained."""
    teacher = rebuild(original, lambda name, layer: None)
    teacher.trainable = False
    return teacher


def make_repeatable(model: keras.Model, seed: int) -> None:
    """Seed Keras and every layer that draws random numbers."""
    keras.utils.set_random_seed(seed)
    _seed_layers(model, seed)


def make_epoch_repeatable(model: keras.Model, seed: int) -> None:
    """The same for an epoch of a training that goes on.

    TensorFlow's own seed stays: with another it prepares every compiled step anew, which takes as long as a dozen steps. What a
    user draws from TensorFlow itself is therefore not repeated.
    """
    if keras.backend.backend() == "tensorflow":
        random.seed(seed)
        np.random.seed(seed)
    else:
        keras.utils.set_random_seed(seed)
    _seed_layers(model, seed)


def _seed_layers(model: keras.Model, seed: int) -> None:
    states = [variable for variable in model.variables if variable.name == "seed_generator_state"]
    for index, state in enumerate(states):
        state.assign(np.array([seed, index], dtype=state.dtype))


class Trainer:
    """One fine-tuning by Keras' own `fit`, and the steps that are done."""

    def __init__(self, task: Task, model: keras.Model, settings: TuneSettings, teacher: keras.Model) -> None:
        self.task, self.model, self.teacher, self.settings = task, model, teacher, settings
        self.epoch_steps, self.done = task.splits["train"].batch_count, 0
        self.steps = settings.epochs * self.epoch_steps
        self.student = Student(graph_of(model).input, graph_of(model).output, name=model.name)
        self.student.objective = Objective(task, model, teacher, settings)
        optimizer = optimizer_of(task, model, settings.learning_rate, settings.gradient_norm)
        self.rates = Rates(task, optimizer, settings.learning_rate, self.steps)
        eagerly = self.steps < WORTH_TRACING
        options = {"metrics": _metrics_of(task), "jit_compile": False, "run_eagerly": eagerly}
        optimizer.build(model.trainable_variables)  # or TensorFlow traces the first step twice
        self.student.compile(optimizer, **loss_of(task), **options)

    def can_be_renewed(self, settings: TuneSettings) -> bool:
        """Would another training of these settings take the same steps, and need nothing beside them?"""
        is_watched = self.task.callbacks is not None or (settings.stop_hopeless and settings.epochs > 1)
        distances = [(one.distillation, one.feature_distillation) for one in (settings, self.settings)]
        takes_the_same = distances[0] == distances[1] and not gradual_epochs(settings)
        return takes_the_same and not is_watched and self.rates.can_be_renewed

    def renewed(self, settings: TuneSettings) -> Trainer:
        """Another training of the model by the step that is compiled, with the optimizer that is part of it."""
        other = copy.copy(self)
        other.settings, other.steps, other.done = settings, settings.epochs * self.epoch_steps, 0
        other.rates = self.rates.renewed(settings.learning_rate, other.steps)
        return other

    def run(self, progress: Progress, after_step: AroundStep | None = None) -> int:
        """All epochs, or as many as there is time for.

        Returns:
            How many.

        Raises:
            DivergedError: the loss is not a number.
            HopelessError: the settings ask for an early end, and the first epoch was in vain.
        """
        own = self.task.callbacks() if self.task.callbacks is not None else []
        pace = Pace(self.settings.epochs, self.settings.deadline if self.rates.can_be_shortened else None)
        course = _Course(self, progress, pace, after_step)
        self._fit(np.random.default_rng(self.settings.seed), self.settings.epochs, [course, *own])
        return pace.done

    def take(self, epochs: int) -> None:
        """Let the training be so many epochs long."""
        self.steps = self.rates.steps = epochs * self.epoch_steps

    def epoch(self, generator: np.random.Generator, progress: Progress, before_step: AroundStep) -> None:
        """One pass over the training data, without the user's callbacks.

        Args:
            generator: of the order of the data.
            progress: told the finished fraction of all epochs.
            before_step: called before every step.

        Raises:
            DivergedError: the loss is not a number.
        """
        self._fit(generator, 1, [_Course(self, progress, before_step=before_step)])

    def _fit(self, generator: np.random.Generator, epochs: int, callbacks: list[Any]) -> None:
        features = self.student.objective.features
        with ExitStack() as stack:
            stack.enter_context(fused_norms(self.model, self.teacher))
            stack.enter_context(subsampled(self.model))
            if self.task.splits["train"].comes_alone:  # a single sample has no statistics; the original's stand still
                stack.enter_context(calls_replaced(batch_norms(self.model), in_mode(training=False)))
            if features is not None:
                stack.enter_context(features.watched())
            self.student.fit(
                self._batches(generator),
                epochs=epochs,
                steps_per_epoch=self.epoch_steps,
                callbacks=callbacks,
                shuffle=False,
                verbose=0,
            )

    def _batches(self, generator: np.random.Generator) -> Iterator[tuple[Any, ...]]:
        """Batches without an end, in the form that `fit` takes."""
        while True:
            for batch in training_batches(self.task, self.model, generator):
                inputs = batch.inputs if isinstance(batch.inputs, dict) or len(batch.inputs) > 1 else batch.inputs[0]
                yield (inputs, batch.targets) if batch.weights is None else (inputs, batch.targets, batch.weights)


class Student(keras.Model):
    """The candidate's layers, with a loss that knows the teacher."""

    objective: Objective

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The compiled loss, mixed with the distance from the teacher."""
        own = super().compute_loss(x, y, y_pred, sample_weight, training)
        return self.objective.mixed(own, x, y_pred)


class _Course(keras.callbacks.Callback):
    """What happens around every step, and after the first epoch."""

    def __init__(
        self,
        trainer: Trainer,
        progress: Progress,
        pace: Pace | None = None,
        after_step: AroundStep | None = None,
        before_step: AroundStep | None = None,
    ) -> None:
        super().__init__()
        self.trainer, self.progress, self.pace = trainer, progress, pace
        self.after_step, self.before_step = after_step, before_step
        watched = trainer.settings.stop_hopeless and trainer.settings.epochs > 1 and pace is not None
        self.prospects = Prospects(trainer.task, trainer.teacher, predicted) if watched else None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Learning rate, zeros and binary layers of the step."""
        self._synchronize()
        trainer = self.trainer
        if self.before_step is not None:
            self.before_step()
        trainer.rates.set(trainer.done)
        set_progress(trainer.model, min(trainer.done / trainer.steps, 1.0))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the loss, and go on."""
        trainer, loss = self.trainer, float((logs or {})["loss"])  # the epoch's mean, in which a NaN stays
        if not np.isfinite(loss):
            raise DivergedError(
                f"The loss became {loss} after {trainer.done} of {trainer.steps} steps; a smaller learning_rate may help."
            )
        trainer.done += 1
        if self.after_step is not None:
            self._synchronize()
            self.after_step()
        if self.pace is not None:
            self.pace.end_step()
            if self.pace.is_over():
                self.model.stop_training = True
                return
        self.progress(min(trainer.done / trainer.steps, 1.0))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Is there time to go on, and is it worth it?"""
        if self.pace is None or self.pace.is_over():
            return
        self.pace.end_epoch()
        self.trainer.take(self.pace.length)
        if self.pace.is_over():
            self.model.stop_training = True
        elif epoch == 0 and self.prospects is not None:
            self._synchronize()
            self.prospects.require(self.trainer.model)

    def _synchronize(self) -> None:
        """On JAX, `fit` holds the numbers outside of the variables."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()


def _metrics_of(task: Task) -> Any:
    """New metrics like those that the model was compiled with, where the user's callbacks may look at them."""
    config = task.model.get_compile_config() if task.callbacks is not None and task.model.compiled else {}
    return keras.saving.deserialize_keras_object(config["metrics"]) if config.get("metrics") else None
