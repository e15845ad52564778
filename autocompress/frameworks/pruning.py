"""What can be removed from one task's model: its groups, the proof, and the ranking of channels. Each is found once."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.criteria import Importance, Scores
from autocompress.frameworks.proof import Proof, first_line
from autocompress.structure import FrozenGroup, Layer, Structure
from autocompress.target.cache import cache_folder, read_json, write_json

PROOF_VERSION = 4
"""Of the code that proves groups; cached proofs of another version are absent."""


class BasePruning(ABC):
    """Groups, proof and rankings of a task's model. A framework says how each is found.

    The proof is cached across processes by the model's content and by the groups that were found when it ran.
    """

    def __init__(self, *content: Any) -> None:
        """Prepare.

        Args:
            content: all that the proof depends on: the framework, its version, the model's digest, the example's shapes.
        """
        self._content = (*content, PROOF_VERSION)
        self._scores: dict[str, dict[str, Scores]] = {}
        self._untraceable: str | None = None

    @abstractmethod
    def _find_groups(self) -> dict[str, ChannelGroup]: ...

    @abstractmethod
    def _prove(self, groups: Mapping[str, ChannelGroup]) -> Proof: ...

    @abstractmethod
    def _layers(self) -> tuple[Layer, ...]: ...

    @abstractmethod
    def _importance(self) -> Importance: ...

    @cached_property
    def groups(self) -> dict[str, ChannelGroup]:
        """All groups by name; none where the model cannot be traced."""
        try:
            return self._find_groups()
        except Exception as error:  # tracing runs arbitrary user code
            self._untraceable = f"it cannot be traced for pruning ({type(error).__name__}: {first_line(error)})"
            return {}

    @cached_property
    def proof(self) -> Proof:
        """Which groups can be removed."""
        groups = self.groups
        if self._untraceable:  # not cached: what was in the way may go
            return Proof()
        content = repr((self._content, _members(groups))).encode()
        path = cache_folder() / "proofs" / f"{hashlib.sha256(content).hexdigest()[:16]}.json"
        known = read_json(path)
        if isinstance(known, dict) and set(known) == set(asdict(Proof())):
            return Proof(**known)
        proof = self._prove(groups)
        write_json(path, asdict(proof))
        return proof

    @cached_property
    def structure(self) -> Structure:
        """Layers and proven groups."""
        structure = self.proof.structure(self._layers(), self.groups)
        if self._untraceable:
            return Structure(structure.layers, (), (FrozenGroup("the whole model", self._untraceable),))
        return structure

    def scores(self, criterion: str) -> dict[str, Scores]:
        """Group → importance of each channel, of the original."""
        if criterion not in self._scores:
            self._scores[criterion] = self._importance().scores(self.groups, criterion)
        return self._scores[criterion]

    def rank_as(self, criterion: str, scores: Mapping[str, Scores]) -> None:
        """Take another process's scores: a loader that draws anew would give others here."""
        self._scores[criterion] = dict(scores)

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


def shapes(example: Any) -> list[Any]:
    """Name or place, shape and kind of each array of an example."""
    named: dict[Any, Any] = dict(example) if isinstance(example, dict) else dict(enumerate(example))
    return [[str(name), list(array.shape), str(array.dtype)] for name, array in named.items()]
