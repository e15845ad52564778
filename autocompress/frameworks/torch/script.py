"""What is done to a module for a user's own training script."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from autocompress.frameworks.base import Binarization, Candidate
from autocompress.frameworks.torch.calls import device_of, example_inputs
from autocompress.frameworks.torch.framework import TorchFramework, require_plain
from autocompress.frameworks.torch.layers import layers_of
from autocompress.frameworks.torch.reestimate import calibrate_ranges, reestimate_batch_norm
from autocompress.frameworks.torch.simulate import set_progress, share_binary_scales
from autocompress.structure import Structure
from autocompress.task import Task

STEPS, STEPS_DONE = "autocompress_steps", "autocompress_steps_done"
"""Buffers of the root module."""


def structure_of(task: Task, *, prunable: bool) -> Structure:
    """Layers and, where something is to be pruned, proven groups: the proofs take longer than all else."""
    require_plain(task.model)
    if prunable:
        return TorchFramework().inspect(task)
    return Structure(layers_of(copy.deepcopy(task.model), example_inputs(task, 1)), ())


def make_ready(candidate: Candidate, task: Task, binarization: Binarization) -> None:
    """Batch-norm statistics of the channels that are left, and ranges of the simulated inputs, from the calibration data."""
    share_binary_scales(candidate.model, binarization == "dorefa")
    if candidate.removed:
        reestimate_batch_norm(candidate.model, task)
    calibrate_ranges(task, candidate.model)


def follow_schedules(model: nn.Module, steps: int) -> None:
    """Let the module count its training batches, and tell its simulation how much of the training is done.

    The count is part of its state, so a training that is resumed from a checkpoint goes on where it was.
    """
    model.register_buffer(STEPS_DONE, torch.zeros((), dtype=torch.int64, device=device_of(model)))
    model.register_buffer(STEPS, torch.tensor(steps, device=device_of(model)))
    model.register_forward_pre_hook(_advance)


def leave_schedules(model: nn.Module) -> None:
    """Take off what `follow_schedules` added, in place."""
    if hasattr(model, STEPS):
        del model._buffers[STEPS_DONE], model._buffers[STEPS]
        hooks = model._forward_pre_hooks
        model._forward_pre_hooks = type(hooks)((key, hook) for key, hook in hooks.items() if hook is not _advance)


def _advance(model: nn.Module, _: Any) -> None:
    if model.training and torch.is_grad_enabled():
        done, steps = model.get_buffer(STEPS_DONE), model.get_buffer(STEPS)
        set_progress(model, min(int(done) / int(steps), 1.0))
        done += 1
