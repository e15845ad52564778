"""Layers and channel groups of a module; every group is proven before it is reported as prunable."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from autocompress.frameworks.torch.calls import call, outputs_of
from autocompress.frameworks.torch.channels import ChannelGroup, channel_groups
from autocompress.frameworks.torch.layers import layers_of, quiet
from autocompress.frameworks.torch.prune import remove_channels, silenced
from autocompress.structure import FrozenGroup, Structure

TOLERANCE = 1e-4
"""Largest difference of a pruned and a silenced model's outputs, relative to their range. Float rounding stays far below."""
ALIVE = 1e-3
"""Outputs for two inputs that differ by less than this, relative to their range, do not depend on the input any more."""
ENOUGH_FAILURES = 3
"""Groups of one kind (names that differ in their numbers) that fail one after the other; the others are then not tried."""


@dataclass
class Proof:
    """What was proven of a module's groups.

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


def structure_of(model: nn.Module, example: Any, groups: Mapping[str, ChannelGroup], proof: Proof) -> Structure:
    """The structure of a module, in the words that are the same for all frameworks."""
    proven = tuple(groups[name].described(name in proof.removable) for name in proof.proven)
    frozen = tuple(FrozenGroup(name, reason) for name, reason in proof.frozen.items())
    return Structure(layers_of(model, example), proven, frozen)


def inspect(model: nn.Module, example: Any) -> Structure:
    """The structure of a module, seen on an example input. The module is not changed."""
    try:
        groups = channel_groups(copy.deepcopy(model), example)
    except Exception as error:  # tracing runs arbitrary user code
        frozen = FrozenGroup("the whole model", f"it cannot be traced for pruning ({type(error).__name__}: {_first_line(error)})")
        return Structure(layers_of(model, example), (), (frozen,))
    return structure_of(model, example, groups, prove(model, example, groups))


def prove(model: nn.Module, example: Any, groups: Mapping[str, ChannelGroup]) -> Proof:
    """Which groups can be removed: half of the channels of all at once must equal silencing them in the whole model."""
    prover = _Prover(perturbed(model), example, groups)
    proof = Proof(frozen={name: group.reason for name, group in groups.items() if group.reason})
    open_groups = []
    for name, group in groups.items():
        if group.reason is None and group.channels < 2:
            proof.frozen[name] = "it has a single channel, or its channels are mixed with each other"
        elif group.reason is None:
            open_groups.append(name)
    proof.follow = [name for name in open_groups if any(m.role == "writes" and m.width > 1 for m in groups[name].members)]
    proven = prover.bisect(open_groups, proof)
    proof.proven = prover.jointly(proven, proof)
    proof.removable = [name for name in proof.proven if prover.can_vanish(name, proof.follow)]
    return proof


class _Prover:
    """Compares pruned copies of a perturbed module with silenced ones."""

    def __init__(self, model: nn.Module, example: Any, groups: Mapping[str, ChannelGroup]) -> None:
        self.model, self.example, self.groups = model, example, groups
        self._failed: dict[str, list[str]] = {}

    def bisect(self, names: list[str], proof: Proof) -> list[str]:
        """The groups that can be removed by themselves; the others are frozen. Halves that fail are looked into."""
        names = [name for name in names if not self._is_hopeless(name, proof)]
        if not names or self._refuted(names, proof.follow) is None:
            return names
        if len(names) > 1:
            middle = len(names) // 2
            return self.bisect(names[:middle], proof) + self.bisect(names[middle:], proof)
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

    def jointly(self, names: list[str], proof: Proof) -> list[str]:
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

    def can_vanish(self, name: str, follow: Iterable[str]) -> bool:
        """True where all channels can go and the output still depends on the input."""
        removed = {name: list(range(self.groups[name].channels))}
        try:
            quiet_model = silenced(self.model, self.groups, removed).eval()
            here, elsewhere = (self._outputs(quiet_model, example) for example in (self.example, _another(self.example)))
            if not max(map(_relative_difference, here, elsewhere)) > ALIVE:
                return False
            pruned = self._pruned(removed, follow)
            return _differ(self._outputs(pruned, self.example), here) <= TOLERANCE
        except Exception:  # a user's forward can raise anything on what is left
            return False

    def _refuted(self, names: Iterable[str], follow: Iterable[str]) -> str | None:
        """None if removing half the channels of all groups equals silencing them in the whole model; else why not."""
        removed = {name: irregular_half(self.groups[name].channels) for name in names}
        try:
            actual = self._outputs(self._pruned(removed, follow), self.example)
            expected = self._outputs(silenced(self.model, self.groups, removed).eval(), self.example)
        except Exception as error:  # a wrong mapping shows as any error that a user's forward can raise
            return f"the pruned model does not run ({type(error).__name__}: {_first_line(error)})"
        if [a.shape for a in actual] != [e.shape for e in expected]:
            return "its channels are the model's output"
        difference = _differ(actual, expected)
        if not difference <= TOLERANCE:
            return f"removing its channels changes the output by {difference:.1e} of its range more than silencing them"
        return None

    def _pruned(self, removed: Mapping[str, list[int]], follow: Iterable[str]) -> nn.Module:
        pruned = copy.deepcopy(self.model)
        remove_channels(pruned, self.groups, removed, follow)
        return pruned.eval()

    def _outputs(self, model: nn.Module, example: Any) -> list[torch.Tensor]:
        with torch.no_grad(), quiet():
            return outputs_of(call(model, example))


def _kind(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def irregular_half(channels: int) -> list[int]:
    """Half of the channels, unevenly spread: every second one would hide that a grouped convolution needs as many per group."""
    order = torch.randperm(channels, generator=torch.Generator().manual_seed(channels))
    return sorted(order[: channels // 2].tolist())


def perturbed(model: nn.Module) -> nn.Module:
    """A copy in which every block matters: a zero-initialised norm or a tiny layer scale would hide a wrong mapping."""
    changed = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim <= 1:
                noise = torch.rand(parameter.shape, generator=generator) + 0.5
            else:
                noise = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            parameter.copy_(noise)
        for name, buffer in changed.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return changed


def _another(example: Any) -> Any:
    """Another input of the same kind: reversed along every dimension but the batch's, and floats turned around zero."""

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        reversed_ = tensor.flip([*range(1, tensor.ndim)]) if tensor.ndim > 1 else tensor
        return -0.7 * reversed_ if tensor.is_floating_point() else reversed_

    if isinstance(example, dict):
        return {name: turned(tensor) for name, tensor in example.items()}
    return tuple(map(turned, example))


def _differ(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(map(_relative_difference, actual, expected))


def _relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    span = float(expected.max() - expected.min())
    return float((actual - expected).abs().max()) / max(span, 1e-12)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
