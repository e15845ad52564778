"""In what arithmetic and order of memory a model is computed: what is not exact is measured on a few steps, never assumed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from autocompress.data import Batch, map_arrays
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.torch.batches import training_batches
from autocompress.frameworks.torch.calls import device_of
from autocompress.frameworks.torch.losses import Objective
from autocompress.frameworks.torch.strided import Subsampling, has_strided_pixels
from autocompress.frameworks.torch.teacher import Teacher
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

    @contextmanager
    def context(self, device: torch.device, has_strided_pixels: bool) -> Iterator[None]:
        """In which a loss is computed.

        Args:
            device: of the model.
            has_strided_pixels: the model may hold strided convolutions of one pixel.
        """
        with ExitStack() as stack:
            if self.bf16:
                stack.enter_context(torch.autocast(device.type, torch.bfloat16))
            if has_strided_pixels and device.type == "cpu" and (self.channels_last or self.bf16):
                stack.enter_context(Subsampling())
            yield

    def teacher(self, task: Task, model: nn.Module, settings: TuneSettings) -> Teacher:
        """The original as a teacher: PyTorch has to call it in another arithmetic than float32, and for its features."""
        return Teacher(task, model, quick=not self.bf16 and not settings.feature_distillation)

    def arrange(self, model: nn.Module) -> None:
        """Put a model's weights into the order, in place."""
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        model.to(memory_format=order)  # type: ignore[call-overload]

    def arrange_computed(self, model: nn.Module) -> None:
        """The same for a model whose weights are computed from others, which get the gradients."""
        if not self.channels_last:
            return
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None and weight.ndim == 4:
                    registry: dict[str, Any] = module._parameters
                    registry[name] = weight.to(memory_format=torch.channels_last)

    @contextmanager
    def arranged(self, model: nn.Module) -> Iterator[None]:
        """Within it a model's weights are in the order."""
        if not self.channels_last:
            yield
            return
        self.arrange(model)
        try:
            yield
        finally:
            FLOAT32.arrange(model)

    def ordered(self, inputs: Any) -> Any:
        """The tensors of inputs or of a batch, images among them in the order."""
        if not self.channels_last:
            return inputs
        return inputs.map(_channels_last) if isinstance(inputs, Batch) else map_arrays(inputs, _channels_last)


def _channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


FLOAT32 = Arithmetic()
UNSOUND, SMALL_PART = 2.0, 0.05
"""Gradients that differ by more than this multiple of themselves, or of this part of all, are nonsense: an untrained DenseNet's
differ by 0.9 in bfloat16, those of trained networks by 0.1."""
CANDIDATES = (Arithmetic(bf16=True, channels_last=True), Arithmetic(bf16=True), Arithmetic(channels_last=True))
_FOUND: WeakKeyDictionary[Task, Arithmetic] = WeakKeyDictionary()
"""Probed once per task, so that all candidates of a run are trained alike."""
_RUNS_CHANNELS_LAST: WeakKeyDictionary[Task, bool] = WeakKeyDictionary()


def exact_arithmetic(task: Task) -> Arithmetic:
    """Float32, on a CPU with channels last where the task allows it.

    PyTorch computes a convolution of 16 channels at 28 × 28 there four times as fast; none of many shapes was slower.
    """
    return Arithmetic(channels_last=device_of(task.model).type == "cpu" and runs_channels_last(task))


def runs_channels_last(task: Task) -> bool:
    """Whether a training step goes through with channels last: a `view` of the user's may ask for the usual order."""
    if task not in _RUNS_CHANNELS_LAST:
        _RUNS_CHANNELS_LAST[task] = any(weight.ndim == 4 for weight in task.model.parameters()) and _goes_through(task)
    return _RUNS_CHANNELS_LAST[task]


def _goes_through(task: Task) -> bool:
    settings = TuneSettings(epochs=1, learning_rate=None, distillation=0.5)
    with torch.random.fork_rng():  # a loader that shuffles draws from it
        batch = next(training_batches(task, task.model, np.random.default_rng(0)), None)
        if batch is None:
            return False
        try:
            _seconds(Arithmetic(channels_last=True), task, task.model, task.model, settings, batch, steps=1)
        except Exception:  # of the user's code; what fails in the usual order as well is told where it trains
            return False
    return True


def fastest_arithmetic(task: Task, model: nn.Module, teacher: nn.Module, settings: TuneSettings, batch: Batch) -> Arithmetic:
    """The fastest arithmetic for a task's steps; the exact one where none is clearly faster."""
    if task not in _FOUND:
        best = exact_arithmetic(task)
        shortest = _seconds(best, task, model, teacher, settings, batch)
        for one in CANDIDATES:
            if one == best or (one.channels_last and not runs_channels_last(task)):
                continue
            seconds = _seconds(one, task, model, teacher, settings, batch)
            if seconds < WORTH_IT * shortest and (not one.bf16 or _is_sound(one, task, model, teacher, settings, batch)):
                best, shortest = one, seconds
        _FOUND[task] = best
    return _FOUND[task]


def _is_sound(
    arithmetic: Arithmetic, task: Task, model: nn.Module, teacher: nn.Module, settings: TuneSettings, batch: Batch
) -> bool:
    """Are its gradients those of float32, as far as rounding and chance go?

    PyTorch 2.13 gives what the memory holds for the kernels of some convolutions in bfloat16: strided ones on a map of one pixel,
    and grouped ones with dilation.
    """
    if any(isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.dilation) > 1 for module in model.modules()):
        return False
    ways = (FLOAT32, 0), (FLOAT32, 1), (arithmetic, 0)
    found = [_gradients(way, task, model, teacher, settings, batch, seed) for way, seed in ways]
    whole = math.hypot(*(float(gradient.norm()) for gradient in found[0]))
    for exact, again, other in zip(*found, strict=True):
        usual = max(float(exact.norm()), float((again - exact).norm()), SMALL_PART * whole)
        if not float((other - exact).norm()) <= UNSOUND * usual:  # a NaN is unsound
            return False
    return True


def _gradients(
    arithmetic: Arithmetic, task: Task, model: nn.Module, teacher: nn.Module, settings: TuneSettings, batch: Batch, seed: int
) -> list[torch.Tensor]:
    """Of a step on a copy."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        copied, step = _prepared(arithmetic, task, model, teacher, settings, batch, quick=False)
        step()
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in copied.parameters()]


def _seconds(
    arithmetic: Arithmetic,
    task: Task,
    model: nn.Module,
    teacher: nn.Module,
    settings: TuneSettings,
    batch: Batch,
    steps: int = WARM_UP + TIMED,
) -> float:
    """The shortest of some steps on a copy. A step of the optimizer costs the same in all."""
    is_worth_it = steps > 1  # a single step does not pay for a conversion of the teacher
    model, step = _prepared(arithmetic, task, model, teacher, settings, batch, quick=is_worth_it)
    times = []
    for _ in range(steps):
        start = _clock(device_of(model))
        step()
        times.append(_clock(device_of(model)) - start)
    return min(times[-TIMED:])


def _prepared(
    arithmetic: Arithmetic, task: Task, model: nn.Module, teacher: nn.Module, settings: TuneSettings, batch: Batch, *, quick: bool
) -> tuple[nn.Module, Callable[[], None]]:
    """A copy of a model, and what adds a batch's gradients to those of its parameters."""
    model, teacher = copy.deepcopy(model).train(), copy.deepcopy(teacher).eval()
    arithmetic.arrange(model)
    arithmetic.arrange(teacher)
    taught = arithmetic.teacher(task, teacher, settings) if quick else Teacher(task, teacher, quick=False)
    objective, batch = Objective(task, model, taught, settings), arithmetic.ordered(batch)
    strided = has_strided_pixels(model)

    def step() -> None:
        with arithmetic.context(device_of(model), strided):
            loss = objective(batch)
        loss.backward()

    return model, step


def _clock(device: torch.device) -> float:
    """CPU seconds of this process, which others cannot disturb; elsewhere seconds, once everything is done."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
