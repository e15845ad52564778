"""Points of a large space that are worth most, found by mutation and crossover of the best so far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Points = NDArray[np.int64]
Point = tuple[int, ...]

ENUMERABLE = 4096
"""Spaces up to this size are looked at whole."""
GENERATIONS, CHILDREN, PARENTS = 8, 250, 40
CROSSED = 0.3
"""Share of the children that have two parents."""
CHANGES = 3
"""Most decisions that a mutation changes."""
JUMPS = 0.2
"""Share of the changes that go to any choice; the others go to a neighbouring one."""


def best_bred(
    widths: Sequence[int],
    start: Sequence[Point],
    worth: Callable[[Points], Array],
    tried: Collection[Point],
    count: int,
    generator: np.random.Generator,
) -> list[Point]:
    """The untried points that are worth most, the best first.

    Args:
        widths: choices of each decision.
        start: points from which breeding begins.
        worth: of points, one a row.
        tried: points that are not to be found, though they may be parents.
        count: how many, at most.
        generator: of the random choices.
    """
    if math.prod(widths) <= ENUMERABLE:
        everything = np.array(list(itertools.product(*map(range, widths))), dtype=np.int64).reshape(-1, len(widths))
        return _best(everything, worth(everything), tried, count)
    drawn = generator.integers(0, widths, size=(PARENTS, len(widths)))
    pool = np.unique(np.concatenate([np.array(start, dtype=np.int64).reshape(-1, len(widths)), drawn]), axis=0)
    values = worth(pool)
    for _ in range(GENERATIONS):
        parents = pool[np.argsort(-values, kind="stable")[:PARENTS]]
        children = _new(_children(parents, np.asarray(widths), generator), pool)
        pool, values = np.concatenate([pool, children]), np.concatenate([values, worth(children)])
    return _best(pool, values, tried, count)


def _children(parents: Points, widths: Points, generator: np.random.Generator) -> Points:
    first, second = generator.integers(0, len(parents), size=(2, CHILDREN))
    crossed = generator.random(CHILDREN)[:, None] < CROSSED
    from_second = crossed & (generator.random((CHILDREN, len(widths))) < 0.5)
    children = np.where(from_second, parents[second], parents[first])
    order = generator.random(children.shape).argsort(1).argsort(1)
    changed = order < generator.integers(1, CHANGES + 1, size=(CHILDREN, 1))
    steps = children + generator.choice([-1, 1], size=children.shape)
    jumps = generator.integers(0, widths, size=children.shape)
    moved = np.where(generator.random(children.shape) < JUMPS, jumps, np.clip(steps, 0, widths - 1))
    return np.where(changed, moved, children)


def _new(children: Points, pool: Points) -> Points:
    known = set(map(tuple, pool.tolist()))
    fresh = [point for point in dict.fromkeys(map(tuple, children.tolist())) if point not in known]
    return np.array(fresh, dtype=np.int64).reshape(-1, pool.shape[1])


def _best(points: Points, values: Array, tried: Collection[Point], count: int) -> list[Point]:
    found: list[Point] = []
    for i in np.argsort(-values, kind="stable"):
        point = tuple(points[i].tolist())
        if point not in tried:
            found.append(point)
        if len(found) == count:
            break
    return found
