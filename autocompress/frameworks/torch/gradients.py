"""Gradients of the task's loss at the original's weights, for the criteria that ask what a channel does to the loss."""

from __future__ import annotations

import copy
from itertools import islice

import numpy as np
import torch

from autocompress.data import map_arrays
from autocompress.frameworks.torch.arithmetic import FLOAT32
from autocompress.frameworks.torch.batches import training_batches
from autocompress.frameworks.torch.calls import call
from autocompress.frameworks.torch.losses import default_loss
from autocompress.task import Task

BATCHES = 10


def mean_gradients(task: Task, squared: bool) -> dict[str, torch.Tensor]:
    """Parameter → mean over some training batches of the gradient, or of its square."""
    model = copy.deepcopy(task.model).eval()
    FLOAT32.arrange(model)  # with channels last some gradients are not to be trusted, see strided.py
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    loss_of = task.loss or default_loss
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    count = 0
    for batch in islice(training_batches(task, model, np.random.default_rng(0)), BATCHES):
        model.zero_grad()
        inputs = map_arrays(batch.inputs, torch.Tensor.contiguous)
        torch.as_tensor(loss_of(call(model, inputs), batch.targets)).backward()
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad**2 if squared else parameter.grad
        count += 1
    return {name: total / max(1, count) for name, total in sums.items()}
