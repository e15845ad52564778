"""What is done to a module for a user's own training script."""

from __future__ import annotations

import copy
from itertools import islice

import torch
from torch import nn

from autocompress.frameworks.base import Candidate
from autocompress.frameworks.torch.calls import call, device_of, example_inputs, tensors
from autocompress.frameworks.torch.finetune import reestimate_batch_norm
from autocompress.frameworks.torch.framework import TorchFramework, require_plain
from autocompress.frameworks.torch.inspect import layers_of
from autocompress.frameworks.torch.simulate import SimulatedInput
from autocompress.structure import Structure
from autocompress.task import Task

CALIBRATION_BATCHES = 8


def structure_of(task: Task, *, prunable: bool) -> Structure:
    """Layers and, where something is to be pruned, proven groups: the proofs take longer than all else."""
    require_plain(task.model)
    if prunable:
        return TorchFramework().inspect(task)
    return Structure(layers_of(copy.deepcopy(task.model), example_inputs(task, 1)), ())


def make_ready(candidate: Candidate, task: Task) -> None:
    """Batch-norm statistics of the channels that are left, and ranges of the simulated inputs, from the calibration data."""
    if candidate.removed:
        reestimate_batch_norm(candidate.model, task)
    calibrate_ranges(task, candidate.model)


def calibrate_ranges(task: Task, model: nn.Module) -> None:
    """Let the simulated inputs see some batches; nothing else of the module changes."""
    model.eval()
    for module in model.modules():
        if isinstance(module, SimulatedInput):
            module.train()
    device = device_of(model)
    with torch.no_grad():
        for batch in islice(task.calibration_split.batches(), CALIBRATION_BATCHES):
            call(model, tensors(batch.inputs, device))
    model.eval()
