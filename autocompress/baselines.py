"""The dull alternatives. They run through the same trial code, so what beats them beats them honestly."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.policy import Policy
from autocompress.record import Plan
from autocompress.space import uniform_policy
from autocompress.structure import Structure

UNIFORM_RATIOS = (0.5, 0.25, 0.75)
"""In this order, since there may not be time for all."""
ORIGINAL, FLOAT32, INT8 = "baseline:original", "baseline:f32", "baseline:int8"


def untrained_baselines(structure: Structure, default_precision: str) -> list[tuple[str, Plan]]:
    """The original at the target's default precision, in FP32 where that differs, and in INT8 after training."""
    plans = [(ORIGINAL, Plan.of(Policy()))]
    if default_precision != "f32":
        plans.append((FLOAT32, Plan.of(Policy(), precision="f32")))
    return [*plans, (INT8, Plan.of(uniform_policy(structure), tune=False))]


def uniform_baselines(structure: Structure, steps: Mapping[str, int]) -> list[tuple[str, Plan]]:
    """Every group pruned by one ratio, every layer in INT8, fine-tuned."""
    plans: dict[str, tuple[str, Plan]] = {}
    for ratio in UNIFORM_RATIOS if structure.groups else ():
        plan = Plan.of(uniform_policy(structure, ratio, steps))
        plans.setdefault(plan.key, (f"baseline:uniform-{round(ratio * 100)}", plan))
    return list(plans.values())
