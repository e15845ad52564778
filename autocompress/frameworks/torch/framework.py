"""The PyTorch side of the protocol in `frameworks/base.py`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrize

from autocompress.errors import TaskError
from autocompress.frameworks.base import Candidate, Progress, TuneSettings
from autocompress.frameworks.torch.calls import example_inputs
from autocompress.frameworks.torch.convert import convert
from autocompress.frameworks.torch.finetune import fine_tune
from autocompress.frameworks.torch.inspect import inspect, layers_of
from autocompress.frameworks.torch.prune import CRITERIA, HEAVY, dependency_graph, remove_channels, removed_channels
from autocompress.frameworks.torch.simulate import input_ranges, settle, simulate
from autocompress.policy import Policy
from autocompress.structure import Structure
from autocompress.target.precision import Converted
from autocompress.task import Task


class TorchFramework:
    """PyTorch."""

    name = "torch"

    def __init__(self) -> None:
        self._examples: WeakKeyDictionary[Task, dict[int, Any]] = WeakKeyDictionary()

    def digest(self, task: Task) -> str:
        """A hash of the printed architecture and of every weight."""
        found = hashlib.sha256(repr(task.model).encode())
        for name, tensor in sorted(task.model.state_dict().items()):
            found.update(name.encode())
            found.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            )
        return found.hexdigest()[:16]

    def _example(self, task: Task, batch: int) -> Any:
        """Example inputs, read once: every candidate of a run is converted at the same shapes."""
        known = self._examples.setdefault(task, {})
        if batch not in known:
            known[batch] = example_inputs(task, batch)
        return known[batch]

    def inspect(self, task: Task) -> Structure:
        """Layers and proven dependency groups."""
        for name, module in task.model.named_modules():
            if parametrize.is_parametrized(module):
                remedy = "Call torch.nn.utils.parametrize.remove_parametrizations first."
                raise TaskError("The weights of a task's model are plain parameters", f"a parametrized {name}", remedy)
        return inspect(copy.deepcopy(task.model), self._example(task, 1))

    def importance(self, task: Task, criterion: str) -> dict[str, NDArray[np.float64]]:
        """Group name → importance of each of its channels, also of groups that are not proven."""
        graph = dependency_graph(copy.deepcopy(task.model), self._example(task, 1))
        importance = tp.importance.GroupMagnitudeImportance(p=CRITERIA[criterion])
        names = {module: name for name, module in graph.model.named_modules()}
        found = {}
        for members in graph.get_all_groups(root_module_types=HEAVY):
            scores = importance(members)
            if scores is not None:
                found[names[members[0].dep.target.module]] = scores.detach().cpu().double().numpy()
        return found

    def compress(
        self, task: Task, policy: Policy, criterion: str, removed: Mapping[str, Sequence[int]] | None = None
    ) -> Candidate:
        """Prune physically, then simulate the policy's bits and zeros."""
        model, example = copy.deepcopy(task.model), self._example(task, 1)
        if removed is None:
            removed = removed_channels(model, example, policy.pruning, criterion) if policy.pruning else {}
        remove_channels(model, example, removed)
        macs = {layer.name: layer.macs for layer in layers_of(model, example)}
        simulate(model, policy)
        return Candidate(model.eval(), policy, macs, removed)

    def fine_tune(self, task: Task, candidate: Candidate, settings: TuneSettings, progress: Progress) -> None:
        """Train the candidate in place and re-estimate its batch-norm statistics."""
        fine_tune(task, candidate.model, settings, progress)

    def save(self, candidate: Candidate, path: Path) -> None:
        """Write the candidate's weights as safetensors, whole or not at all."""
        temporary = path.with_name(f".{path.name}")
        try:
            save_file({name: tensor.contiguous().clone() for name, tensor in candidate.model.state_dict().items()}, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, candidate: Candidate, path: Path) -> None:
        """Read what `save` wrote."""
        candidate.model.load_state_dict(load_file(path))

    def to_openvino(self, task: Task, candidate: Candidate, batch: int) -> Converted:
        """Convert a plain copy whose weights lie on their grids."""
        plain = copy.deepcopy(candidate.model)
        codes = settle(plain)
        ranges = input_ranges(candidate.model)
        return Converted(convert(plain, self._example(task, batch)), codes, input_ranges=ranges)
