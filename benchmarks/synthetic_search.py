"""A made-up search problem of 26 decisions (about 10^17 policies) whose truth is known: for tests and `compare_search.py`.

12 groups × 8 ratios and 14 layers × {float, 8, 4 bits} in a chain. Latency goes in steps of 8 channels and pays for every change
between float and integer. Accuracy falls with a smooth function of damages that have interactions of a form which the project's
surrogate does not have: the worst of neighbours counts more than their sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from autocompress.decision import Decision
from autocompress.policy import FLOAT

Array = NDArray[np.float64]
Points = NDArray[np.int64]

GROUPS, LAYERS, CHANNELS, STEP = 12, 14, 64, 8
RATIOS = tuple(round(i / 8, 3) for i in range(8))
BITS = ((FLOAT, FLOAT), (8, 8), (4, 8))
SPEED = np.array([1.0, 0.45, 0.43])
DAMAGE_OF_BITS = np.array([0.0, 0.004, 0.05])
ORIGINAL, WORST_DROP, BUDGET = 0.93, 0.08, 0.5
TRIAL_SECONDS, PROBE_SECONDS = 20.0, 1.0
"""Of fine-tuning a candidate and of scoring one choice without, as on a small real network."""
GATE_SHARE = 0.05


@dataclass(eq=False)
class Problem:
    """One random network.

    Attributes:
        seed: of the network.
        noise: standard deviation of a measured accuracy.
        probe_error: standard deviation of the logarithm of a probed sensitivity.
    """

    seed: int
    noise: float = 0.003
    probe_error: float = 0.5
    decisions: tuple[Decision, ...] = field(init=False)
    original, budget, worst_drop = ORIGINAL, BUDGET, WORST_DROP

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed)
        self.decisions = (
            *(Decision("prune", f"layer{i}", RATIOS) for i in range(GROUPS)),
            *(Decision("bits", f"layer{i}", BITS) for i in range(LAYERS)),
        )
        self._area = draw.lognormal(0, 0.6, LAYERS)
        self._fragile, self._growth = draw.lognormal(-4.2, 0.8, GROUPS), draw.uniform(1.5, 3.5, GROUPS)
        self._touchy = draw.lognormal(0, 0.8, LAYERS)
        errors = draw.normal(0, self.probe_error, (GROUPS + LAYERS, len(RATIOS)))
        self.sensitivities = {
            d.name: [8 * value * np.exp(errors[i, j]) for j, value in enumerate(self._damage(i))]
            for i, d in enumerate(self.decisions)
        }
        self._dense = 1.0
        self._dense = float(self.latency(np.zeros((1, GROUPS + LAYERS), dtype=np.int64))[0])

    def latency(self, points: Points) -> Array:
        """Relative to the model without compression, (n,)."""
        kept = CHANNELS * (1 - np.array(RATIOS))[points[:, :GROUPS]]
        blocks = np.ceil(np.hstack([kept[:, :1], kept, np.full((len(points), LAYERS - GROUPS), CHANNELS)]) / STEP)
        blocks = np.hstack([np.full((len(points), 1), 1.0), blocks])[:, : LAYERS + 1]
        bits = points[:, GROUPS:]
        work = blocks[:, :-1] * blocks[:, 1:] * self._area * SPEED[bits]
        changes = (np.diff(bits > 0, axis=1) * blocks[:, 1:-1]).sum(1)
        found: Array = (work.sum(1) + 0.8 * changes + 0.05 * LAYERS * 8) / self._dense
        return found

    def size(self, points: Points) -> Array:
        """Bytes of the weights, (n,)."""
        kept = CHANNELS * (1 - np.array(RATIOS))[points[:, :GROUPS]]
        outputs = np.hstack([kept, np.full((len(points), LAYERS - GROUPS), CHANNELS)])
        inputs = np.hstack([np.full((len(points), 1), 3.0), outputs[:, :-1]])
        found: Array = (9 * inputs * outputs * np.array([4.0, 1.0, 0.5])[points[:, GROUPS:]]).sum(1)
        return found

    def accuracy(self, points: Points) -> Array:
        """Without noise, (n,)."""
        damages = np.stack([self._damage(i)[points[:, i]] for i in range(GROUPS + LAYERS)], axis=1)
        prune, bits = damages[:, :GROUPS], damages[:, GROUPS:]
        worst = np.maximum(prune[:, 1:], prune[:, :-1]).sum(1) + 2 * np.maximum(prune, bits[:, :GROUPS]).max(1)
        total = damages.sum(1) + 0.5 * worst
        found: Array = 0.1 + (ORIGINAL - 0.1) * np.exp(-(total + 0.8 * total**2))
        return found

    def measured(self, point: Points, draw: np.random.Generator) -> tuple[float, float]:
        """Accuracy and latency of one trial, with noise."""
        latency = float(self.latency(point[None])[0]) * (1 + draw.normal(0, 0.01))
        return float(self.accuracy(point[None])[0]) + draw.normal(0, self.noise), latency

    @property
    def gate_share(self) -> float:
        """Compiling and measuring, relative to a fine-tuning."""
        return GATE_SHARE

    def seconds(self, point: Points) -> float:
        """Every fine-tuning takes as long as any other."""
        return TRIAL_SECONDS

    @property
    def probing_seconds(self) -> float:
        """Of all choices."""
        return PROBE_SECONDS * sum(len(d.choices) - 1 for d in self.decisions)

    def truth(self, points: Points) -> tuple[Array, Array]:
        """Latencies and accuracies without noise."""
        return self.latency(points), self.accuracy(points)

    @cache  # noqa: B019 — a problem lives as long as the benchmark
    def best_front(self) -> tuple[Array, Array]:
        """Latencies and accuracies of the best that a long search with full knowledge finds, within the budget."""
        draw = np.random.default_rng(1)
        pool = np.zeros((1, GROUPS + LAYERS), dtype=np.int64)
        widths = np.array([len(d.choices) for d in self.decisions])
        for _ in range(400):
            parents = pool[draw.integers(0, len(pool), 1000)]
            others = pool[draw.integers(0, len(pool), 1000)]
            crossed = np.where((draw.random(parents.shape) < 0.5) & (draw.random((1000, 1)) < 0.5), others, parents)
            changed = draw.random(crossed.shape) < 2 / len(widths)
            steps = np.clip(crossed + draw.choice([-1, 1], crossed.shape), 0, widths - 1)
            jumps = draw.integers(0, widths, crossed.shape)
            moved = np.where(draw.random(crossed.shape) < 0.3, jumps, steps)
            pool = np.unique(np.concatenate([pool, np.where(changed, moved, crossed)]), axis=0)
            latency, accuracy = self.latency(pool), self.accuracy(pool)
            order = np.lexsort([latency, -accuracy])
            kept = latency[order] <= np.minimum.accumulate(latency[order])
            pool = pool[order[kept][:300]]
        return self.latency(pool), self.accuracy(pool)

    def _damage(self, decision: int) -> Array:
        if decision < GROUPS:
            return self._fragile[decision] * np.expm1(self._growth[decision] * np.array(RATIOS))
        return self._touchy[decision - GROUPS] * DAMAGE_OF_BITS * 0.25
