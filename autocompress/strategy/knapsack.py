"""The first candidates of a search that knows what its choices cost: a knapsack packed for one price of latency after the other.

For a price, the point is sought whose damage plus the price of what it costs is smallest, by changing one decision after the
other (Everett 1963, generalized Lagrange multipliers). Latency need not be a sum over decisions for that. As the price rises the
points walk from the least to the most compression; some of those within the limits are picked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from autocompress.strategy.damages import Damages

Array = NDArray[np.float64]
Points = NDArray[np.int64]
Cost = Callable[[Points], Array]
"""Points, one a row → what each costs."""

PRICES = np.geomspace(1e-3, 1e2, 32)
"""Damage that is paid for all of the original's cost."""
MIXES = ((1.0,), (1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
"""Weights of one cost; and of two."""


def knapsack_seeds(damages: Damages, costs: Sequence[Cost], limits: Sequence[float], count: int) -> list[tuple[int, ...]]:
    """Points that lose least for what they save, spread from the limits down to the most compression.

    Args:
        damages: of every choice of every decision.
        costs: one or two.
        limits: the most that each may be; infinity where there is no limit.
        count: how many points, at most.

    Returns:
        The least damaged first. Where nothing keeps the limits, the points that come nearest to them.
    """
    walked: dict[tuple[int, ...], None] = {}
    for mix in MIXES:
        if len(mix) == len(costs):
            walked |= dict.fromkeys(_walk(damages, costs, mix))
    points = np.array(list(walked), dtype=np.int64).reshape(len(walked), len(damages))
    excess = np.max([cost(points) / limit for cost, limit in zip(costs, limits, strict=True)], axis=0)
    kept = points[excess <= max(1.0, excess.min())]
    damage = damage_of(damages, kept)
    order = np.argsort(damage, kind="stable")
    return [tuple(map(int, kept[i])) for i in order[_spread(np.sqrt(damage[order]), count)]]


def damage_of(damages: Damages, points: Points) -> Array:
    """The sum of the damages of each point's choices."""
    total = np.zeros(len(points))
    for i, damage in enumerate(damages):
        total += damage[points[:, i]]
    return total


def _walk(damages: Damages, costs: Sequence[Cost], mix: Sequence[float]) -> list[tuple[int, ...]]:
    """The best point for each price, each found from the one before."""
    point = np.zeros(len(damages), dtype=np.int64)
    units = [max(float(cost(point[None])[0]), np.finfo(float).tiny) for cost in costs]
    found = []
    for price in PRICES:
        point = _descended(point, damages, partial(_priced, damages=damages, costs=costs, units=units, mix=mix, price=price))
        found.append(tuple(map(int, point)))
    return found


def _priced(
    points: Points, damages: Damages, costs: Sequence[Cost], units: Sequence[float], mix: Sequence[float], price: float
) -> Array:
    total = damage_of(damages, points)
    for cost, unit, weight in zip(costs, units, mix, strict=True):
        if weight:
            total = total + price * weight * cost(points) / unit
    return total


def _descended(point: Points, damages: Damages, value: Cost) -> Points:
    """The point from which no change of one decision is better."""
    reached = float(value(point[None])[0])
    while True:
        neighbours = _neighbours(point, damages)
        values = value(neighbours) if len(neighbours) else np.array([reached])
        best = int(values.argmin())
        if values[best] >= reached - 1e-12:
            return point
        point, reached = neighbours[best], float(values[best])


def _neighbours(point: Points, damages: Damages) -> Points:
    """Every point that differs in one decision."""
    found = []
    for i, damage in enumerate(damages):
        others = np.delete(np.arange(len(damage)), point[i])
        changed = np.repeat(point[None], len(others), axis=0)
        changed[:, i] = others
        found.append(changed)
    return np.concatenate(found) if found else np.empty((0, 0), dtype=np.int64)


def _spread(values: Array, count: int) -> list[int]:
    """Indices of ascending values that are evenly spread, the first and the last among them."""
    wanted = np.linspace(values.min(initial=np.inf), values.max(initial=-np.inf), count if len(values) else 0)
    return sorted({int(np.abs(values - one).argmin()) for one in wanted})
