"""Expected hypervolume improvement where only the accuracy is uncertain.

What a candidate costs (latency, perhaps size) is known before it is trained, so the hypervolume that it would add is a sum over
the cells between the known costs: the cell's extent times what the candidate's gain would exceed the best known gain in it. The
gain is log-normal, and the expectation of what a log-normal number exceeds a level has a closed form (Black and Scholes 1973).
A gain cannot be as large as a log-normal number, so all of it that is above a highest gain does not count.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]
SMALLEST = 1e-12


def expected_excess(mean: Array, spread: Array, level: Array) -> Array:
    """E[max(exp(-z) - level, 0)] where z is normal. Arguments are broadcast.

    Args:
        mean: of z.
        spread: standard deviation of z.
        level: at least 0.
    """
    spread, level = np.maximum(spread, SMALLEST), np.maximum(level, SMALLEST)
    distance = (-mean - np.log(level)) / spread
    excess: Array = np.exp(-mean + spread**2 / 2) * ndtr(distance + spread) - level * ndtr(distance)
    positive: Array = np.maximum(excess, 0.0)
    return positive


def expected_improvement(
    mean: Array,
    spread: Array,
    costs: Array,
    known_gains: Array,
    known_costs: Array,
    reference: tuple[float, Array],
    highest: float = np.inf,
) -> Array:
    """The hypervolume that each candidate is expected to add to what is known.

    Args:
        mean: of each candidate's z, (n,); its gain is exp(-z).
        spread: standard deviation of it, (n,).
        costs: one or two costs of each candidate, (n, k), to be minimised.
        known_gains: of what was tried, (m,).
        known_costs: of what was tried, (m, k).
        reference: the gain and the costs (k,) from which hypervolume is counted. What costs more adds nothing.
        highest: gain that is possible.

    Returns:
        (n,), not negative.
    """
    floor, limits = reference
    kept = (known_costs < limits).all(1) & (known_gains > floor)
    known_gains, known_costs = known_gains[kept], known_costs[kept]
    edges = [np.unique(known_costs[:, axis]) for axis in range(costs.shape[1])]
    extents = [_extents(costs[:, axis], edge, limit) for axis, (edge, limit) in enumerate(zip(edges, limits, strict=True))]
    levels = _best_gains(edges, known_gains, known_costs, floor)
    total = np.zeros(len(costs))
    impossible = expected_excess(mean, spread, np.array(highest)) if np.isfinite(highest) else np.zeros(1)
    for level in np.unique(levels):  # cells with one level share one expectation
        volume = sum(_product(extents, cell) for cell in np.argwhere(levels == level))
        total += volume * np.maximum(expected_excess(mean, spread, np.array(level)) - impossible, 0.0)
    return total


def _extents(costs: Array, edges: Array, limit: float) -> Array:
    """How much of each interval between the edges lies beyond each cost, (n, intervals)."""
    bounds = np.concatenate([[-np.inf], edges, [limit]])
    extents: Array = np.maximum(np.minimum(bounds[1:], limit) - np.maximum(bounds[:-1], costs[:, None]), 0.0)
    return extents


def _best_gains(edges: list[Array], gains: Array, costs: Array, floor: float) -> Array:
    """The best known gain in every cell: of what costs no more than its lower corner."""
    best = np.full([len(edge) + 1 for edge in edges], floor)
    for cell in itertools.product(*(range(1, len(edge) + 1) for edge in edges)):
        corner = np.array([edge[i - 1] for edge, i in zip(edges, cell, strict=True)])
        reached = (costs <= corner).all(1)
        best[cell] = max(floor, float(gains[reached].max(initial=floor)))
    return best


def _product(extents: list[Array], cell: NDArray[np.int64]) -> Array:
    found: Array = np.prod([extent[:, i] for extent, i in zip(extents, cell, strict=True)], axis=0)
    return found
