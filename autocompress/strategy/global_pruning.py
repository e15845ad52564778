"""Pruning ratios of all groups in one go: the least important channels per unit of saved cost first, until a target is met.

A group's importance is what its channels' scores add up to, so what counts is the share of it that is left. A signal passes
through the groups one after the other; what remains of it is taken to be the product of their shares, and the loss of a removal
is the logarithm of the share that it leaves. Scores of two groups are never compared, only shares. The same channels weigh more
the fewer are left, so no group is emptied while others stay whole. For the same reason residual branches go whole only where no
channel saves anything any more. On a ResNet-8 a branch whose shortcut was taken to carry half of the signal went first, and cost
five times the accuracy that channels of the same latency did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autocompress.errors import ConfigError
from autocompress.structure import Structure

Cost = Callable[[Mapping[str, float]], float]
"""Ratios → what the pruned model costs, relative to the original."""
SAVING = 1e-9
"""A saving below this fraction of the cost is rounding."""


@dataclass(frozen=True)
class Ladder:
    """The widths that a group can have.

    Attributes:
        ratios: from 0 upwards.
        losses: at each ratio, minus the logarithm of the share of importance that is left.
    """

    ratios: tuple[float, ...]
    losses: NDArray[np.float64]


def reachable_ratios(channels: int, step: int, limit: float = 1.0) -> tuple[float, ...]:
    """0 and every ratio up to a limit that leaves a multiple of `step` channels, ascending. A step is always left."""
    fewest = max(step, channels - int(channels * limit + SAVING))
    kept = [channels, *(count for count in range((channels - 1) // step * step, 0, -step) if count >= fewest)]
    return tuple(round(1 - count / channels, 6) for count in kept)


def global_ratios(
    structure: Structure,
    scores: Mapping[str, ArrayLike],
    steps: Mapping[str, int],
    cost: Cost,
    target: float,
    limits: Mapping[str, float] | None = None,
    branches: Collection[str] = (),
) -> dict[str, float]:
    """The ratios at which a target is met.

    No group could be given a step of its channels back without missing the target.

    Args:
        structure: of the model.
        scores: group name → importance of each channel, not negative. A group without scores stays whole.
        steps: group name → the multiple of channels that is kept.
        cost: of the pruned model, relative to the original.
        target: the highest cost that is allowed.
        limits: group name → its largest ratio; by default a step of channels is left.
        branches: inner groups of residual branches that may also be removed whole, as a last resort.

    Returns:
        Group name → ratio, without the groups that stay whole.

    Raises:
        ConfigError: the target is below what the smallest model costs, which the message tells.
    """
    ladders = ladders_of(structure, scores, steps, limits, branches)
    smallest = float("inf")
    for rungs, reached in _climb(ladders, cost):
        if reached <= target:
            return _ratios(ladders, _given_back(ladders, rungs, cost, target))
        smallest = min(smallest, reached)
    raise ConfigError(
        "A pruning target is at least what the smallest model costs",
        f"{target:.1%} of the original",
        f"The smallest that pruning reaches is {smallest:.1%}.",
    )


def pruning_path(ladders: Mapping[str, Ladder], cost: Cost) -> Iterator[dict[str, float]]:
    """Ratios of smaller and smaller models, from the whole one to the smallest: each prunes one group further."""
    for rungs, _ in _climb(ladders, cost):
        yield _ratios(ladders, rungs)


def ladders_of(
    structure: Structure,
    scores: Mapping[str, ArrayLike],
    steps: Mapping[str, int],
    limits: Mapping[str, float] | None = None,
    branches: Collection[str] = (),
) -> dict[str, Ladder]:
    """The ladder of every group that has scores; see `global_ratios` for the meaning of the rest."""
    found = {}
    for group in structure.groups:
        if group.name in scores:
            ratios = reachable_ratios(group.channels, steps.get(group.name, 1), (limits or {}).get(group.name, 1.0))
            if group.removable and group.name in branches:
                ratios = (*ratios, 1.0)
            left = _shares_left(np.asarray(scores[group.name], dtype=float), [group.removed(ratio) for ratio in ratios])
            found[group.name] = Ladder(ratios, -np.log(np.maximum(left, np.finfo(float).tiny)))
    return found


def _shares_left(scores: NDArray[np.float64], removed: list[int]) -> NDArray[np.float64]:
    """Shares of the importance that are left when so many of the least important channels are removed."""
    total = scores.sum()
    shares = np.sort(scores) / total if total > 0 else np.full(len(scores), 1 / len(scores))
    left: NDArray[np.float64] = 1 - np.concatenate([[0.0], np.cumsum(shares)])[removed]
    return left


def _climb(ladders: Mapping[str, Ladder], cost: Cost) -> Iterator[tuple[dict[str, int], float]]:
    """(rung of each group, cost) of smaller and smaller models, down to the smallest."""
    rungs = dict.fromkeys(ladders, 0)
    reached = cost({})
    while True:
        yield dict(rungs), reached
        moves = [
            _move(ladders, rungs, name, cost, reached) for name, rung in rungs.items() if rung + 1 < len(ladders[name].ratios)
        ]
        if not moves:
            return
        _, _, name, rungs[name], reached = min(moves)


def _move(
    ladders: Mapping[str, Ladder], rungs: Mapping[str, int], name: str, cost: Cost, reached: float
) -> tuple[bool, float, str, int, float]:
    """The shortest step of a group that saves anything: (False, loss per saved cost, group, rung, cost).

    A kernel may take as long for fewer channels, and an estimated cost is wrong at times. Groups of which no step saves anything
    come last: (True, loss of the next step, group, rung, cost).
    """
    losses, rung = ladders[name].losses, rungs[name]
    costs = []
    for further in range(rung + 1, len(losses)):
        costs.append(cost(_ratios(ladders, {**rungs, name: further})))
        saved = reached - costs[-1]
        if saved > SAVING * reached:
            return False, float(losses[further] - losses[rung]) / saved, name, further, costs[-1]
    return True, float(losses[rung + 1] - losses[rung]), name, rung + 1, costs[0]


def _given_back(ladders: Mapping[str, Ladder], rungs: Mapping[str, int], cost: Cost, target: float) -> dict[str, int]:
    """The rungs without the steps that the target does not need: the last step may have overshot it. The dearest go first."""
    found = dict(rungs)
    while True:
        steps = [(ladders[name].losses[rung] - ladders[name].losses[rung - 1], name) for name, rung in found.items() if rung]
        for _, name in sorted(steps, reverse=True):
            fewer = {**found, name: found[name] - 1}
            if cost(_ratios(ladders, fewer)) <= target:
                found = fewer
                break
        else:
            return found


def _ratios(ladders: Mapping[str, Ladder], rungs: Mapping[str, int]) -> dict[str, float]:
    return {name: ladders[name].ratios[rung] for name, rung in rungs.items() if rung}
