r"""A policy as people write it: names or patterns, from a YAML or JSON file, for the model at hand.

    pruning:
      "*": 0.3                                # every group that can be pruned
      "layer3.*": 0.5
    layers:
      "*": {weights: 8, activations: 8}
      "type:Linear": {weights: 4}             # its activations stay at 8
      "re:layer[12]\.conv1": {sparsity: 0.5}

A key is a name of the model, or a pattern with the syntax of a search-space file. Later keys override earlier ones, for layers
field by field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autocompress.config import read_yaml_mapping
from autocompress.errors import PolicyError
from autocompress.policy import LayerPolicy, Policy
from autocompress.space import PRESETS, matches, require_known_names
from autocompress.structure import Structure

TEMPLATES = PRESETS / "policies"
WILDCARDS = "*?["


def read_policy(source: Policy | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """A policy as plain data, checked as far as that is possible without the model.

    Args:
        source: a Policy, the mapping itself, the path of a YAML or JSON file, or a template's name.

    Raises:
        ConfigError: the file cannot be read.
        PolicyError: it is not a policy, or a bit-width or ratio is invalid.
    """
    if isinstance(source, Policy):
        return source.to_dict()
    data = dict(source) if isinstance(source, Mapping) else read_yaml_mapping(_file(source), "policy")
    layers = data.get("layers")
    if isinstance(layers, Mapping):  # an entry may be a part of what a layer gets: activations without weights, for example
        filled = {key: {"weights": 8, **entry} if isinstance(entry, Mapping) else entry for key, entry in layers.items()}
        Policy.from_dict({**data, "layers": filled})
    else:
        Policy.from_dict(data)
    return {part: {_name(key): value for key, value in (data.get(part) or {}).items()} for part in ("pruning", "layers")}


def resolve_policy(data: Mapping[str, Any], structure: Structure) -> Policy:
    """The policy that a file means for a model.

    A pattern of pruning passes over frozen groups; naming one is an error.

    Args:
        data: what `read_policy` returned.
        structure: the model's layers and groups.

    Raises:
        PolicyError: a name or pattern fits nothing, a frozen group is named, or what the keys of a layer add up to is invalid.
    """
    kinds = {layer.name: layer.kind for layer in structure.layers}
    prunable = [group.name for group in structure.groups]
    groups = {name: kinds.get(name, "") for name in (*prunable, *(frozen.name for frozen in structure.frozen))}
    ratios: dict[str, float] = {}
    for key, ratio in data.get("pruning", {}).items():
        ratios |= {name: ratio for name in _meant(key, groups, "groups") if name in prunable or name == key}
    layers: dict[str, dict[str, Any]] = {}
    for key, entry in data.get("layers", {}).items():
        for name in _meant(key, kinds, "layers"):
            layers[name] = layers.get(name, {}) | entry
    policy = Policy(ratios, {name: LayerPolicy(**entry) for name, entry in layers.items()})
    require_known_names(policy, structure)
    return policy


def template_names() -> list[str]:
    """The policy files that are shipped."""
    return sorted(path.stem for path in TEMPLATES.glob("*.yaml"))


def _name(key: Any) -> str:
    """A key as a name; YAML reads 1.10 as a number and forgets its last digit."""
    if isinstance(key, float):
        raise PolicyError("A name with a dot between digits is written in quotes", repr(key), f'Write "{key}".')
    return str(key)


def _file(source: str | Path) -> Path:
    template, path = TEMPLATES / f"{source}.yaml", Path(source)
    if not path.is_file() and not template.is_file():
        raise PolicyError("A policy is a file or a template", repr(str(source)), f"Templates: {', '.join(template_names())}.")
    return path if path.is_file() else template


def _meant(key: str, kinds: Mapping[str, str], what: str) -> Iterable[str]:
    """The names that a key stands for: itself, or what its pattern fits."""
    is_pattern = key.startswith(("re:", "type:")) or any(sign in key for sign in WILDCARDS)
    if key in kinds or not is_pattern:
        return [key]
    found = [name for name, kind in kinds.items() if matches(name, kind, key)]
    if not found and key != "*":
        raise PolicyError(
            f"A pattern matches at least one of the model's {what}", repr(key), f"It has: {', '.join(kinds) or 'none'}."
        )
    return found
