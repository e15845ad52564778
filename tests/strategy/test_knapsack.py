"""The knapsack against exhaustive search in small spaces."""

import itertools

import numpy as np
import pytest

from autocompress.strategy.knapsack import Points, damage_of, knapsack_seeds

DRAW = np.random.default_rng(0)
DAMAGES = tuple(np.cumsum(np.concatenate([[0.0], DRAW.uniform(0.01, 0.3, 3)])) for _ in range(5))
SAVINGS = [np.concatenate([[0.0], np.cumsum(DRAW.uniform(0.02, 0.06, 3))]) for _ in range(5)]
EVERYTHING = np.array(list(itertools.product(range(4), repeat=5)))


def latency(points: Points) -> np.ndarray:
    return 1 - sum(saving[points[:, i]] for i, saving in enumerate(SAVINGS))


def size(points: Points) -> np.ndarray:
    return 1000.0 - 60 * points[:, :3].sum(1)


@pytest.mark.parametrize("limit", [np.inf, 0.8, 0.6])
def test_no_point_of_the_space_is_faster_and_less_damaged(limit: float) -> None:
    found = knapsack_seeds(DAMAGES, [latency], [limit], 8)
    assert 3 <= len(found) <= 8
    damages, latencies = damage_of(DAMAGES, EVERYTHING), latency(EVERYTHING)
    for point in np.array(found):
        better = (damages < damage_of(DAMAGES, point[None]) - 1e-9) & (latencies < latency(point[None]) - 1e-9)
        assert not better.any()
        assert latency(point[None])[0] <= limit


def test_they_go_from_the_least_to_the_most_compression() -> None:
    found = np.array(knapsack_seeds(DAMAGES, [latency], [np.inf], 8))
    assert (np.diff(damage_of(DAMAGES, found)) > 0).all()
    assert found[0].tolist() == [0] * 5
    assert found[-1].tolist() == [3] * 5


def test_a_budget_that_nothing_keeps_gives_the_nearest() -> None:
    assert knapsack_seeds(DAMAGES, [latency], [0.01], 8) == [(3, 3, 3, 3, 3)]


def test_size_gets_seeds_of_its_own() -> None:
    found = np.array(knapsack_seeds(DAMAGES, [latency, size], [0.9, 700.0], 8))
    assert (latency(found) <= 0.9).all()
    assert (size(found) <= 700).all()
    assert len(found) > 3


def test_a_space_without_decisions_has_its_only_point() -> None:
    assert knapsack_seeds((), [lambda points: np.ones(len(points))], [np.inf], 8) == [()]
