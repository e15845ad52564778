"""Labels: which channel each element of a tensor belongs to, and which channels can only go together.

A label tensor has one class id per element; 0 is "no channel". It is kept small: along a dimension in which it does not vary its
size is 1. Ids that must go together are noted in pairs and become classes in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
MOST_PAIRS = 4_000_000
"""Elements that are compared one by one."""


class Classes:
    """Ids, what was found to go together, and what has to stay, with the reason."""

    def __init__(self) -> None:
        self._count = 1
        self._pairs: list[Ids] = []
        self._frozen: list[tuple[Ids, str]] = []

    def new(self, count: int) -> torch.Tensor:
        """Ids that nothing else has."""
        first, self._count = self._count, self._count + count
        return torch.arange(first, self._count, dtype=torch.float64)

    def join(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Elements at the same place (after broadcasting) can only go together. What meets no channel has to stay."""
        first, second = torch.broadcast_tensors(one, other)
        if first.numel() > MOST_PAIRS:  # too many to look at: whatever meets there can only go as a whole
            first = torch.unique(torch.cat([one.reshape(-1), other.reshape(-1)]))
            second = first.max().expand_as(first)
        coded = np.unique((first.reshape(-1) * self._count + second.reshape(-1)).numpy().astype(np.int64))
        pairs = np.stack(np.divmod(coded, self._count))
        both = (pairs > 0).all(0)
        self._pairs.append(pairs[:, both])
        self.freeze(torch.from_numpy(pairs[:, ~both]), "its channels meet values that do not follow them")

    def freeze(self, ids: torch.Tensor, reason: str) -> None:
        """These have to stay."""
        found = np.unique(ids.reshape(-1).numpy()).astype(np.int64)
        found = found[found > 0]
        if found.size:
            self._frozen.append((found, reason))

    def resolve(self) -> tuple[Ids, dict[int, str]]:
        """Class of each id, and why a class has to stay, for those that have."""
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *self._pairs], axis=1)
        links = coo_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(self._count, self._count))
        classes = connected_components(links, directed=False)[1].astype(np.int64)
        reasons: dict[int, str] = {}
        for ids, reason in self._frozen:
            for found in np.unique(classes[ids]).tolist():
                reasons.setdefault(found, reason)
        return classes, reasons


def compressed(label: torch.Tensor) -> torch.Tensor:
    """The label with size 1 along every dimension in which it does not vary."""
    for axis in range(label.ndim):
        if label.shape[axis] > 1:
            first = label.narrow(axis, 0, 1)
            if bool((label == first).all()):
                label = first
    return label.clone()


def varies(label: torch.Tensor, axis: int) -> bool:
    """True where the label differs along a dimension."""
    return label.shape[axis] > 1


def aligned(label: torch.Tensor, ndim: int) -> torch.Tensor:
    """The label with dimensions of size 1 in front, as broadcasting adds them."""
    return label.reshape(*[1] * (ndim - label.ndim), *label.shape)


def united(classes: Classes, label: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """The label after its elements along some axes were mixed with each other: they can only go together."""
    axes = [axis % label.ndim for axis in axes if label.ndim]
    if not any(varies(label, axis) for axis in axes):
        return label
    one = label.amax(axes, keepdim=True)
    classes.join(label, one)
    return one
