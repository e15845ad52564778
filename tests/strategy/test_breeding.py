import numpy as np
from numpy.typing import NDArray

from autocompress.strategy.breeding import best_bred

Points = NDArray[np.int64]


def near_ones(points: Points) -> NDArray[np.float64]:
    return -np.abs(points - 1).sum(1).astype(float)


def bred(widths: list[int], tried: set[tuple[int, ...]], count: int = 1) -> list[tuple[int, ...]]:
    start = (0,) * 6 + (1,) * (len(widths) - 6)
    return best_bred(widths, [start[: len(widths)]], near_ones, tried, count, np.random.default_rng(0))


def test_the_best_point_of_a_small_space_is_found_exactly() -> None:
    assert bred([3, 4, 2], set()) == [(1, 1, 1)]
    assert bred([3, 4, 2], {(1, 1, 1)})[0] in {(0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0)}


def test_a_large_space_is_climbed() -> None:
    (best,) = bred([6] * 20, set())
    assert near_ones(np.array([best]))[0] >= -2


def test_nothing_tried_is_found_and_the_best_comes_first() -> None:
    first = bred([6] * 20, set(), 8)
    found = bred([6] * 20, set(first), 8)
    assert not set(first) & set(found)
    values = near_ones(np.array(found)).tolist()
    assert values == sorted(values, reverse=True)
    assert len(set(found)) == 8


def test_a_space_that_is_used_up_has_nothing_left() -> None:
    assert bred([2, 2], {(0, 0), (0, 1), (1, 0), (1, 1)}) == []
