"""The first candidates: points that spread over the space before anything is known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from autocompress.space import SearchSpace

LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)
BRANCHES, BESIDE_A_BRANCH = 3, 2 / 3
"""How many points remove a residual branch, and at which level the rest of the network is then."""


def seeds(space: SearchSpace) -> Iterator[dict[str, int]]:
    """Uniform points from the least to the most compression, then points between two neighbouring uniform ones.

    A point between takes one level for the first half of the decisions and the next level for the second half, or the other way
    round: the early layers of a network hold the time, the late ones the weights, so the two halves trade differently. Between
    both kinds stand points without one of the first residual branches, whose layers work on the largest images.
    """
    seen: list[dict[str, int]] = []
    for point in (*_uniform(space), *_without_a_branch(space), *_between(space)):
        if point not in seen:
            seen.append(point)
            yield point


def _uniform(space: SearchSpace) -> Iterator[dict[str, int]]:
    for level in LEVELS:
        yield space.level(level)


def _without_a_branch(space: SearchSpace) -> Iterator[dict[str, int]]:
    for decision in [decision for decision in space.decisions if decision.ends_whole][:BRANCHES]:
        yield space.level(BESIDE_A_BRANCH) | {decision.name: len(decision.choices) - 1}


def _between(space: SearchSpace) -> Iterator[dict[str, int]]:
    names = [decision.name for decision in space.decisions]
    half = len(names) // 2
    for low, high in pairwise(LEVELS):
        lower, upper = space.level(low), space.level(high)
        yield {name: (lower if i < half else upper)[name] for i, name in enumerate(names)}
        yield {name: (upper if i < half else lower)[name] for i, name in enumerate(names)}
