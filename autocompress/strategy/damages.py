"""What each choice is believed to cost in accuracy before any candidate was fine-tuned.

A damage is a number for each choice of each decision, zero where the choice leaves the model as it is. Only proportions count:
damages are brought to a common scale, on which all decisions at random choices together lose 1 on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.decision import Decision
from autocompress.policy import FLOAT, sparsity_of

GROWTH = 3.0
"""Generic damage of a removed fraction r: (exp(GROWTH·r) - 1) / (exp(GROWTH) - 1)."""
OF_WEIGHTS = {FLOAT: 0.0, 8: 0.01, 7: 0.015, 4: 0.1, 3: 0.25, 2: 0.5, 1: 1.0}
OF_ACTIVATIONS = {FLOAT: 0.0, 8: 0.01, 4: 0.2, 1: 1.0}
"""Generic damages of bit-widths, relative to that of a removed branch."""
SMALLEST = 1e-3
"""Of a probed damage, relative to the largest: below that a probe sees only noise."""

Damages = tuple[NDArray[np.float64], ...]
"""For each decision, one number for each of its choices."""


def generic_damages(decisions: Sequence[Decision]) -> Damages:
    """What is believed where nothing was probed."""
    return _scaled(tuple(np.array([_generic(d.kind, choice) for choice in d.choices]) for d in decisions))


def probed_damages(decisions: Sequence[Decision], sensitivities: Mapping[str, Sequence[float]]) -> Damages:
    """Probed sensitivities on the common scale.

    Args:
        decisions: of the space.
        sensitivities: decision name → damage of each choice, NaN where it was not probed; decisions may be missing.

    Returns:
        What was not probed is NaN, and so is the removal of a whole branch: the layers after it see other data until they are
        trained, so a probe says nothing of what it costs then.
    """
    known = [_known(d, sensitivities.get(d.name, np.full(len(d.choices), np.nan))) for d in decisions]
    largest = max((float(np.nanmax(one)) for one in known if not np.isnan(one).all()), default=1.0)
    return tuple(np.maximum(one, SMALLEST * max(largest, SMALLEST)) for one in known)


def _known(decision: Decision, damages: Any) -> NDArray[np.float64]:
    found = np.array(damages, dtype=float)
    if decision.ends_whole:
        found[-1] = np.nan
    return found


def blended(generic: Damages, probed: Damages, weight: float) -> Damages:
    """A geometric mean of both beliefs, where both exist.

    Args:
        generic: of every choice.
        probed: of the choices that were probed, else NaN.
        weight: of the probed ones, from 0 to 1.
    """
    scaled = _brought_to(probed, generic)
    found = []
    for prior, probe in zip(generic, scaled, strict=True):
        mixed = np.where(np.isnan(probe), prior, probe**weight * prior ** (1 - weight))
        found.append(np.where(prior == 0, 0.0, mixed))
    return _scaled(tuple(found))


def _generic(kind: str, choice: Any) -> float:
    if kind == "bits":
        weights, activations = choice
        return OF_WEIGHTS[weights] + OF_ACTIVATIONS[activations]
    fraction = float(choice) if kind == "prune" else sparsity_of(choice)
    return float(np.expm1(GROWTH * fraction) / np.expm1(GROWTH))


def _brought_to(probed: Damages, generic: Damages) -> Damages:
    """Probed damages on the scale of the generic ones, compared where both are known."""
    both = [(p, g) for p, g in zip(probed, generic, strict=True) if not np.isnan(p).all()]
    total = sum(float(np.nansum(np.where(g > 0, p, 0.0))) for p, g in both)
    alike = sum(float(np.sum(np.where(np.isnan(p), 0.0, g))) for p, g in both)
    return tuple(p * (alike / total) for p in probed) if total > 0 and alike > 0 else probed


def _scaled(damages: Damages) -> Damages:
    total = sum(float(one.mean()) for one in damages)
    return tuple(one / total for one in damages) if total > 0 else damages
