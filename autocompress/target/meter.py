"""Latency as a ratio to a reference model that is measured in the same moments.

One request is one synchronous `InferRequest.infer(inputs)` from Python: the inputs are handed over and the result is there when
it returns. Candidate and reference take turns in short rounds, so drift and other load hit both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from scipy.stats import binom

from autocompress.record import Latency

ROUND_SECONDS = 2e-3
"""Each model's share of a round: long against the clock, short against drift."""
MIN_ROUNDS, MAX_ROUNDS = 30, 400
FEWEST_ROUNDS = 9
"""Of slow models, for which 30 rounds do not fit into the time; their interval says what that costs."""
MAX_SECONDS = 2.0
"""Per candidate."""
HALF_WIDTH = 0.01
"""Measuring stops when the interval reaches ± this fraction of the ratio."""
WARM_UP_CALLS = 5


class Timer:
    """A compiled model with an input of its own, called in blocks."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        generator = np.random.default_rng(0)
        self._inputs = {i: random_input(port, generator) for i, port in enumerate(compiled.inputs)}
        for _ in range(WARM_UP_CALLS):
            self._request.infer(self._inputs)
        self._calls = max(1, int(ROUND_SECONDS / self._time(3)))

    def block_seconds(self) -> float:
        """Mean seconds of a call over one block of calls, after one call that warms the caches again."""
        self._request.infer(self._inputs)
        return self._time(self._calls)

    def _time(self, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            self._request.infer(self._inputs)
        return (time.perf_counter() - start) / calls


def measure(
    candidates: Sequence[ov.CompiledModel],
    reference: ov.CompiledModel,
    reference_ms: float,
    half_width: float = HALF_WIDTH,
) -> list[Latency]:
    """Latencies of candidates, interleaved with the reference and with each other.

    Stops when every interval is within ± `half_width` of its ratio, or after 2 s per candidate.
    """
    timers = [Timer(reference), *(Timer(candidate) for candidate in candidates)]
    ratios: list[list[float]] = [[] for _ in candidates]
    deadline = time.perf_counter() + MAX_SECONDS * len(candidates)
    for done in range(1, MAX_ROUNDS + 1):
        first = timers[0].block_seconds()
        blocks = [timer.block_seconds() for timer in timers[1:]]
        reference_seconds = (first + timers[0].block_seconds()) / 2
        for samples, seconds in zip(ratios, blocks, strict=True):
            samples.append(seconds / reference_seconds)
        late = time.perf_counter() > deadline
        if done >= FEWEST_ROUNDS and late:
            break
        if done >= MIN_ROUNDS and all(_is_precise(samples, half_width) for samples in ratios):
            break
    return [_latency(samples, reference_ms) for samples in ratios]


def reference_latency_ms(compiled: ov.CompiledModel) -> float:
    """The reference's own latency: median over rounds, in milliseconds. An absolute time, so only as steady as the machine."""
    timer = Timer(compiled)
    deadline = time.perf_counter() + MAX_SECONDS
    samples: list[float] = []
    while len(samples) < FEWEST_ROUNDS or (len(samples) < MAX_ROUNDS // 2 and time.perf_counter() < deadline):
        samples.append(timer.block_seconds())
    return float(np.median(samples) * 1e3)


def median_interval(samples: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median from order statistics (binomial with p = 1/2)."""
    ordered = np.sort(np.asarray(samples, dtype=float))
    rank = int(binom.ppf((1 - confidence) / 2, len(ordered), 0.5))
    lower = max(rank - 1, 0)
    return float(ordered[lower]), float(ordered[len(ordered) - 1 - lower])


def random_input(port: ov.Output, generator: np.random.Generator) -> NDArray[np.generic]:
    """A random array for an input; integers stay small, so that they are valid indices."""
    shape, dtype = tuple(port.shape), port.element_type.to_dtype()
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def _is_precise(samples: Sequence[float], half_width: float) -> bool:
    low, high = median_interval(samples)
    return (high - low) / 2 <= half_width * float(np.median(samples))


def _latency(samples: Sequence[float], reference_ms: float) -> Latency:
    low, high = median_interval(samples)
    return Latency(
        ratio=float(np.median(samples)),
        ratio_low=low,
        ratio_high=high,
        reference_ms=reference_ms,
        samples=tuple(round(s, 5) for s in samples),
    )
