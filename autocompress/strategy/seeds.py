"""The first candidates: points that spread over the space before anything is known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from autocompress.space import SearchSpace

LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)


def seeds(space: SearchSpace) -> Iterator[dict[str, int]]:
    """Uniform points from the least to the most compression, then points between two neighbouring uniform ones.

    A point between takes one level for the first half of the decisions and the next level for the second half, or the other way
    round: the early layers of a network hold the time, the late ones the weights, so the two halves trade differently.
    """
    seen: list[dict[str, int]] = []
    for point in (*_uniform(space), *_between(space)):
        if point not in seen:
            seen.append(point)
            yield point


def _uniform(space: SearchSpace) -> Iterator[dict[str, int]]:
    for level in LEVELS:
        yield space.level(level)


def _between(space: SearchSpace) -> Iterator[dict[str, int]]:
    names = [decision.name for decision in space.decisions]
    half = len(names) // 2
    for low, high in pairwise(LEVELS):
        lower, upper = space.level(low), space.level(high)
        yield {name: (lower if i < half else upper)[name] for i, name in enumerate(names)}
        yield {name: (upper if i < half else lower)[name] for i, name in enumerate(names)}
