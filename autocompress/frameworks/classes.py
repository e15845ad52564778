"""Which channels can only go together: ids that are noted in pairs and become classes in the end."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
"""One id for each element of a tensor; 0 is "no channel"."""
MOST_PAIRS = 4_000_000
"""Elements that are compared one by one."""


class Classes:
    """Ids, what was found to go together, and what has to stay, with the reason."""

    def __init__(self) -> None:
        self._count = 1
        self._pairs: list[Ids] = []
        self._frozen: list[tuple[Ids, str]] = []

    def new(self, count: int) -> Ids:
        """Ids that nothing else has."""
        first, self._count = self._count, self._count + count
        return np.arange(first, self._count, dtype=np.int64)

    def join(self, one: ArrayLike, other: ArrayLike) -> None:
        """Elements at the same place (after broadcasting) can only go together. What meets no channel has to stay."""
        one, other = np.asarray(one), np.asarray(other)
        first, second = np.broadcast_arrays(one, other)
        if first.size > MOST_PAIRS:  # too many to look at: whatever meets there can only go as a whole
            first = np.unique(np.concatenate([one.reshape(-1), other.reshape(-1)]))
            second = np.broadcast_to(first.max(), first.shape)
        coded = np.unique((first.reshape(-1) * self._count + second.reshape(-1)).astype(np.int64))
        pairs = np.stack(np.divmod(coded, self._count))
        both = (pairs > 0).all(0)
        self._pairs.append(pairs[:, both])
        self.freeze(pairs[:, ~both], "its channels meet values that do not follow them")

    def freeze(self, ids: ArrayLike, reason: str) -> None:
        """These have to stay."""
        found = np.unique(np.asarray(ids).reshape(-1)).astype(np.int64)
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
