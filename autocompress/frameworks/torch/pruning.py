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

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.criteria import Scores
from autocompress.frameworks.proof import Proof
from autocompress.frameworks.torch.channels import channel_groups
from autocompress.frameworks.torch.importance import TorchImportance
from autocompress.frameworks.torch.inspect import prove
from autocompress.frameworks.torch.layers import layers_of
from autocompress.structure import FrozenGroup, Structure
from autocompress.target.cache import cache_folder, read_json, write_json
from autocompress.task import Task

PROOF_VERSION = 2
"""Of the code that proves groups; cached proofs of another version are absent."""


class Pruning:
    """Groups, proof and rankings of a task's model.

    The proof is cached across processes by the model's content.
    """

    def __init__(self, task: Task, example: Any, digest: str) -> None:
        self._task, self._example = task, example
        self._key = hashlib.sha256(repr((digest, _shapes(example), torch.__version__, PROOF_VERSION)).encode()).hexdigest()[:16]
        self._scores: dict[str, dict[str, Scores]] = {}
        self._untraceable: str | None = None

    @cached_property
    def groups(self) -> dict[str, ChannelGroup]:
        """All groups by name; none where the model cannot be traced."""
        try:
            return channel_groups(copy.deepcopy(self._task.model), self._example)
        except Exception as error:  # tracing runs arbitrary user code
            self._untraceable = f"it cannot be traced for pruning ({type(error).__name__}: {error})"
            return {}

    @cached_property
    def proof(self) -> Proof:
        """Which groups can be removed."""
        groups = self.groups
        path = cache_folder() / "proofs" / f"{self._key}.json"
        known = read_json(path)
        if isinstance(known, dict) and set(known) == set(asdict(Proof())):
            return Proof(**known)
        proof = prove(self._task.model, self._example, groups)
        write_json(path, asdict(proof))
        return proof

    @cached_property
    def structure(self) -> Structure:
        """Layers and proven groups."""
        structure = self.proof.structure(layers_of(copy.deepcopy(self._task.model), self._example), self.groups)
        if self._untraceable:
            return Structure(
                layers_of(copy.deepcopy(self._task.model), self._example),
                (),
                (FrozenGroup("the whole model", self._untraceable),),
            )
        return structure

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


def _shapes(example: Any) -> list[Any]:
    tensors: dict[Any, torch.Tensor] = dict(example) if isinstance(example, dict) else dict(enumerate(example))
    return [[str(name), list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()]
