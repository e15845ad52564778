"""What a model remembers of its data, taken anew without training: batch-norm statistics and the ranges of quantized inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress.data import Batch
from autocompress.frameworks.calibrating import calibrating, calibration_count, for_batch_norms
from autocompress.frameworks.torch.arithmetic import exact_arithmetic
from autocompress.frameworks.torch.batches import batch_norms, comes_alone, training_batches
from autocompress.frameworks.torch.calls import call, device_of, tensors
from autocompress.frameworks.torch.simulate import (
    forget_ranges,
    has_coarse_inputs,
    has_unseen_inputs,
    observes_in_training,
    simulated_inputs,
)
from autocompress.task import Task


def reestimate(model: nn.Module, task: Task) -> None:
    """Take all of it anew, in place: statistics of what runs unquantized, then ranges.

    8 bits hardly move a statistic; where inputs have fewer, the statistics are taken once more with the inputs on their grids.
    """
    forget_ranges(model)
    reestimate_batch_norm(model, task)
    calibrate_ranges(task, model)
    if has_coarse_inputs(model):
        reestimate_batch_norm(model, task)
    model.eval()


def calibrate_ranges(task: Task, model: nn.Module, *, trains: bool = False) -> None:
    """Let the inputs that were never observed see some batches, so that training starts from the post-training model.

    Args:
        task: with the data.
        model: whose inputs are simulated.
        trains: a training follows, in which most of them go on observing, behind each batch's own statistics. Those that a
            candidate has from a larger model may be far off.
    """
    if not has_unseen_inputs(model):
        return
    device, arithmetic, quantizers = device_of(model), exact_arithmetic(task), simulated_inputs(model)
    count = calibration_count(quantizers, trains and observes_in_training(model))
    batches: Iterable[Batch] = task.calibration_split.batches()
    norms = _norms_that_train(model) if trains and task.calibration_split is task.splits["train"] else []
    model.eval()
    if norms and not comes_alone(task):
        batches = (batch for batch in batches if batch.size > 1)  # a single sample has no statistics
        for norm in norms:
            norm.train()
    with torch.no_grad(), arithmetic.arranged(model), calibrating(quantizers):
        for batch in islice(batches, count):
            call(model, arithmetic.ordered(tensors(batch.inputs, device)))
    model.eval()


def _norms_that_train(model: nn.Module) -> list[Any]:
    """The batch norms that do not stay in evaluation mode in a training. The model is left training."""
    model.train()
    return [norm for norm in batch_norms(model) if norm.training]


def reestimate_batch_norm(model: nn.Module, task: Task) -> None:
    """Replace the running statistics of batch norms by plain averages over some training batches."""
    norms = [norm for norm in batch_norms(model) if norm.track_running_stats]
    if not norms or comes_alone(task):
        return
    model.eval()
    momenta, before = [norm.momentum for norm in norms], [copy.deepcopy(norm.state_dict()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    arithmetic = exact_arithmetic(task)
    with torch.no_grad(), arithmetic.arranged(model):
        for batch in for_batch_norms(training_batches(task, model, np.random.default_rng(0))):
            call(model, arithmetic.ordered(batch.inputs))
    for norm, momentum, state in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        if not norm.num_batches_tracked:  # a single sample has no statistics
            norm.load_state_dict(state)
    model.eval()
