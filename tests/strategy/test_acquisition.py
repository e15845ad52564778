"""Expected improvement against sampling, and against a slow hypervolume."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from autocompress.strategy.acquisition import expected_excess, expected_improvement

Array = NDArray[np.float64]


def slow_hypervolume(gains: Array, costs: Array, floor: float, limits: Sequence[float]) -> float:
    """Sum over a fine grid of costs of the best gain that they buy."""
    cells = 60
    steps = [np.linspace(0, limit, cells + 1)[:-1] + limit / cells / 2 for limit in limits]
    corners = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, len(limits))
    reached = (costs[None] <= corners[:, None]).all(2)
    best = np.where(reached, gains, floor).max(1, initial=floor)
    return float((best - floor).sum() * np.prod([limit / cells for limit in limits]))


@pytest.mark.parametrize(("mean", "spread", "level"), [(0.0, 0.1, 1.0), (0.3, 0.5, 0.9), (1.0, 0.2, 0.1), (-0.2, 0.3, 1.5)])
def test_the_expected_excess_is_that_of_samples(mean: float, spread: float, level: float) -> None:
    gains = np.exp(-np.random.default_rng(0).normal(mean, spread, 400_000))
    expected = np.maximum(gains - level, 0).mean()
    found = expected_excess(np.array([mean]), np.array([spread]), np.array([level]))
    assert found[0] == pytest.approx(expected, rel=0.02, abs=1e-4)


@pytest.mark.parametrize("objectives", [1, 2])
def test_the_improvement_is_the_hypervolume_that_is_added(objectives: int) -> None:
    draw = np.random.default_rng(3)
    gains, costs = draw.uniform(0.5, 1, 7), draw.uniform(0, 1, (7, objectives))
    limits, floor = np.full(objectives, 0.9), 0.4
    before = slow_hypervolume(gains, costs, floor, limits)
    for _ in range(10):
        gain, cost = draw.uniform(0.3, 1.1), draw.uniform(0, 1, objectives)
        after = slow_hypervolume(np.append(gains, gain), np.vstack([costs, cost]), floor, limits)
        certain = expected_improvement(np.array([-np.log(gain)]), np.zeros(1), cost[None], gains, costs, (floor, limits))
        assert certain[0] == pytest.approx(after - before, abs=0.02)


@given(st.integers(0, 10_000))
def test_it_is_never_negative_and_nothing_beyond_the_limits(seed: int) -> None:
    draw = np.random.default_rng(seed)
    known, count = draw.integers(0, 6), 20
    costs = draw.uniform(0, 2, (count, 2))
    found = expected_improvement(
        draw.normal(0.2, 0.3, count), draw.uniform(0, 0.3, count), costs,
        draw.uniform(0, 1, known), draw.uniform(0, 2, (known, 2)), (0.5, np.ones(2)),
    )  # fmt: skip
    assert (found >= 0).all()
    assert (found[(costs >= 1).any(1)] == 0).all()


def test_of_two_equal_candidates_the_uncertain_one_is_worth_more() -> None:
    known = np.array([0.9]), np.array([[0.5]])
    found = expected_improvement(np.full(2, 0.2), np.array([0.01, 0.2]), np.full((2, 1), 0.5), *known, (0.5, np.ones(1)))
    assert found[1] > 10 * found[0]
