"""The choices per group and layer, from a preset or a YAML file, for the model at hand.

A search space is a tuple of decisions, each with choices ordered from the least to the most compression. A point of the space
is one index per decision, which is what the sampler sees; `policy()` turns it into what is done to the model.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from autocompress.capabilities import Capabilities
from autocompress.config import Objective, Objectives, read_yaml_mapping, validated
from autocompress.decision import Decision
from autocompress.errors import ConfigError, PolicyError, SpaceError
from autocompress.inert import Listener, steps_in_words
from autocompress.policy import (
    ACTIVATION_BITS,
    FLOAT,
    UNSTRUCTURED,
    WEIGHT_BITS,
    Bits,
    LayerPolicy,
    Policy,
    block_of,
    sparsity_of,
)
from autocompress.structure import Group, Structure

_PACKAGE = Path(__file__).parent
PRESETS = next(folder for folder in (_PACKAGE / "search_spaces", _PACKAGE.parent / "search_spaces") if folder.is_dir())
"""Inside the wheel the presets lie in the package; in a checkout, at the top."""

Patterns = str | list[str]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid")
    exclude: Patterns = []


class PruningRule(_Rule):
    """The ratios of some groups. 1 removes a whole residual branch; groups that cannot go whole do without it."""

    groups: Patterns = "*"
    ratios: list[float]

    @field_validator("ratios")
    @classmethod
    def _fractions(cls, value: list[float]) -> list[float]:
        if not value or any(not 0 <= ratio <= 1 for ratio in value):
            raise ValueError("pruning ratios lie in [0, 1]")
        return value


class PrecisionRule(_Rule):
    """The bit-widths of some layers. Every weight width is combined with every activation width; float weights stay float."""

    layers: Patterns = "*"
    weights: list[Bits]
    activations: list[Bits] = [8]

    @field_validator("weights", "activations")
    @classmethod
    def _known(cls, value: list[Bits], info: Any) -> list[Bits]:
        known = WEIGHT_BITS if info.field_name == "weights" else ACTIVATION_BITS
        if not value or any(bits not in known for bits in value):
            raise ValueError(f"{info.field_name} are among {', '.join(map(str, known))}")
        return value


class SparsityRule(_Rule):
    """The sparsity levels of some layers: fractions of zeros anywhere in the weight, or patterns such as "2:4"."""

    layers: Patterns = "*"
    levels: list[float | str]

    @field_validator("levels")
    @classmethod
    def _fractions_or_patterns(cls, value: list[float | str]) -> list[float | str]:
        if not value or any(not _is_level(level) for level in value):
            raise ValueError('sparsity levels lie in [0, 1), or are patterns in quotes such as "2:4"')
        return value


class SpaceSpec(BaseModel):
    r"""A search-space file. Later rules override earlier ones for the groups and layers that they name.

    A pattern is a glob on the name (`layer1.*`), a regular expression (`re:layer[12]\..*`) or a type (`type:Conv2d`).
    Kept channels are a multiple of `channel_step`; without it, of the step that the probe finds on the target.
    """

    model_config = ConfigDict(extra="forbid")

    description: str = ""
    objectives: Objectives = ["accuracy", "latency"]
    channel_step: int | None = Field(None, ge=1)
    pruning: list[PruningRule] = []
    precision: list[PrecisionRule] = []
    sparsity: list[SparsityRule] = []

    @property
    def has_choices(self) -> bool:
        """False for a space of nothing."""
        return bool(self.pruning or self.precision or self.sparsity)


@dataclass(frozen=True)
class SearchSpace:
    """Decisions with more than one choice, and what is fixed for all candidates.

    Attributes:
        decisions: what the search decides.
        fixed: decisions with a single choice that is not "leave it as it is".
        notes: what was left out, and why, in words.
        spec: the resolved file.
        steps: group → the multiple to which its channels are rounded.
    """

    decisions: tuple[Decision, ...]
    fixed: tuple[Decision, ...]
    notes: tuple[str, ...]
    spec: SpaceSpec
    steps: Mapping[str, int]

    @property
    def size(self) -> int:
        """How many policies it holds."""
        return math.prod(len(decision.choices) for decision in self.decisions)

    def policy(self, indices: Mapping[str, int]) -> Policy:
        """The policy of a point."""
        chosen = [(d.kind, d.subject, d.choices[indices[d.name]]) for d in self.decisions]
        chosen += [(d.kind, d.subject, d.choices[0]) for d in self.fixed]
        pruning = {subject: choice for kind, subject, choice in chosen if kind == "prune"}
        bits = {subject: choice for kind, subject, choice in chosen if kind == "bits"}
        sparsity = {subject: choice for kind, subject, choice in chosen if kind == "sparsity"}
        float_layer = (FLOAT, FLOAT)
        layers = {name: _layer_policy(bits.get(name, float_layer), sparsity.get(name, 0.0)) for name in {**bits, **sparsity}}
        return Policy(pruning, layers)

    def indices(self, policy: Policy) -> dict[str, int] | None:
        """The point of a policy; None if the space does not hold it."""
        point: dict[str, int] = {}
        for decision in self.decisions:
            choice = _choice_of(policy, decision)
            if choice not in decision.choices:
                return None
            point[decision.name] = decision.choices.index(choice)
        return point if self.policy(point) == policy else None

    def level(self, fraction: float) -> dict[str, int]:
        """The point at which every decision takes the choice at `fraction` of its list (0: first, 1: last).

        Whole branches are not among them: a network without any is another network.
        """
        return {d.name: round(fraction * (len(d.choices) - 1 - d.ends_whole)) for d in self.decisions}


def load_space_spec(source: str | Mapping[str, Any]) -> SpaceSpec:
    """A preset by name, a YAML file by path, or the mapping itself.

    Raises:
        SpaceError: neither a preset nor a file, or an unknown key, or a value outside its range.
    """
    try:
        return validated(SpaceSpec, _space_data(source))
    except ConfigError as error:
        name = source if isinstance(source, str) else "given as a mapping"
        raise SpaceError(f"Search space {name}: {str(error).rstrip('.')}") from error


def _space_data(source: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return dict(source)
    preset, path = PRESETS / f"{source}.yaml", Path(source)
    if not preset.is_file() and not path.is_file():
        raise SpaceError("A search space is a preset or a YAML file", repr(source), f"Presets: {', '.join(preset_names())}.")
    return read_yaml_mapping(preset if preset.is_file() else path, "search-space")


def preset_names() -> list[str]:
    """The presets that are shipped."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def build_space(
    spec: SpaceSpec,
    structure: Structure,
    capabilities: Capabilities | None = None,
    objectives: Sequence[Objective] | None = None,
) -> SearchSpace:
    """The decisions of a spec for a model.

    Args:
        spec: the choices.
        structure: the model's layers and groups.
        capabilities: what the target can do; None leaves out nothing and rounds channels to 8.
        objectives: for which choices must buy something; by default those of the spec.

    Raises:
        SpaceError: a pattern matches nothing.
    """
    listener = Listener(structure, capabilities, objectives or spec.objectives)
    notes: list[str] = []
    asked = _layer_decisions("bits", spec.precision, structure, _bit_choices)
    bits = [listener.bits(_without_binary_ends(d, spec, structure, notes)) for d in asked]
    zeros = [listener.zeros(d) for d in _layer_decisions("sparsity", spec.sparsity, structure, _levels)]
    steps = _steps(spec, structure, bits, listener)
    decisions = [*_pruning_decisions(spec, structure, steps, notes), *bits, *zeros]
    if spec.pruning and capabilities and spec.channel_step is None:
        notes = [*steps_in_words(steps), *notes]
    neutral = {"prune": 0.0, "bits": (FLOAT, FLOAT), "sparsity": 0.0}
    open_decisions = tuple(d for d in decisions if len(d.choices) > 1)
    fixed = tuple(d for d in decisions if len(d.choices) == 1 and d.choices[0] != neutral[d.kind])
    return SearchSpace(open_decisions, fixed, (*listener.notes(), *notes), spec, steps)


def _steps(spec: SpaceSpec, structure: Structure, bits: Iterable[Decision], listener: Listener) -> dict[str, int]:
    """Group → step. Layers that may run in INT8 are rounded for INT8."""
    integer = {d.subject for d in bits if any(FLOAT not in choice for choice in d.choices)}
    return {
        group.name: spec.channel_step or listener.step(group, integer=bool(integer & set(group.layers)))
        for group in structure.groups
    }


def round_ratio(ratio: float, channels: int, step: int) -> float:
    """The ratio that is really reached when the kept channels are a multiple of `step` (at least one step, at most all).

    Only a ratio of 1 keeps nothing.
    """
    if ratio == 1:
        return 1.0
    kept = max(step, round(channels * (1 - ratio) / step) * step)
    return 0.0 if ratio == 0 or kept >= channels else round(1 - kept / channels, 6)


def uniform_policy(structure: Structure, ratio: float = 0.0, steps: Mapping[str, int] | None = None) -> Policy:
    """Every group pruned by `ratio` (in multiples of its step), every layer in INT8: the dull alternative."""
    int8 = LayerPolicy(weights=8, activations=8)
    pruning = {group.name: round_ratio(ratio, group.channels, (steps or {}).get(group.name, 1)) for group in structure.groups}
    return Policy(pruning, {layer.name: int8 for layer in structure.layers})


def matches(name: str, kind: str, patterns: Patterns) -> bool:
    """True where one of the patterns fits a name or its type."""
    return any(_matches_one(name, kind, pattern) for pattern in _listed(patterns))


def _matches_one(name: str, kind: str, pattern: str) -> bool:
    if pattern.startswith("type:"):
        return fnmatch.fnmatchcase(kind, pattern[5:])
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as error:
            raise SpaceError("A layer pattern after 're:' is a regular expression", f"{pattern!r}: {error}") from error
    return fnmatch.fnmatchcase(name, pattern)


def _pruning_decisions(spec: SpaceSpec, structure: Structure, steps: Mapping[str, int], notes: list[str]) -> Iterable[Decision]:
    kinds = {layer.name: layer.kind for layer in structure.layers}
    chosen = _last_rule_wins(spec.pruning, {g.name: kinds.get(g.name, "") for g in structure.groups}, "groups")
    groups = {group.name: group for group in structure.groups}
    for name, rule in chosen.items():
        ratios = _distinct_ratios(rule.ratios, groups[name], steps[name])
        if len(ratios) < len(set(rule.ratios) - ({1} if not groups[name].removable else set())):
            left = ", ".join(f"{ratio:g}" for ratio in ratios)
            notes.append(f"{name}: {groups[name].channels} channels in steps of {steps[name]} leave the ratios {left}")
        yield Decision("prune", name, ratios)
    if spec.pruning:
        notes.extend(f"{frozen.name} is not pruned: {frozen.reason}" for frozen in structure.frozen)


def _distinct_ratios(ratios: list[float], group: Group, step: int) -> tuple[float, ...]:
    return tuple(sorted({round_ratio(ratio, group.channels, step) for ratio in ratios if ratio < 1 or group.removable}))


def _layer_decisions(kind: str, rules: list[Any], structure: Structure, choices: Any) -> Iterable[Decision]:
    kinds = {layer.name: layer.kind for layer in structure.layers}
    for name, rule in _last_rule_wins(rules, kinds, "layers").items():
        yield Decision(kind, name, choices(rule))


def _without_binary_ends(decision: Decision, spec: SpaceSpec, structure: Structure, notes: list[str]) -> Decision:
    """A decision on bits without binary forms of the first and the last layer, which a network seldom survives.

    They stay where a rule names the layer itself, where nothing else is asked for, and in a policy written by hand.
    """
    kept = tuple(choice for choice in decision.choices if 1 not in choice)
    is_end = decision.subject in (structure.layers[0].name, structure.layers[-1].name)
    is_named = any(decision.subject in _listed(rule.layers) for rule in spec.precision)
    if not is_end or is_named or not kept or kept == decision.choices:
        return decision
    notes.append(f"{decision.subject} gets no 1 bit: it is the model's first or last layer")
    return replace(decision, choices=kept)


def _last_rule_wins(rules: list[Any], kinds: Mapping[str, str], field: str) -> dict[str, Any]:
    """Name → the last rule that includes and does not exclude it, in the model's order."""
    chosen: dict[str, Any] = {}
    for rule in rules:
        patterns = getattr(rule, field)
        for pattern in [*_listed(patterns), *_listed(rule.exclude)]:
            if pattern != "*" and not any(_matches_one(name, kind, pattern) for name, kind in kinds.items()):
                raise SpaceError(
                    f"A pattern matches at least one of the model's {field}",
                    repr(pattern),
                    f"{field.capitalize()}: {', '.join(kinds) or 'none'}.",
                )
        chosen |= {n: rule for n, kind in kinds.items() if matches(n, kind, patterns) and not matches(n, kind, rule.exclude)}
    return {name: chosen[name] for name in kinds if name in chosen}


def _is_level(level: float | str) -> bool:
    try:
        return block_of(level) is not None if isinstance(level, str) else 0 <= level < 1
    except PolicyError:
        return False


@cache  # every step of a shared training draws several policies
def _layer_policy(bits: tuple[Bits, Bits], level: float | str) -> LayerPolicy:
    pattern = level if isinstance(level, str) else UNSTRUCTURED
    return LayerPolicy(*bits, sparsity_of(level), pattern)


def _levels(rule: SparsityRule) -> tuple[float | str, ...]:
    """Ordered by the fraction of zeros; of equal fractions the freer choice is the smaller compression."""
    levels = {level if isinstance(level, str) else round(level, 6) for level in rule.levels}
    return tuple(sorted(levels, key=lambda level: (sparsity_of(level), str(level))))


def _bit_choices(rule: PrecisionRule) -> tuple[tuple[Bits, Bits], ...]:
    pairs = {(w, FLOAT if w == FLOAT else a) for w in rule.weights for a in rule.activations}
    return tuple(sorted(pairs, key=lambda pair: tuple(-_width(bits) for bits in pair)))


def _width(bits: Bits) -> int:
    return bits if isinstance(bits, int) else 32


def _choice_of(policy: Policy, decision: Decision) -> Any:
    if decision.kind == "prune":
        return policy.pruning.get(decision.subject, 0.0)
    layer = policy.layer(decision.subject)
    if decision.kind == "bits":
        return layer.weights, layer.activations
    return layer.sparsity if layer.block is None else layer.pattern


def _listed(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def require_known_names(policy: Policy, structure: Structure) -> None:
    """Check a user's own policy against the model.

    Raises:
        PolicyError: a group or layer that the model does not have.
    """
    for what, named, known in (
        ("group", policy.pruning, [group.name for group in structure.groups]),
        ("layer", policy.layers, [layer.name for layer in structure.layers]),
    ):
        for name in named:
            if name not in known:
                frozen = {f.name: f.reason for f in structure.frozen}
                why = f" ({frozen[name]})" if what == "group" and name in frozen else ""
                raise PolicyError(
                    f"A policy names {what}s that the model has",
                    f"{name!r}{why}",
                    f"It has: {', '.join(known) or 'none'}.",
                )
