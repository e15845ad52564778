"""What the original says of a batch, for a candidate to learn from."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import openvino as ov
import torch
from torch import nn

from autocompress.data import map_arrays
from autocompress.device import Target
from autocompress.frameworks.torch.calls import call, device_of, outputs_of
from autocompress.frameworks.torch.convert import convert
from autocompress.target.evaluate import differ_by_rounding
from autocompress.target.runtime import compile_model
from autocompress.task import Task

CHECKED_FIRST, CHECKED_EVERY = 2, 50
"""Batches on which a training holds OpenVINO's outputs against PyTorch's: the first ones, and then one of so many. A conversion
follows the batch that it was made with, so a network that decides by its data says something else on another."""


@dataclass
class _Quick:
    """The original in OpenVINO, for inputs of one form; None where OpenVINO does not reproduce it."""

    form: Any
    compiled: ov.CompiledModel | None


_QUICK: WeakKeyDictionary[Task, _Quick] = WeakKeyDictionary()
"""Made once per task: all candidates have one teacher."""


class Teacher:
    """The original's outputs.

    On a CPU OpenVINO computes them in float32, at the shapes of a training's first batch: it fuses what PyTorch does one by one,
    and takes a third of the time for a MobileNetV2. Batches of other shapes, and networks whose outputs it does not reproduce,
    are left to PyTorch.

    Args:
        task: of the original.
        model: a copy of the original, in evaluation mode.
        quick: False where PyTorch itself has to call the model: for its features, or in another arithmetic.
    """

    def __init__(self, task: Task, model: nn.Module, *, quick: bool) -> None:
        self._task, self.model, self._batches = task, model, 0
        self._may_be_quick = quick and device_of(model).type == "cpu"

    def __call__(self, inputs: Any) -> list[torch.Tensor]:
        """The output tensors, in order."""
        quick = self._known(inputs) if self._may_be_quick else None
        if quick is None or quick.compiled is None:
            return self._called(inputs)
        found = _inferred(quick.compiled, inputs)
        if self._is_checked() and not self._agrees(found, inputs):
            found = self._made_anew(quick, inputs)
        return self._called(inputs) if found is None else found

    def _called(self, inputs: Any) -> list[torch.Tensor]:
        with torch.no_grad():
            return outputs_of(call(self.model, inputs))

    def _known(self, inputs: Any) -> _Quick | None:
        """What there is for the form of the inputs: that of the first batch of the first training of a task."""
        form = _form(inputs)
        if self._task not in _QUICK:
            _QUICK[self._task] = _Quick(form, _compiled(self.model, inputs))
        quick = _QUICK[self._task]
        return quick if quick.form == form else None

    def _is_checked(self) -> bool:
        self._batches += 1
        return self._batches <= CHECKED_FIRST or self._batches % CHECKED_EVERY == 0

    def _made_anew(self, quick: _Quick, inputs: Any) -> list[torch.Tensor] | None:
        """The outputs of another conversion on a training's first batch, since the original may have been trained; else none."""
        quick.compiled = _compiled(self.model, inputs) if self._batches == 1 else None
        found = None if quick.compiled is None else _inferred(quick.compiled, inputs)
        if not self._agrees(found, inputs):
            quick.compiled = None
        return None if quick.compiled is None else found

    def _agrees(self, found: list[torch.Tensor] | None, inputs: Any) -> bool:
        """Whether these are PyTorch's outputs but for rounding."""
        if found is None:
            return False
        with torch.random.fork_rng(devices=[]):  # a check changes nothing for those who draw
            wanted = self._called(inputs)
        alike = [(one.shape, one.dtype) for one in found] == [(one.shape, one.dtype) for one in wanted]
        return alike and differ_by_rounding(*(tuple(one.detach().numpy() for one in outputs) for outputs in (found, wanted)))


def _form(inputs: Any) -> Any:
    return map_arrays(inputs, lambda tensor: (tuple(tensor.shape), tensor.dtype))


def _compiled(model: nn.Module, inputs: Any) -> ov.CompiledModel | None:
    """The model at the shapes of inputs; None where OpenVINO refuses it."""
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    target = Target(threads=threads, precision="f32", pinning=False)  # another process may have the same core
    try:
        with torch.random.fork_rng(devices=[]):
            return compile_model(convert(copy.deepcopy(model), inputs), target)
    except Exception:  # of whatever kind: it traces the user's code, and PyTorch can do without
        return None


def _inferred(compiled: ov.CompiledModel, inputs: Any) -> list[torch.Tensor] | None:
    """The output tensors; None where the model cannot be asked."""
    named = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
    try:
        found = compiled({name: tensor.detach().contiguous().numpy() for name, tensor in named})
        return [torch.from_numpy(found[port].copy()) for port in compiled.outputs]
    except (RuntimeError, TypeError, ValueError):
        return None
