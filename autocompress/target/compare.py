"""An honest comparison of any models: interleaved, ratios with intervals, ties said to be ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocompress.device import Target
from autocompress.errors import ConfigError
from autocompress.record import Latency
from autocompress.target.load import load_model, request_shapes
from autocompress.target.meter import HALF_WIDTH, Timer, measure, median_interval, reference_latency_ms
from autocompress.target.runtime import compile_model

RESOLUTION = 0.5
"""Of the precision that is asked for: a smaller difference is a tie.

At the default of 1 % a model was seen to differ from itself by up to 0.4 %, and its interval left 1 out.
"""


@dataclass(frozen=True)
class Compared:
    """One of the models.

    Attributes:
        name: its path, as it was given.
        latency: relative to the first model; time per request at full load under a throughput hint.
        rank: 1 for the fastest; a model that cannot be told apart from the one before it shares its rank.
        samples_per_second: for the whole device.
    """

    name: str
    latency: Latency
    rank: int
    samples_per_second: float

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        latency = self.latency
        return {
            "model": self.name,
            "rank": self.rank,
            "ms": latency.ms,
            "low_ms": latency.low_ms,
            "high_ms": latency.high_ms,
            "ratio": latency.ratio,
            "ratio_low": latency.ratio_low,
            "ratio_high": latency.ratio_high,
            "samples_per_second": self.samples_per_second,
            "rounds": len(latency.samples),
            "rounds_left_out": latency.rounds_left_out,
            "precise": latency.precise,
        }


def compare(models: Sequence[str | Path], target: Target, half_width: float = HALF_WIDTH) -> list[Compared]:
    """Measure models side by side on a target.

    Args:
        models: IR or ONNX files or bundles. The first is what the others are compared with.
        target: where they run.
        half_width: relative precision of the ratios that is asked for.

    Returns:
        The models in the given order.

    Raises:
        ConfigError: no model at all.
        ModelError, TargetError: a model or the target cannot be used.
    """
    if not models:
        raise ConfigError("A comparison has at least one model", "none")
    timers = [_timer(path, target) for path in models]
    latencies = measure(timers, timers[0], reference_latency_ms(timers[0]), half_width)
    ranks = _ranks([np.array(latency.samples) for latency in latencies], RESOLUTION * half_width)
    return [
        Compared(str(path), latency, rank, 1000 * target.batch / latency.ms)
        for path, latency, rank in zip(models, latencies, ranks, strict=True)
    ]


def _timer(path: str | Path, target: Target) -> Timer:
    model = load_model(path, target)
    return Timer(compile_model(model, target), request_shapes(model, target, str(path)))


def _ranks(samples: Sequence[NDArray[np.float64]], resolution: float) -> list[int]:
    """Ranks by median; a model shares the rank of the one before it if the interval of their ratio reaches 1 ± resolution."""
    order = sorted(range(len(samples)), key=lambda i: float(np.median(samples[i])))
    ranks = dict.fromkeys(order[:1], 1)
    for place, (before, this) in enumerate(pairwise(order), start=2):
        low, high = median_interval(samples[this] / samples[before])
        ranks[this] = ranks[before] if low <= 1 + resolution and high >= 1 - resolution else place
    return [ranks[i] for i in range(len(samples))]
