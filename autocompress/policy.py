"""What is done to a model: a pruning ratio per group, bit-widths and a sparsity level per layer.

A policy is immutable and hashable. Its canonical JSON (sorted names, nothing that equals the default) is its identity: two
policies with one JSON do the same to a model, and `Policy.key` names the results of both.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autocompress.errors import PolicyError

FLOAT = "float"
Bits = int | str  # a bit-width, or FLOAT

WEIGHT_BITS: tuple[Bits, ...] = (FLOAT, 8, 7, 4, 3, 2, 1)
"""2 bits on a symmetric grid are ternary: the codes -1, 0 and 1. 1 bit has -1 and 1."""
ACTIVATION_BITS: tuple[Bits, ...] = (FLOAT, 8, 4, 1)
UNSTRUCTURED = "unstructured"


@dataclass(frozen=True)
class LayerPolicy:
    """What is done to one convolution or linear layer.

    Attributes:
        weights: bits of the weight grid, symmetric per output channel, or "float".
        activations: bits of the layer's input, or "float".
        sparsity: fraction of weights set to zero, in [0, 1). With a pattern N:M it is 1 - N/M, and need not be given.
        pattern: where the zeros are: "unstructured", or "N:M": the N largest of every M consecutive input channels are kept.
            Of a shorter last block N are kept too, so a layer with up to N input channels stays dense.

    Raises:
        PolicyError: one of these is not as described.
    """

    weights: Bits = FLOAT
    activations: Bits = FLOAT
    sparsity: float = 0.0
    pattern: str = UNSTRUCTURED

    def __post_init__(self) -> None:
        _check_choice("weights", self.weights, WEIGHT_BITS)
        _check_choice("activations", self.activations, ACTIVATION_BITS)
        _check_fraction("sparsity", self.sparsity)
        for name in ("weights", "activations"):
            bits = getattr(self, name)
            object.__setattr__(self, name, bits if bits == FLOAT else int(bits))
        object.__setattr__(self, "sparsity", _canonical_fraction(self.sparsity))
        self._unite_pattern_and_sparsity()
        if self.activations != FLOAT and self.weights == FLOAT:
            raise PolicyError(
                "Quantized activations need quantized weights",
                f"weights float, activations {self.activations}",
                "Set weights to 8 or fewer bits, or activations to float.",
            )

    def _unite_pattern_and_sparsity(self) -> None:
        block = block_of(self.pattern)
        if block is None:
            return
        sparsity = sparsity_of(self.pattern)
        if self.sparsity not in (0.0, sparsity):
            remedy = f"Leave the sparsity out, or write {sparsity:g}."
            raise PolicyError("A pattern N:M has the sparsity 1 - N/M", f"{self.pattern} with {self.sparsity:g}", remedy)
        object.__setattr__(self, "pattern", f"{block[0]}:{block[1]}")
        object.__setattr__(self, "sparsity", sparsity)

    @property
    def block(self) -> tuple[int, int] | None:
        """(N, M) of the pattern; None where it is unstructured."""
        return block_of(self.pattern)

    @property
    def is_integer(self) -> bool:
        """True where the layer is meant to run in an integer kernel."""
        return self.weights != FLOAT and self.activations != FLOAT

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from the default."""
        default = LayerPolicy.__dataclass_fields__
        return {name: getattr(self, name) for name in default if getattr(self, name) != default[name].default}


@dataclass(frozen=True, init=False)
class Policy:
    """What is done to a model.

    Args:
        pruning: group name → fraction of its channels that is removed, in [0, 1]. Of a group that can be removed whole, 1 removes
            the residual branch whose inner group it is; another group keeps one channel.
        layers: layer name → LayerPolicy. A layer that is not named stays as it is.

    Raises:
        PolicyError: a ratio outside [0, 1], or a layer's policy that is none.
    """

    _pruning: tuple[tuple[str, float], ...]
    _layers: tuple[tuple[str, LayerPolicy], ...]

    def __init__(self, pruning: Mapping[str, float] | None = None, layers: Mapping[str, LayerPolicy] | None = None) -> None:
        for name, ratio in (pruning or {}).items():
            _check_ratio(name, ratio)
        for name, layer in (layers or {}).items():
            if not isinstance(layer, LayerPolicy):
                raise PolicyError(
                    f"Layer {name} of a policy has a LayerPolicy", repr(layer), "Policy.from_dict reads plain data."
                )
        ratios = {name: 1.0 if _is_whole(ratio) else _canonical_fraction(ratio) for name, ratio in (pruning or {}).items()}
        changed = {name: layer for name, layer in (layers or {}).items() if layer != UNCHANGED}
        object.__setattr__(self, "_pruning", tuple(sorted((name, ratio) for name, ratio in ratios.items() if ratio)))
        object.__setattr__(self, "_layers", tuple(sorted(changed.items())))

    @property
    def pruning(self) -> dict[str, float]:
        """Group name → ratio, without the groups that stay whole."""
        return dict(self._pruning)

    @property
    def layers(self) -> dict[str, LayerPolicy]:
        """Layer name → LayerPolicy, without the layers that stay as they are."""
        return dict(self._layers)

    def layer(self, name: str) -> LayerPolicy:
        """What is done to the layer of this name."""
        return self.layers.get(name, UNCHANGED)

    @property
    def is_identity(self) -> bool:
        """True where the policy leaves the model as it is."""
        return not self._pruning and not self._layers

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_dict`."""
        return {"pruning": self.pruning, "layers": {name: layer.to_dict() for name, layer in self._layers}}

    def to_json(self) -> str:
        """Canonical JSON: one text for one policy."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name this policy."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, data: Any) -> Policy:
        """Read what `to_dict` wrote, or what a user wrote by hand."""
        if not isinstance(data, Mapping) or not set(data) <= {"pruning", "layers"}:
            raise PolicyError(
                "A policy is a mapping with the keys pruning and layers",
                sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__,
                'Write {"pruning": {GROUP: RATIO}, "layers": {LAYER: {"weights": 8, "activations": 8}}}.',
            )
        pruning, layers = data.get("pruning") or {}, data.get("layers") or {}
        for name, part in (("pruning", pruning), ("layers", layers)):
            if not isinstance(part, Mapping):
                raise PolicyError(f"'{name}' of a policy is a mapping", repr(part))
        ratios = {str(name): ratio for name, ratio in pruning.items()}  # YAML reads the "0" of an nn.Sequential as a number
        return cls(ratios, {str(name): _layer_from_dict(str(name), layer) for name, layer in layers.items()})

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Parse JSON.

        Raises:
            PolicyError: the text is not JSON, or not a policy.
        """
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise PolicyError("A policy file is JSON", str(error), 'Start from {"pruning": {}, "layers": {}}.') from error


def block_of(pattern: str) -> tuple[int, int] | None:
    """(N, M) of a sparsity pattern "N:M"; None for "unstructured".

    Raises:
        PolicyError: it is neither.
    """
    if pattern == UNSTRUCTURED:
        return None
    found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", pattern) if isinstance(pattern, str) else None
    kept, block = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < kept < block:
        raise PolicyError('pattern is "unstructured" or "N:M" with 0 < N < M', repr(pattern), 'In quotes, for example "2:4".')
    return kept, block


def sparsity_of(level: float | str) -> float:
    """The fraction of zeros of a level: the level itself, or that of a pattern "N:M"."""
    block = block_of(level) if isinstance(level, str) else None
    return _canonical_fraction(1 - block[0] / block[1] if block else float(level))


def _layer_from_dict(name: str, data: Any) -> LayerPolicy:
    known = set(LayerPolicy.__dataclass_fields__)
    if not isinstance(data, Mapping) or not set(data) <= known:
        received = sorted(map(str, set(data) - known)) if isinstance(data, Mapping) else repr(data)
        raise PolicyError(f"Layer {name} of a policy takes the keys {', '.join(sorted(known))}", received)
    return LayerPolicy(**data)


def _check_choice(name: str, value: Bits, choices: tuple[Bits, ...]) -> None:
    if isinstance(value, bool) or value not in choices:
        raise PolicyError(f"{name} takes one of {_listed(choices)}", repr(value))


def _is_whole(ratio: float) -> bool:
    return ratio == 1 and not isinstance(ratio, bool)


def _is_fraction(value: float) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < 1


def _check_ratio(group: str, value: float) -> None:
    if not _is_fraction(value) and not _is_whole(value):
        remedy = "0 leaves it whole, 0.5 removes half, 1 a whole residual branch."
        raise PolicyError(f"pruning ratio of {group} lies in [0, 1]", repr(value), remedy)


def _check_fraction(name: str, value: float) -> None:
    if not _is_fraction(value):
        raise PolicyError(f"{name} lies in [0, 1)", repr(value), "0 leaves it whole, 0.5 removes half.")


def _canonical_fraction(value: float) -> float:
    return min(round(float(value), 6), 0.999999)


def _listed(choices: tuple[Bits, ...]) -> str:
    return ", ".join(str(choice) for choice in choices)


UNCHANGED = LayerPolicy()
"""A layer that stays as it is."""
