"""What can be removed from one task's model: its groups, the proof, and the ranking of channels. Each is found once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import keras
import numpy as np

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.criteria import Scores
from autocompress.frameworks.keras.graph import functional
from autocompress.frameworks.keras.importance import KerasImportance
from autocompress.frameworks.keras.inspect import prove
from autocompress.frameworks.keras.layers import layers_of
from autocompress.frameworks.keras.trace import channel_groups
from autocompress.frameworks.proof import Proof
from autocompress.structure import Structure
from autocompress.target.cache import cache_folder, read_json, write_json
from autocompress.task import Task

PROOF_VERSION = 1
"""Of the code that proves groups; cached proofs of another version are absent."""


class Pruning:
    """Groups, proof and rankings of a task's model.

    The proof is cached across processes by the model's content.
    """

    def __init__(self, task: Task, example: Any, digest: str) -> None:
        self._task, self._example = task, example
        content = ("keras", digest, _shapes(example), keras.__version__, PROOF_VERSION)
        self._key = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
        self._scores: dict[str, dict[str, Scores]] = {}

    @cached_property
    def graph(self) -> keras.Model:
        """The task's model as a graph."""
        return functional(self._task.model, self._example)

    @cached_property
    def groups(self) -> dict[str, ChannelGroup]:
        """All groups by name."""
        return channel_groups(self.graph, self._example)

    @cached_property
    def proof(self) -> Proof:
        """Which groups can be removed."""
        path = cache_folder() / "proofs" / f"{self._key}.json"
        known = read_json(path)
        if isinstance(known, dict) and set(known) == set(asdict(Proof())):
            return Proof(**known)
        proof = prove(self.graph, self._example, self.groups)
        write_json(path, asdict(proof))
        return proof

    @cached_property
    def structure(self) -> Structure:
        """Layers and proven groups."""
        return self.proof.structure(layers_of(self.graph, self._example), self.groups)

    def scores(self, criterion: str) -> dict[str, Scores]:
        """Group → importance of each channel, of the original."""
        if criterion not in self._scores:
            self._scores[criterion] = KerasImportance(self._task, self.graph).scores(self.groups, criterion)
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
    named = example if isinstance(example, dict) else dict(enumerate(example))
    return [[str(name), list(array.shape), str(array.dtype)] for name, array in named.items()]
