"""Fine-tuning a candidate: calibrated ranges, one cycle of training with the original as teacher, fresh batch-norm statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from autocompress.data import Batch
from autocompress.errors import DivergedError, TaskError
from autocompress.frameworks.base import Progress, TuneSettings
from autocompress.frameworks.hopeless import Prospects
from autocompress.frameworks.pace import Pace
from autocompress.frameworks.torch.arithmetic import FLOAT32, Arithmetic, exact_arithmetic, fastest_arithmetic
from autocompress.frameworks.torch.batches import batch_count, batch_norms, comes_alone, training_batches
from autocompress.frameworks.torch.calls import device_of, predicted
from autocompress.frameworks.torch.losses import Objective
from autocompress.frameworks.torch.optimize import default_optimizer, schedule_of
from autocompress.frameworks.torch.reestimate import calibrate_ranges, reestimate_batch_norm
from autocompress.frameworks.torch.schedule import Cosine
from autocompress.frameworks.torch.simulate import set_progress, share_binary_scales
from autocompress.frameworks.torch.strided import has_strided_pixels
from autocompress.task import Task

WORTH_PROBING = 100
"""Steps of a training from which it pays to look for the fastest arithmetic."""

AfterStep = Callable[[], None]
"""Called after every step of the optimizer."""


def fine_tune(
    task: Task, model: nn.Module, settings: TuneSettings, progress: Progress, after_step: AfterStep | None = None
) -> int:
    """Train a simulated model in place.

    Returns:
        How many epochs it was trained for.

    Raises:
        DivergedError: the loss is not a number.
        HopelessError: the settings ask for an early end, and the first epoch was in vain.
    """
    torch.manual_seed(settings.seed)
    share_binary_scales(model, settings.binarization == "dorefa")
    calibrate_ranges(task, model, trains=task.fine_tune is None)
    teacher = copy.deepcopy(task.model).eval()  # the user's model stays in the mode that it is in
    if task.fine_tune is not None:
        task.fine_tune(model, teacher=teacher, epochs=settings.epochs)
        epochs = settings.epochs
    else:
        epochs = Trainer(task, model, settings, teacher).run(progress, after_step)
    set_progress(model, 1.0)
    reestimate_batch_norm(model, task)
    model.eval()
    progress(1.0)
    return epochs


class Trainer:
    """Optimizer, schedule and objective of one fine-tuning, and the steps that are done."""

    def __init__(self, task: Task, model: nn.Module, settings: TuneSettings, teacher: nn.Module) -> None:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise TaskError("A model that is trained has a parameter that may change", "none", "Set requires_grad_(True).")
        self.task, self.model, self.teacher, self.settings = task, model, teacher, settings
        self.generator = np.random.default_rng(settings.seed)
        self.epoch_steps, self.done = batch_count(task), 0
        self.steps = settings.epochs * self.epoch_steps
        self.arithmetic = self._arithmetic()
        self.arithmetic.arrange(model)
        self.arithmetic.arrange(teacher)
        self.has_strided_pixels = has_strided_pixels(model)
        self.optimizer = task.optimizer(model.parameters()) if task.optimizer else default_optimizer(model)
        self.schedule = schedule_of(task, self.optimizer, settings.learning_rate, self.steps)
        self.objective = Objective(task, model, self.arithmetic.teacher(task, teacher, settings), settings)

    def run(self, progress: Progress, after_step: AfterStep | None = None) -> int:
        """All epochs, or as many as there is time for.

        Returns:
            How many.

        Raises:
            DivergedError: the loss is not a number.
            HopelessError: the settings ask for an early end, and the first epoch was in vain.
        """
        watched = self.settings.stop_hopeless and self.settings.epochs > 1
        prospects = Prospects(self.task, self.teacher, predicted) if watched else None
        pace = Pace(self.settings.epochs, self.settings.deadline if isinstance(self.schedule, Cosine) else None)
        while not pace.is_over():
            self._run_epoch(pace, progress, after_step)
            if pace.done == 1 and prospects is not None and not pace.is_over():
                prospects.require(self.model)
        self.objective.close()
        FLOAT32.arrange(self.model)
        return pace.done

    def _run_epoch(self, pace: Pace, progress: Progress, after_step: AfterStep | None) -> None:
        """One pass over the training data, or as much of it as there is time for."""
        self.to_training_mode()
        before = self.done
        for batch in self.batches():
            self.step(batch)
            if after_step is not None:
                after_step()
            pace.end_step()
            if pace.is_over():
                return
            progress(min(self.done / self.steps, 1.0))
        if self.done == before:
            rule = "A batch of the training data holds two samples, for the batch norms"
            raise TaskError(rule, "batches of one", "Set the loader's batch_size.")
        pace.end_epoch()
        self.steps = pace.length * self.epoch_steps
        if isinstance(self.schedule, Cosine):
            self.schedule.steps = self.steps

    def batches(self) -> Iterator[Batch]:
        """One pass over the training data."""
        return training_batches(self.task, self.model, self.generator)

    def step(self, batch: Batch) -> None:
        """One step of the optimizer.

        Raises:
            DivergedError: the loss is not a number.
        """
        set_progress(self.model, min(self.done / self.steps, 1.0))
        with self.arithmetic.context(device_of(self.model), self.has_strided_pixels):
            loss = self.objective(self.arithmetic.ordered(batch))
        if not torch.isfinite(loss):
            raise DivergedError(
                f"The loss became {loss.item()} after {self.done} of {self.steps} steps; a smaller learning_rate may help."
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimizer.step()
        if self.done < self.steps:
            self.schedule.step()
        self.done += 1

    def to_training_mode(self) -> None:
        """Let the model train; called before every epoch."""
        self.model.train()
        if comes_alone(self.task):  # a single sample has no statistics; the original's stand still
            for norm in batch_norms(self.model):
                norm.eval()

    def _arithmetic(self) -> Arithmetic:
        if self.settings.arithmetic == "f32" or self.steps < WORTH_PROBING:
            return exact_arithmetic(self.task)
        return fastest_arithmetic(self.task, self.model, self.teacher, self.settings, next(self.batches()))
