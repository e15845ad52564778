"""What is known of a space's choices before any candidate is fine-tuned: what they buy, and how much they hurt.

Latency comes from the layer table, sensitivities from scoring each choice alone. Those scores are taken on training samples,
by which no candidate is judged: the validation data stay apart from what decides on proposals.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

from autocompress.data import Batch, join
from autocompress.device import Fingerprint
from autocompress.policy import Policy
from autocompress.record import TrialRecord
from autocompress.space import SearchSpace
from autocompress.strategy.costs import PointCosts
from autocompress.strategy.sensitivity import Sensitivities, probe
from autocompress.target.cache import cache_folder
from autocompress.target.layer_table import MAX_SECONDS, LayerTable, build_table, untimed_graphs
from autocompress.target.predict import Predictor
from autocompress.trial import Workbench
from autocompress.watch import Watcher

SAMPLES = 512
"""On which a choice is scored."""
SECONDS_PER_GRAPH = 0.1
"""What a graph of the layer table takes to build and to time in the fewest rounds, roughly: twice its 0.05 CPU seconds."""


@dataclass
class Foresight:
    """Looks ahead for one model, space and target.

    Attributes:
        bench: with the task and the reference latency.
        space: whose choices are looked at.
        fingerprint: of the target.
        watcher: told of progress.
        most_seconds: after which no further round of timing layers begins.
    """

    bench: Workbench
    space: SearchSpace
    fingerprint: Fingerprint
    watcher: Watcher = field(default_factory=Watcher)
    most_seconds: float = MAX_SECONDS

    @property
    def table_seconds(self) -> float:
        """What the layer table takes, roughly, if it is timed in the fewest rounds; nothing where it was built before."""
        graph, ratios = self._graph, self._ratios
        return SECONDS_PER_GRAPH * untimed_graphs(graph, self.bench.structure, ratios, self.fingerprint)

    @cached_property
    def predictor(self) -> Predictor:
        """Of latencies, from the layer table."""
        if self.table_seconds:
            self.watcher.say("Timing the model's layers at several widths; they are remembered")
        known = (self._graph, self.bench.structure, self._ratios, self.fingerprint)
        table: LayerTable = build_table(*known, self.watcher.progress, most_seconds=self.most_seconds)
        return Predictor(table, self.bench.structure, self._graph)

    @cached_property
    def costs(self) -> PointCosts:
        """Of points of the space."""
        return PointCosts(self.space, self.bench.structure, self.predictor, self.bench.reference_ms)

    def observe(self, records: Sequence[TrialRecord]) -> None:
        """Let the predictor learn from latencies that were measured before the front was measured again."""
        for record in records:
            latency = record.latency_trained or record.latency_untrained
            if latency is not None and not record.policy.is_identity:
                self.predictor.observe(record.policy, latency.ratio)

    def sensitivities(self, seconds: float | None = None) -> Sensitivities:
        """How much each choice hurts, as far as that can be found out in a time; None for as long as it takes."""
        start = time.monotonic()
        said = False

        def goes_on(fraction: float) -> bool:
            nonlocal said
            if not said:
                self.watcher.say("Scoring every choice alone, without fine-tuning; the scores are remembered")
                said = True
            self.watcher.progress(fraction)
            return seconds is None or time.monotonic() - start < seconds

        path = cache_folder() / "sensitivities" / f"{self._key}.json"
        return probe(self.space.decisions, self._score, self.bench.task.scorer, path, goes_on)

    def _score(self, policy: Policy) -> float:
        """The metric of an untrained candidate on some training samples."""
        candidate = self.bench.candidate(policy)
        if not policy.is_identity:
            self.bench.framework.reestimate(self.bench.task, candidate)
        outputs = self.bench.framework.predict(self.bench.task, candidate, (batch.inputs for batch in self._samples))
        return self.bench.task.scorer(outputs, join([batch.targets for batch in self._samples]))

    @cached_property
    def _samples(self) -> list[Batch]:
        """Drawn once: a loader may shuffle and distort them anew each time."""
        split = self.bench.task.splits["train"]
        first = next(split.numpy())
        return list(islice(split.numpy(), -(-SAMPLES // first.size)))

    @cached_property
    def _key(self) -> str:
        """Names everything that the scores depend on."""
        task = self.bench.task
        words: list[Any] = [self.bench.framework.digest(task), task.splits["train"].length, task.batch_size, task.scorer.name]
        return hashlib.sha256(json.dumps([*words, self.bench.config.criterion, SAMPLES]).encode()).hexdigest()[:16]

    @cached_property
    def _graph(self) -> Any:
        original = self.bench.candidate(Policy())
        return self.bench.framework.to_openvino(self.bench.task, original, self.bench.target.batch).model

    @property
    def _ratios(self) -> dict[str, Sequence[float]]:
        return {d.subject: d.choices for d in (*self.space.decisions, *self.space.fixed) if d.kind == "prune"}
