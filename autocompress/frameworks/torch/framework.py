"""The PyTorch side of the protocol in `frameworks/base.py`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from autocompress.data import Inputs, as_prediction
from autocompress.errors import TaskError
from autocompress.frameworks.base import Candidate, Progress, SharedTraining, TuneSettings
from autocompress.frameworks.schedule import gradual_epochs, has_lost_much, part
from autocompress.frameworks.torch.arithmetic import exact_arithmetic
from autocompress.frameworks.torch.calls import example_inputs, on_cpu, predicted
from autocompress.frameworks.torch.convert import convert
from autocompress.frameworks.torch.finetune import fine_tune
from autocompress.frameworks.torch.gradual import prune_gradually
from autocompress.frameworks.torch.layers import HEAVY, layers_of
from autocompress.frameworks.torch.optimize import pruned_rate
from autocompress.frameworks.torch.prune import remove_channels
from autocompress.frameworks.torch.pruning import Pruning
from autocompress.frameworks.torch.reestimate import reestimate
from autocompress.frameworks.torch.shared import ElasticTraining
from autocompress.frameworks.torch.simulate import input_ranges, settle, simulate
from autocompress.frameworks.torch.state import architecture, load_weights, save_weights
from autocompress.policy import Policy
from autocompress.structure import Structure
from autocompress.target.precision import Converted
from autocompress.task import Task


class TorchFramework:
    """PyTorch."""

    name = "torch"

    def __init__(self) -> None:
        self._examples: WeakKeyDictionary[Task, dict[int, Any]] = WeakKeyDictionary()
        self._prunings: WeakKeyDictionary[Task, Pruning] = WeakKeyDictionary()

    def isolated(self, task: Task, say: Callable[[str], None]) -> TorchFramework:
        """Itself: PyTorch does not grow with every model."""
        return self

    def close(self) -> None:
        """There is no process to end."""

    def digest(self, task: Task) -> str:
        """A hash of the printed architecture and of every weight."""
        found = hashlib.sha256(repr(task.model).encode())
        for name, tensor in sorted(task.model.state_dict().items()):
            found.update(name.encode())
            found.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            )
        return found.hexdigest()[:16]

    def architecture(self, task: Task) -> dict[str, str]:
        """Every module and tensor of the model in words."""
        return architecture(task.model)

    def _example(self, task: Task, batch: int) -> Any:
        """Example inputs, read once: every candidate of a run is converted at the same shapes."""
        known = self._examples.setdefault(task, {})
        if batch not in known:
            known[batch] = example_inputs(task, batch)
        return known[batch]

    def _pruning(self, task: Task) -> Pruning:
        """What can be removed from the task's model, found once."""
        if task not in self._prunings:
            self._prunings[task] = Pruning(task, self._example(task, 1), self.digest(task))
        return self._prunings[task]

    def inspect(self, task: Task) -> Structure:
        """Layers and proven dependency groups."""
        require_plain(task.model)
        return self._pruning(task).structure

    def importance(self, task: Task, criterion: str) -> dict[str, NDArray[np.float64]]:
        """Group name → importance of each of its channels, also of groups that are not proven."""
        return self._pruning(task).scores(criterion)

    def compress(
        self, task: Task, policy: Policy, criterion: str, removed: Mapping[str, Sequence[int]] | None = None
    ) -> Candidate:
        """Prune physically, then simulate the policy's bits and zeros."""
        model, example = copy.deepcopy(task.model), self._example(task, 1)
        if policy.pruning:
            pruning = self._pruning(task)
            removed = pruning.least_important(policy.pruning, criterion) if removed is None else removed
            remove_channels(model, pruning.groups, removed, pruning.proof.follow)
        macs = {layer.name: layer.macs for layer in layers_of(model, example)}
        simulate(model, policy)
        return Candidate(model.eval(), policy, macs, removed or {})

    def fine_tune(
        self,
        task: Task,
        candidate: Candidate,
        settings: TuneSettings,
        progress: Progress,
        heir_of: SharedTraining | None = None,
    ) -> int:
        """Train the candidate in place and re-estimate its batch-norm statistics; an heir at a rate of its own."""
        torch.manual_seed(settings.seed)
        if has_lost_much(candidate, heir_of is not None) and not settings.learning_rate:
            settings = replace(settings, learning_rate=pruned_rate(task, candidate.model))
        gradual = gradual_epochs(settings) if candidate.removed and task.fine_tune is None else 0
        share = gradual / settings.epochs
        if gradual:
            first = part(progress, 0, share)
            candidate.model = prune_gradually(task, self._pruning(task), candidate.removed, settings, first)
            simulate(candidate.model, candidate.policy)
        rest = replace(settings, epochs=settings.epochs - gradual)
        return gradual + fine_tune(task, candidate.model, rest, part(progress, share, 1))

    def share(self, task: Task, criterion: str, settings: TuneSettings) -> SharedTraining:
        """A training whose weights every policy can inherit."""
        return ElasticTraining(task, self._pruning(task), self._example(task, 1), criterion, settings)

    def reestimate(self, task: Task, candidate: Candidate) -> None:
        """Take batch-norm statistics and input ranges anew."""
        reestimate(candidate.model, task)

    def predict(self, task: Task, candidate: Candidate, batches: Iterable[Inputs]) -> Any:
        """The simulation's outputs for batches of inputs."""
        arithmetic = exact_arithmetic(task)
        with arithmetic.arranged(candidate.model):
            return as_prediction(predicted(candidate.model, batches, arithmetic.ordered))

    def save(self, candidate: Candidate, path: Path) -> None:
        """Write the candidate's weights as safetensors."""
        save_weights(candidate.model, path)

    def load(self, candidate: Candidate, path: Path) -> None:
        """Read what `save` wrote."""
        load_weights(candidate.model, path)

    def to_openvino(self, task: Task, candidate: Candidate, batch: int) -> Converted:
        """Convert a plain copy whose weights lie on their grids."""
        plain = copy.deepcopy(candidate.model).cpu()  # wherever it was trained
        codes = settle(plain)
        ranges = input_ranges(candidate.model)
        return Converted(convert(plain, on_cpu(self._example(task, batch))), codes, input_ranges=ranges)


def require_plain(model: nn.Module) -> None:
    """Check that a model can be compressed.

    Raises:
        TaskError: something already stands between its weights and its layers, they are not of 32 bits, or it is a single layer.
    """
    if isinstance(model, HEAVY):
        raise TaskError("A task's model holds its layers", f"a bare {type(model).__name__}", "Use torch.nn.Sequential(layer).")
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            remedy = "Call torch.nn.utils.parametrize.remove_parametrizations first."
            raise TaskError("The weights of a task's model are plain parameters", f"a parametrized {name}", remedy)
        if isinstance(module, HEAVY) and "weight" not in module._parameters:
            remedy = "Take off weight_norm or spectral_norm first: torch.nn.utils.remove_weight_norm, remove_spectral_norm."
            raise TaskError("The weights of a task's model are plain parameters", f"{name}, whose weight is computed", remedy)
        if isinstance(module, HEAVY) and module.weight.dtype != torch.float32:
            kind = str(module.weight.dtype).removeprefix("torch.")
            raise TaskError("The weights of a task's model are float32", f"{kind} in {name}", "Call model.float() first.")
