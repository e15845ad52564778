"""Which channels are silent while a model is pruned little by little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from autocompress.frameworks.pruning import BasePruning
from autocompress.frameworks.schedule import silent_channels


class FallingSilent:
    """The channels that go, the least important first.

    Args:
        pruning: groups and rankings of the original.
        removed: group → its channels that go.
        schedule: of `TuneSettings.pruning_schedule`.
    """

    def __init__(self, pruning: BasePruning, removed: Mapping[str, Sequence[int]], schedule: str) -> None:
        scores = pruning.scores("l2")
        self._groups, self._schedule = pruning.groups, schedule
        self._order = {name: [gone[i] for i in np.argsort(scores[name][list(gone)])] for name, gone in removed.items()}

    def at(self, fraction: float) -> dict[str, list[int]]:
        """Group → its channels that are silent when a fraction of the steps is done."""
        return {
            name: order[: silent_channels(self._groups[name].channels, len(order), fraction, self._schedule)]
            for name, order in self._order.items()
        }
