"""What a model remembers of its data, taken anew without training: batch-norm statistics and the ranges of quantized inputs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import keras
import numpy as np

from autocompress.data import Inputs, fitting, united
from autocompress.frameworks.calibrating import calibrating, calibration_count, for_batch_norms
from autocompress.frameworks.keras.batches import batch_norms, training_batches
from autocompress.frameworks.keras.calls import arrays, call, calls_replaced, in_mode
from autocompress.frameworks.keras.resting import resting
from autocompress.frameworks.keras.simulate import has_unseen_inputs, simulated_inputs
from autocompress.task import Task

LARGE_BATCH = 32
"""Samples of a batch whose own statistics are near those of all."""


def reestimate(model: keras.Model, task: Task) -> None:
    """Take all of it anew, in place: statistics of what runs unquantized, then ranges.

    8 bits hardly move a statistic; where inputs have fewer, the statistics are taken once more with the inputs on their grids.
    Where all have 8 and are calibrated with the training data, one pass gives both.
    """
    if _one_pass_will_do(model, task):
        reestimate_as_trained(model, task)
        return
    quantizers = simulated_inputs(model).values()
    for quantizer in quantizers:
        quantizer.forget()
    reestimate_batch_norm(model, task)
    calibrate_ranges(task, model)
    if any(quantizer.bits < 8 for quantizer in quantizers):
        reestimate_batch_norm(model, task)


def reestimate_as_trained(model: keras.Model, task: Task) -> None:
    """The same in one pass: ranges are those that a training observes, where each batch has its own statistics."""
    quantizers = simulated_inputs(model).values()
    for quantizer in quantizers:
        quantizer.forget()
    with calibrating(quantizers):
        reestimate_batch_norm(model, task)
    calibrate_ranges(task, model)  # of what has no batch norm


def calibrate_ranges(task: Task, model: keras.Model, *, trains: bool = False) -> None:
    """Let the inputs that were never observed see some batches, so that training starts from the post-training model.

    Args:
        task: with the data.
        model: whose inputs are simulated.
        trains: a training follows, in which all of them go on observing, behind a batch's own statistics. They are taken behind
            those of what is called together; those that a candidate has from a larger model may be far off.
    """
    if not has_unseen_inputs(model):
        return
    quantizers = simulated_inputs(model).values()
    batches = islice(task.calibration_split.batches(), calibration_count(quantizers, trains))
    inputs = (arrays(batch.inputs) for batch in batches)
    trained = trains and task.calibration_split is task.splits["train"]
    norms = _estimated(model, task) if trained else []
    with calibrating(quantizers), resting(model), calls_replaced(norms, in_mode(training=True)):
        for parts in fitting(inputs, of_one_size=True):
            _call_together(model, parts)


def reestimate_batch_norm(model: keras.Model, task: Task) -> None:
    """Replace the moving statistics of batch norms by plain averages over some training batches. Frozen ones keep theirs.

    Keras' default momentum of 0.99 takes hundreds of batches to forget what the statistics were before.
    """
    norms = _estimated(model, task)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    batches = for_batch_norms(training_batches(task, model, np.random.default_rng(0)))
    with resting(model), calls_replaced(norms, _averaging):
        for parts in fitting((batch.inputs for batch in batches), of_one_size=True):
            _call_together(model, parts)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _estimated(model: keras.Model, task: Task) -> list[keras.layers.BatchNormalization]:
    """The batch norms whose statistics follow the data: not the frozen ones, and none where a single sample has no statistics."""
    return [] if task.splits["train"].comes_alone else [norm for norm in batch_norms(model) if norm.trainable]


def _one_pass_will_do(model: keras.Model, task: Task) -> bool:
    """Are ranges that are observed behind a batch's own statistics like those behind the statistics of all?"""
    quantizers, train = simulated_inputs(model).values(), task.splits["train"]
    if not quantizers or any(quantizer.bits < 8 for quantizer in quantizers) or task.calibration_split is not train:
        return False
    return any(norm.trainable for norm in batch_norms(model)) and train.first_size >= LARGE_BATCH


def _call_together(model: keras.Model, parts: list[Inputs]) -> None:
    """Call a model with some batches as one. Ranges that are observed are those of each."""
    quantizers = simulated_inputs(model).values()
    for quantizer in quantizers:
        quantizer.together = len(parts)
    call(model, united(parts))
    for quantizer in quantizers:
        quantizer.together = 1


def _averaging(norm: keras.layers.Layer, original: Callable[..., Any]) -> Callable[..., Any]:
    """A norm in training mode; its statistics are in the end those of all that it was called with, of one batch or not."""
    seen, learning = 0, in_mode(training=True)(norm, original)

    def called(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        size = inputs.shape[0] or 1  # not known where a layer around it is traced
        norm.momentum = seen / (seen + size)
        seen += size
        return learning(inputs, *args, **kwargs)

    return called
