"""The proof of channel groups: removing channels must equal silencing those who read them, where every weight matters."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.channels import ChannelGroup
from autocompress.structure import FrozenGroup, Layer, Structure

TOLERANCE = 1e-4
"""Largest difference of a pruned and a silenced model's outputs, relative to their range. Float rounding stays far below."""
ALIVE = 1e-3
"""Outputs for two inputs that differ by less than this, relative to their range, do not depend on the input any more."""
ENOUGH_FAILURES = 3
"""Groups of one kind (names that differ in their numbers) that fail one after the other; the others are then not tried."""

UNEVEN, MOST_REMOVED = 2, 0.8
"""How often parts that differ from group to group are removed from several groups, and the largest part."""

Outputs = list[NDArray[Any]]
Removed = Mapping[str, Sequence[int]]
"""Group → its channels that go."""


@dataclass
class Proof:
    """What was proven of a model's groups.

    Attributes:
        proven: groups whose channels can be removed, all together.
        removable: those of them that can be removed whole.
        follow: those of them for which numbers that modules remember have to change.
        frozen: the other groups, and why.
    """

    proven: list[str] = field(default_factory=list)
    removable: list[str] = field(default_factory=list)
    follow: list[str] = field(default_factory=list)
    frozen: dict[str, str] = field(default_factory=dict)

    def structure(self, layers: tuple[Layer, ...], groups: Mapping[str, ChannelGroup]) -> Structure:
        """The model's structure in the words that are the same for all frameworks."""
        proven = tuple(groups[name].described(name in self.removable) for name in self.proven)
        return Structure(layers, proven, tuple(FrozenGroup(name, reason) for name, reason in self.frozen.items()))


class Prover(ABC):
    """Compares pruned copies of a perturbed model with silenced ones. A framework says how they are made and run."""

    def __init__(self, groups: Mapping[str, ChannelGroup]) -> None:
        self.groups = groups
        self._failed: dict[str, list[str]] = {}
        self._verdicts: dict[tuple[tuple[str, ...], tuple[str, ...]], str | None] = {}

    @abstractmethod
    def pruned_outputs(self, removed: Removed, follow: Iterable[str]) -> Outputs:
        """What the model without these channels gives for the example."""

    @abstractmethod
    def silenced_outputs(self, removed: Removed, elsewhere: bool = False) -> Outputs:
        """What the whole model gives where nothing reads these channels, for the example or (`elsewhere`) for another input."""

    def prove(self, follow: Iterable[str] = ()) -> Proof:
        """Which groups can be removed: half of the channels of all at once, and another part of each, must equal silencing them.

        Args:
            follow: groups with whose widths the numbers that modules remember are to change; a failed group is tried otherwise.
        """
        proof = Proof(follow=list(follow), frozen={name: group.reason for name, group in self.groups.items() if group.reason})
        unknown = []
        for name, group in self.groups.items():
            if group.reason is None and group.channels < 2:
                proof.frozen[name] = "it has a single channel, or its channels are mixed with each other"
            elif group.reason is None:
                unknown.append(name)
        proof.follow = [name for name in proof.follow if name in unknown]
        proof.proven = self._jointly(self._bisect(unknown, proof), proof)
        proof.removable = self._vanishing([name for name in proof.proven if self._can_be_spared(name)], proof.follow)
        return proof

    def _bisect(self, names: list[str], proof: Proof) -> list[str]:
        """The groups that can be removed by themselves; the others are frozen. Halves that fail are looked into."""
        names = [name for name in names if not self._is_hopeless(name, proof)]
        if not names or self._refuted(names, proof.follow) is None:
            return names
        if len(names) > 1:
            middle = len(names) // 2
            return self._bisect(names[:middle], proof) + self._bisect(names[middle:], proof)
        other = [name for name in proof.follow if name != names[0]]
        toggled = other if names[0] in proof.follow else [*proof.follow, *names]
        if self._refuted(names, toggled) is None:
            proof.follow = toggled
            return names
        proof.frozen[names[0]] = self._refuted(names, proof.follow) or ""
        self._failed.setdefault(_kind(names[0]), []).append(names[0])
        return []

    def _is_hopeless(self, name: str, proof: Proof) -> bool:
        """True where several groups of its kind have failed; it is then frozen like them."""
        failed = self._failed.get(_kind(name), [])
        if len(failed) < ENOUGH_FAILURES:
            return False
        proof.frozen[name] = f"like {failed[0]}, where {proof.frozen[failed[0]]}"
        return True

    def _jointly(self, names: list[str], proof: Proof) -> list[str]:
        """As many of the groups as can be removed together."""
        if not names or self._refuted(names, proof.follow) is None:
            return names
        kept: list[str] = []
        for name in names:
            reason = self._refuted([*kept, name], proof.follow)
            if reason is None:
                kept.append(name)
            else:
                proof.frozen[name] = f"beside {len(kept)} other groups, {reason}"
        return kept

    def _can_be_spared(self, name: str) -> bool:
        """True where the output still depends on the input when nothing reads any of the group's channels."""
        return self._is_alive(self._whole([name]))

    def _is_alive(self, removed: Removed) -> bool:
        try:
            return difference(self.silenced_outputs(removed), self.silenced_outputs(removed, elsewhere=True)) > ALIVE
        except Exception:  # a user's forward can raise anything on another input
            return False

    def _vanishing(self, names: list[str], follow: Iterable[str]) -> list[str]:
        """The groups that can be removed whole. Halves that fail, or leave an output that proves nothing, are looked into."""
        if not names or self._can_vanish(names, follow):
            return names
        middle = len(names) // 2
        return self._vanishing(names[:middle], follow) + self._vanishing(names[middle:], follow) if middle else []

    def _can_vanish(self, names: list[str], follow: Iterable[str]) -> bool:
        removed = self._whole(names)
        try:
            if not self._is_alive(removed):
                return False
            return difference(self.pruned_outputs(removed, follow), self.silenced_outputs(removed)) <= TOLERANCE
        except Exception:  # a user's forward can raise anything on what is left
            return False

    def _whole(self, names: Iterable[str]) -> Removed:
        return {name: list(range(self.groups[name].channels)) for name in names}

    def _refuted(self, names: Iterable[str], follow: Iterable[str]) -> str | None:
        """None if removing channels of all these groups equals silencing them in the whole model; else why not."""
        key = tuple(names), tuple(follow)
        if key not in self._verdicts:
            self._verdicts[key] = self._verdict(*key)
        return self._verdicts[key]

    def _verdict(self, names: Sequence[str], follow: Sequence[str]) -> str | None:
        reasons = (self._verdict_on(removed, follow) for removed in self._removals(names))
        return next((reason for reason in reasons if reason is not None), None)

    def _removals(self, names: Sequence[str]) -> Iterator[Removed]:
        """Half of the channels of every group; where there are several, also parts that differ from one to the other.

        A model may ask for as many channels in one group as in another (`reshape(batch, length, width)` of what attention heads
        give): removing the same part of both would hide that.
        """
        yield {name: irregular_part(self.groups[name].channels) for name in names}
        places = {name: place for place, name in enumerate(self.groups)}
        for attempt in range(UNEVEN) if len(names) > 1 else ():
            generators = {name: np.random.default_rng((attempt, places[name])) for name in names}
            shares = {name: generator.uniform(0, MOST_REMOVED) for name, generator in generators.items()}
            yield {name: irregular_part(self.groups[name].channels, share) for name, share in shares.items()}

    def _verdict_on(self, removed: Removed, follow: Iterable[str]) -> str | None:
        try:
            actual, expected = self.pruned_outputs(removed, follow), self.silenced_outputs(removed)
        except Exception as error:  # a wrong mapping shows as any error that a user's forward can raise
            return f"the pruned model does not run ({type(error).__name__}: {first_line(error)})"
        if [a.shape for a in actual] != [e.shape for e in expected]:
            return "its channels are the model's output"
        found = difference(actual, expected)
        if not found <= TOLERANCE:
            return f"removing its channels changes the output by {found:.1e} of its range more than silencing them"
        return None


def irregular_part(channels: int, share: float = 0.5) -> list[int]:
    """A part of the channels, unevenly spread: every second one would hide that a grouped convolution needs as many per group."""
    order = np.random.default_rng(channels).permutation(channels)
    return sorted(order[: int(share * channels)].tolist())


def difference(actual: Outputs, expected: Outputs) -> float:
    """The largest difference of outputs, relative to each one's range (of a single number: to itself); NaN if a value is."""
    return float(np.max([_relative(a, e) for a, e in zip(actual, expected, strict=True)]))


def first_line(error: Exception) -> str:
    """An error's first line, shortened."""
    return (str(error).strip().splitlines() or [""])[0][:160]


def _relative(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    actual, expected = actual.astype(float), expected.astype(float)
    span = float(np.ptp(expected) if expected.size > 1 else np.abs(expected).max())
    return float(np.abs(actual - expected).max()) / max(span, 1e-12)


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)
