"""What is done to a model for a user's own training script."""

from __future__ import annotations

from typing import Any

import keras

from autocompress.frameworks.base import Binarization, Candidate
from autocompress.frameworks.keras.framework import KerasFramework
from autocompress.frameworks.keras.reestimate import calibrate_ranges, reestimate_batch_norm
from autocompress.frameworks.keras.simulate import set_progress, share_binary_scales
from autocompress.structure import Structure
from autocompress.task import Task


def structure_of(framework: KerasFramework, task: Task, *, prunable: bool) -> Structure:
    """Layers and, where something is to be pruned, proven groups: the proofs take longer than all else."""
    return framework.structure(task) if prunable else Structure(framework.layers(task), ())


def make_ready(candidate: Candidate, task: Task, binarization: Binarization) -> None:
    """Batch-norm statistics of the channels that are left, and ranges of the simulated inputs, from the calibration data."""
    share_binary_scales(candidate.model, binarization == "dorefa")
    if candidate.removed:
        reestimate_batch_norm(candidate.model, task)
    calibrate_ranges(task, candidate.model)


class Schedule(keras.callbacks.Callback):
    """Counts the batches of a training, and tells the simulation how much of it is done."""

    def __init__(self, model: keras.Model, steps: int) -> None:
        super().__init__()
        self.simulated, self.steps, self.done = model, steps, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """What the policy does gradually."""
        if keras.backend.backend() == "jax":  # there, `fit` holds the numbers outside of the variables
            self.model.jax_state_sync()
        set_progress(self.simulated, min(self.done / self.steps, 1.0))
        self.done += 1

    def on_train_end(self, logs: Any = None) -> None:
        """Everything is in force."""
        set_progress(self.simulated, min(self.done / self.steps, 1.0))
