"""In what arithmetic a training step is fastest: measured on a few steps, never assumed."""

from __future__ import annotations

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from autocompress.data import Batch
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.torch.calls import device_of
from autocompress.frameworks.torch.losses import Objective
from autocompress.task import Task

WARM_UP, TIMED = 2, 3
WORTH_IT = 0.8
"""Another arithmetic is taken only where a step takes less than this fraction of the best so far: noise decides nothing."""


@dataclass(frozen=True)
class Arithmetic:
    """How the steps of a training are computed.

    Attributes:
        bf16: convolutions and matrix products in bfloat16; weights, grids and losses stay in float32.
        channels_last: images in memory pixel by pixel.
    """

    bf16: bool = False
    channels_last: bool = False

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """In which a loss is computed."""
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def arrange(self, model: nn.Module) -> None:
        """Put a model's weights into the order, in place."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        model.to(memory_format=order)  # type: ignore[call-overload]

    def ordered(self, batch: Batch) -> Batch:
        """A batch with its images in the order."""
        if not self.channels_last:
            return batch
        return batch.map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)


FLOAT32 = Arithmetic()
CANDIDATES = (Arithmetic(bf16=True, channels_last=True), Arithmetic(bf16=True), Arithmetic(channels_last=True))
_FOUND: WeakKeyDictionary[Task, Arithmetic] = WeakKeyDictionary()
"""Probed once per task, so that all candidates of a run are trained alike."""


def fastest_arithmetic(task: Task, model: nn.Module, teacher: nn.Module, settings: TuneSettings, batch: Batch) -> Arithmetic:
    """The fastest arithmetic for a task's steps; float32 where none is clearly faster."""
    if task not in _FOUND:
        best, shortest = FLOAT32, _seconds(FLOAT32, task, model, teacher, settings, batch)
        for one in CANDIDATES:
            if one.channels_last and any(parameter.ndim > 4 for parameter in model.parameters()):  # an order of images alone
                continue
            seconds = _seconds(one, task, model, teacher, settings, batch)
            if seconds < WORTH_IT * shortest:
                best, shortest = one, seconds
        _FOUND[task] = best
    return _FOUND[task]


def _seconds(
    arithmetic: Arithmetic, task: Task, model: nn.Module, teacher: nn.Module, settings: TuneSettings, batch: Batch
) -> float:
    """The shortest of some steps on a copy. A step of the optimizer costs the same in all."""
    model, teacher = copy.deepcopy(model).train(), copy.deepcopy(teacher)
    arithmetic.arrange(model)
    arithmetic.arrange(teacher)
    objective, batch, device = Objective(task, model, teacher, settings), arithmetic.ordered(batch), device_of(model)
    times = []
    for _ in range(WARM_UP + TIMED):
        start = _clock(device)
        with arithmetic.context(device):
            loss = objective(batch)
        loss.backward()
        times.append(_clock(device) - start)
    return min(times[WARM_UP:])


def _clock(device: torch.device) -> float:
    """CPU seconds of this process, which others cannot disturb; elsewhere seconds, once everything is done."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
