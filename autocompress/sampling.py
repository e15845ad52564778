"""Who proposes the candidates of a search, and what it is told beforehand."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autocompress import baselines
from autocompress.config import Objective, SearchConfig
from autocompress.errors import PolicyError, TargetError
from autocompress.foresight import Foresight
from autocompress.metrics import Metric
from autocompress.policy import Policy
from autocompress.policy_file import read_policy, resolve_policy
from autocompress.record import TrialRecord
from autocompress.result import Result
from autocompress.strategy.knapsack import Cost, Points
from autocompress.strategy.prospect import Limits
from autocompress.strategy.rivals import rival
from autocompress.strategy.sampler import SurrogateSampler
from autocompress.strategy.seeds import seeds

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from autocompress.strategy.proposals import Proposals

TABLE_SHARE, PROBE_SHARE = 0.25, 0.1
"""Of the time that is left, what the layer table and the sensitivities may take."""
FULL = 0.999
"""The share of probed choices from which nothing is missing."""


@dataclass
class Sampling:
    """Tells the proposals of a search by whom they are made.

    Attributes:
        config: which sampler, from what it starts, which limits.
        foresight: what choices cost.
        objectives: what the front trades off.
        metric: the task's metric.
        budget_ms: the latency budget, if there is one.
    """

    config: SearchConfig
    foresight: Foresight
    objectives: Sequence[Objective]
    metric: Metric
    budget_ms: float | None
    is_foreseen: bool = False

    def begin(
        self, proposals: Proposals, known: Sequence[TrialRecord], records: Sequence[TrialRecord], seconds: float | None
    ) -> None:
        """Let proposals begin.

        Args:
            proposals: of the search.
            known: records that are told; those that will be run on are not among them.
            records: all of the run.
            seconds: that are left; None without a limit.
        """
        space = self.foresight.space
        start = self.start
        if self.config.sampler != "autocompress":
            own = [] if self.config.sampler == "random" else [*seeds(space)]
            proposals.begin(known, self._rival(self.config.sampler, proposals, records), [*start, *own])
            return
        reason = self._what_is_missing(seconds)
        if reason is not None:
            self.foresight.watcher.say(f"{reason}: uniform seeds and multivariate TPE propose instead")
            proposals.begin(known, self._rival("tpe", proposals, records), [*start, *seeds(space)])
            return
        self.is_foreseen = True
        sampler = self._surrogate(records, seconds)
        sampler.seeds()  # before the predictor learns from candidates: a resumed search has the same seeds
        self.foresight.observe([record for record in records if not record.is_baseline])
        proposals.begin(known, sampler, start)

    def _rival(self, name: str, proposals: Proposals, records: Sequence[TrialRecord]) -> BaseSampler:
        return rival(name, proposals.distributions, self.config.seed + len(records))

    def _what_is_missing(self, seconds: float | None) -> str | None:
        """Why nothing can be foreseen, in words."""
        if not self.foresight.space.decisions:
            return "Nothing is to be decided"
        if len(self.objectives) > 3:
            return "More than three objectives"
        needed = self.foresight.table_seconds
        if seconds is not None and needed > TABLE_SHARE * seconds:
            return f"Skipped for lack of time: the layer table (about {needed:.0f} s) and sensitivities"
        if seconds is not None:
            self.foresight.most_seconds = min(self.foresight.most_seconds, TABLE_SHARE * seconds)
        try:
            _ = self.foresight.predictor
        except TargetError as error:
            return f"The model's layers cannot be timed ({error})"
        return None

    def _surrogate(self, records: Sequence[TrialRecord], seconds: float | None) -> SurrogateSampler:
        foresight = self.foresight
        allowed = None if seconds is None else PROBE_SHARE * seconds
        probed = foresight.sensitivities(allowed)
        if probed.probed < FULL:
            foresight.watcher.say(f"Sensitivities of {probed.probed:.0%} of the choices were probed")
        foresight.observe([record for record in records if record.is_baseline])
        original = next(r.accuracy_valid for r in records if r.source == baselines.ORIGINAL)
        assert original is not None  # a search ends where the original cannot be scored
        return SurrogateSampler(
            foresight.space.decisions,
            foresight.costs.latency_ms,
            size=self._size(records) if len(self.objectives) == 3 or self.config.max_bytes else None,
            original=original,
            limits=self._limits(original),
            sensitivities=probed.damages,
            seed=self.config.seed,
        )

    def _limits(self, original: float) -> Limits:
        drop = self.config.accuracy_drop
        lost = None if drop is None else abs(original - drop.limit(original, self.metric))
        return Limits(self.budget_ms, lost, self.config.max_bytes)

    def _size(self, records: Sequence[TrialRecord]) -> Cost:
        """Bytes of points: what weights take, and what else a file was seen to hold."""
        is_compressed = "compressed_size" in self.objectives
        estimate = self.foresight.costs.compressed_bytes if is_compressed else self.foresight.costs.size_bytes
        rest = []
        for record in records:
            point = self.foresight.space.indices(record.policy)
            measured = record.compressed_bytes if is_compressed else record.size_bytes
            if record.is_baseline and point is not None and measured is not None:
                rest.append(measured - float(estimate(np.array([list(point.values())], dtype=np.int64))[0]))
        beside = max(0.0, statistics.median(rest)) if rest else 0.0

        def size(points: Points) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
            return beside + estimate(points)

        return size

    @cached_property
    def start(self) -> list[dict[str, int]]:
        """Points of the policies from which the search is told to start.

        Raises:
            UserError: a policy or a run cannot be read.
        """
        found = []
        for source in self.config.start_from:
            for policy in self._policies(source):
                point = self.foresight.space.indices(policy)
                if point is None:
                    self.foresight.watcher.say(f"A policy of {source} is not in the space: {policy.to_json()}")
                elif point not in found:
                    found.append(point)
        return found

    def _policies(self, source: str) -> list[Policy]:
        """Of a policy file or a template; or the front of another run."""
        if not Path(source).is_dir():
            return [resolve_policy(read_policy(source), self.foresight.bench.structure)]
        front = Result(source)
        numbers = set(front.front["trial"])
        if not numbers:
            raise PolicyError("A run to start from has a front", source)
        return [record.policy for record in front.records if record.number in numbers and not record.policy.is_identity]
