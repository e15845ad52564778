"""What can be removed from one task's model: its groups, the proof, and the ranking of channels. Each is found once."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.criteria import Scores
from autocompress.frameworks.proof import Proof
from autocompress.frameworks.torch.calls import on_cpu
from autocompress.frameworks.torch.channels import channel_groups
from autocompress.frameworks.torch.importance import TorchImportance
from autocompress.frameworks.torch.inspect import prove
from autocompress.frameworks.torch.layers import layers_of
from autocompress.structure import FrozenGroup, Structure
from autocompress.target.cache import cache_folder, read_json, write_json
from autocompress.task import Task

PROOF_VERSION = 3
"""Of the code that proves groups; cached proofs of another version are absent."""


class Pruning:
    """Groups, proof and rankings of a task's model.

    The proof is cached across processes by the model's content and by what was found when it ran. All of it happens on the CPU.
    """

    def __init__(self, task: Task, example: Any, digest: str) -> None:
        self._task, self._example, self._digest = task, on_cpu(example), digest
        self._scores: dict[str, dict[str, Scores]] = {}
        self._untraceable: str | None = None

    @cached_property
    def groups(self) -> dict[str, ChannelGroup]:
        """All groups by name; none where the model cannot be traced."""
        try:
            return channel_groups(self._model(), self._example)
        except Exception as error:  # tracing runs arbitrary user code
            self._untraceable = f"it cannot be traced for pruning ({type(error).__name__}: {error})"
            return {}

    @cached_property
    def proof(self) -> Proof:
        """Which groups can be removed."""
        groups = self.groups
        if self._untraceable:  # not cached: what was in the way may go
            return Proof()
        found = self._digest, _shapes(self._example), torch.__version__, PROOF_VERSION, _members(groups)
        path = cache_folder() / "proofs" / f"{hashlib.sha256(repr(found).encode()).hexdigest()[:16]}.json"
        known = read_json(path)
        if isinstance(known, dict) and set(known) == set(asdict(Proof())):
            return Proof(**known)
        proof = prove(self._model(), self._example, groups)
        write_json(path, asdict(proof))
        return proof

    @cached_property
    def structure(self) -> Structure:
        """Layers and proven groups."""
        layers, proof = layers_of(self._model(), self._example), self.proof
        if self._untraceable:
            return Structure(layers, (), (FrozenGroup("the whole model", self._untraceable),))
        return proof.structure(layers, self.groups)

    def _model(self) -> nn.Module:
        """A copy of the original."""
        model: nn.Module = copy.deepcopy(self._task.model)
        return model.cpu()

    def scores(self, criterion: str) -> dict[str, Scores]:
        """Group → importance of each channel, of the original."""
        if criterion not in self._scores:
            self._scores[criterion] = TorchImportance(self._task).scores(self.groups, criterion)
        return self._scores[criterion]

    def least_important(self, ratios: Mapping[str, float], criterion: str) -> dict[str, list[int]]:
        """Group → the channels that go.

        Every group is ranked once, whatever happens to the others, so a smaller ratio's channels are among those of a larger.
        """
        scores = self.scores(criterion)
        described = {group.name: group for group in self.structure.groups}
        return {
            name: sorted(np.argsort(scores[name], kind="stable")[: described[name].removed(ratio)].tolist())
            for name, ratio in ratios.items()
        }


def _members(groups: Mapping[str, ChannelGroup]) -> list[Any]:
    """All of the groups as plain data."""
    return [
        (name, group.reason, [(m.tensor, m.axis, m.role, m.each, m.indices.tolist()) for m in group.members])
        for name, group in groups.items()
    ]


def _shapes(example: Any) -> list[Any]:
    tensors: dict[Any, torch.Tensor] = dict(example) if isinstance(example, dict) else dict(enumerate(example))
    return [[str(name), list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()]
