"""What the probe says about a search space: channel steps, weights that saturate, choices that buy nothing here.

A choice is inert if a less compressed one is as fast and the choice buys none of the chosen objectives. Nothing is left out
without a line that says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autocompress.capabilities import TIE, Capabilities, Form, form_of
from autocompress.decision import Decision
from autocompress.policy import FLOAT, UNSTRUCTURED, Bits, sparsity_of
from autocompress.structure import Group, Layer, Structure

PROBED_AS: dict[Bits, Bits] = {7: 8, 3: 4}
"""Widths whose kernel and storage are those of a probed width."""
SIZES = ("size", "compressed_size")
UNKNOWN_STEP = 8


@dataclass
class Listener:
    """Applies what was probed to decisions.

    Attributes:
        structure: of the model.
        capabilities: what was probed; None: nothing is known, so nothing is left out.
        objectives: what the front trades off.
        left_out: what was left out → the layers for which it was.
    """

    structure: Structure
    capabilities: Capabilities | None
    objectives: Sequence[str]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def bits(self, decision: Decision) -> Decision:
        """A decision on bit-widths without the inert ones; 8-bit weights become 7-bit ones where they saturate."""
        if self.capabilities is None:
            return decision
        form = layer_form(self._layer(decision.subject))
        choices = list(decision.choices)
        if self.capabilities.saturates and any(weights == 8 and activations != FLOAT for weights, activations in choices):
            self._note(
                "8-bit weights: sums of their products overflow on this device "
                f"(errors of {self.capabilities.numerics.weights_8:.0%}), so 7-bit grids are used",
                decision,
            )
            choices = [(7 if weights == 8 and activations != FLOAT else weights, activations) for weights, activations in choices]
        kept: list[Any] = []
        for choice in dict.fromkeys(choices):
            reason = self._inert_bits(choice, kept, form)
            if reason:
                self._note(reason, decision)
            else:
                kept.append(choice)
        return replace(decision, choices=tuple(kept))

    def zeros(self, decision: Decision) -> Decision:
        """A decision on sparsity without the levels that buy nothing."""
        if self.capabilities is None or "compressed_size" in self.objectives:
            return decision
        form = layer_form(self._layer(decision.subject))
        kept = tuple(level for level in decision.choices if not level or self._zeros_pay(form, level))
        left = [level for level in decision.choices if level not in kept]
        if left:
            levels = ", ".join(f"{level:g}" if isinstance(level, float) else level for level in left)
            remedy = f"they buy compressed size, so they need --objectives {','.join([*self.objectives, 'compressed_size'])}"
            self._note(f"zeros in weights ({levels}): same latency as none on this device; {remedy}", decision)
        return replace(decision, choices=kept or (0.0,))

    def step(self, group: Group, *, integer: bool) -> int:
        """To which multiple the channels of a group are rounded: the largest step of its layers.

        Where a channel of the group is several of a layer, fewer of them make a step.
        """
        precision = "int8" if integer or self.capabilities is None else self.capabilities.float_precision
        steps = []
        for name in group.layers:
            layer = self._layer(name)
            step = UNKNOWN_STEP if self.capabilities is None else _layer_step(self.capabilities, layer, precision)
            steps.append(step // math.gcd(step, group.width(name)))
        return max(steps, default=1)

    def notes(self) -> list[str]:
        """One line for everything that was left out."""
        total = len(self.structure.layers)
        return [f"{what} ({_these(names, total)})" for what, names in self.left_out.items()]

    def _zeros_pay(self, form: Form, level: float | str) -> bool:
        assert self.capabilities is not None
        pattern = level if isinstance(level, str) else UNSTRUCTURED
        return self.capabilities.zeros_pay(form, sparsity_of(level), pattern)

    def _inert_bits(self, choice: tuple[Bits, Bits], kept: Iterable[tuple[Bits, Bits]], form: Form) -> str | None:
        """Why a choice is inert beside those that are kept; None if it is not."""
        assert self.capabilities is not None
        weights, activations = choice
        for other in kept:
            if FLOAT in other or FLOAT in choice or not self._as_fast(other, choice, form):
                continue
            if activations == other[1] and set(self.objectives) & set(SIZES):
                continue
            if activations == other[1]:
                remedy = f"they buy size, so they need --objectives {','.join([*self.objectives, 'size'])}"
                return f"{weights}-bit weights: same latency as {other[0]}-bit on this device; {remedy}"
            if weights == other[0]:
                return f"{activations}-bit activations: not faster than {other[1]}-bit on this device, and they buy no size"
        if choice == (1, 1) and not self.capabilities.binary_pays(form) and not set(self.objectives) & set(SIZES):
            return f"binary {form} layers: no binary kernel that is right and faster than INT8 on this device"
        return None

    def _as_fast(self, other: tuple[Bits, Bits], choice: tuple[Bits, Bits], form: Form) -> bool:
        assert self.capabilities is not None
        facts = [self.capabilities.best(form, *(PROBED_AS.get(bits, bits) for bits in pair)) for pair in (other, choice)]
        return all(facts) and facts[0].speedup * (1 + TIE) >= facts[1].speedup  # type: ignore[union-attr]

    def _layer(self, name: str) -> Layer:
        return next(layer for layer in self.structure.layers if layer.name == name)

    def _note(self, what: str, decision: Decision) -> None:
        self.left_out.setdefault(what, []).append(decision.subject)


def layer_form(layer: Layer) -> Form:
    """The form in which a layer was probed."""
    return form_of(layer.weight_shape, layer.groups, linear=len(layer.weight_shape) == 2)


def steps_in_words(steps: Mapping[str, int]) -> list[str]:
    """A line that tells to which multiples channels are rounded."""
    found = sorted(set(steps.values()))
    if not found:
        return []
    several = "; ".join(f"{step} ({_these([n for n, s in steps.items() if s == step], len(steps))})" for step in found)
    return [f"Channel counts are multiples of {found[0] if len(found) == 1 else several}: the step of this device"]


def _layer_step(capabilities: Capabilities, layer: Layer, precision: str) -> int:
    form = layer_form(layer)
    step = capabilities.channel_step(form, precision)
    return step * layer.groups if form == "grouped" else step


def _these(names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return "all"
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
