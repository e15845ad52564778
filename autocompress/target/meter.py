"""Latency as a ratio to a reference model that is measured in the same moments.

One request is one synchronous `InferRequest.infer(inputs)` from Python: the inputs are handed over and the result is there when
it returns. Candidates and reference take turns in short blocks, forwards and backwards (B C A A C B), so drift and other load hit
all of them. Three things keep the rest of the machine out of the result:

- **The clock.** A CPU target with one thread computes in the calling thread. There the thread's own CPU time is taken: it equals
  wall time on a quiet machine and does not count the time in which another process had the core. Everything else (more threads,
  other devices, throughput) needs wall time.
- **The block.** Of every few calls of a block the faster half counts; an interrupt or a cold cache hits single calls. All models
  of a measurement are judged by equally many: the faster 3 of 5 and of 6 differ by 1 % on a busy machine.
- **The round.** Where a request's buffers and a model's weights happen to lie in memory was seen to make a model up to 1 %
  faster or slower than itself. Every round makes all requests anew, from one of several copies of each compiled model and in
  changing order; its ratio is that of the medians of its blocks. A round in which the reference takes much longer than it
  usually does is left out.

With a throughput hint, as many requests as the device finds best are kept in flight, and a "latency" is the time per request.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from scipy.stats import binom

from autocompress.record import Latency
from autocompress.target.runtime import core, is_cpu

BLOCK_SECONDS = 1.2e-3
"""Of one block: long against the clock, short against drift."""
JUDGED_CALLS = 4
"""Of so many calls in a row the faster half counts; fewer where a model is so slow that a block has no more."""
LONG_CALL_SECONDS = 2e-3
"""A call of this length fills the caches by itself; shorter ones are preceded by one that is not timed."""
ROUND_SECONDS = 10e-3
"""Of each model in a round, in which the models take turns 2 to 4 times, forwards and backwards."""
MIN_TURNS, MAX_TURNS = 2, 4
MIN_ROUNDS, MAX_ROUNDS = 40, 400
MIN_CALLS = 240
"""Of each model, and rounds, for the default precision; fewer are enough where less is asked for."""
FEWEST_ROUNDS = 9
"""Of slow models, for which more do not fit into the time; their interval says what that costs."""
MAX_SECONDS = 4.0
"""Per candidate."""
HALF_WIDTH = 0.01
"""Measuring stops when the interval reaches ± this fraction of the ratio."""
LAGS = 3
"""Rounds over which other load may last."""
ENOUGH_TO_CORRELATE = 20
DISTURBED = 1.5
"""A round is left out where the reference takes more than this many times its lower quartile."""
WARM_UP_CALLS = 1
PLACES, COPYING_SECONDS = 8, 0.1
"""Copies of a compiled model in memory, and how long it may take to make them."""
LARGEST_COPY_BYTES = 50_000_000
COPIED_PROPERTIES = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "ENABLE_CPU_PINNING")


class Timer:
    """A compiled model with inputs of its own, called in blocks.

    Attributes:
        call_seconds: of one call, about.
        calls: timed calls of a block.
        seconds: that a block takes, about.
    """

    def __init__(self, compiled: ov.CompiledModel, shapes: Sequence[Sequence[int]] | None = None) -> None:
        """Prepare and warm up.

        Args:
            compiled: the model.
            shapes: of the inputs; needed where they are dynamic.
        """
        self._places = [compiled]
        self._turn = 0
        known = shapes or [tuple(port.shape) for port in compiled.inputs]
        generator = np.random.default_rng(0)
        self._samples = [random_input(port, generator, shape) for port, shape in zip(compiled.inputs, known, strict=True)]
        self._clock = _clock(compiled)
        self._inputs: dict[int, NDArray[np.generic]] = {}
        self._queue: ov.AsyncInferQueue | None = None
        self._request: ov.InferRequest | None = None
        self.renew()
        self.call_seconds = min(self._call() for _ in range(3))
        self._warms_up = self.call_seconds < LONG_CALL_SECONDS
        self.judge(judged_calls([self]))

    def judge(self, calls: int) -> None:
        """Let the faster half count of so many calls in a row."""
        self._judged = calls
        self.calls = calls * max(1, round(BLOCK_SECONDS / self.call_seconds / calls))
        self.seconds = self.call_seconds * (self.calls + self._warms_up)

    def spread(self, places: int) -> None:
        """Hold the compiled model several times, where the device can copy it and does so quickly."""
        deadline = time.perf_counter() + COPYING_SECONDS
        while len(self._places) < places and time.perf_counter() < deadline and (copy := _copy(self._places[0])):
            self._places.append(copy)

    def forget(self) -> None:
        """Give the request's memory back."""
        self._request, self._queue, self._inputs = None, None, {}

    def block_seconds(self) -> float:
        """Seconds of a request: mean over the faster halves of a block of calls."""
        if self._warms_up:
            self._call()
        counted = (self._judged + 1) // 2
        samples = [sorted(self._call() for _ in range(self._judged))[:counted] for _ in range(self.calls // self._judged)]
        return sum(map(sum, samples)) / (len(samples) * counted)

    def renew(self) -> None:
        """Make a request and its inputs anew, elsewhere in memory."""
        self._inputs = {i: np.array(sample) for i, sample in enumerate(self._samples)}
        compiled = self._places[self._turn % len(self._places)]
        self._turn += 1
        self._queue = _queue(compiled)
        self._request = compiled.create_infer_request()
        for _ in range(WARM_UP_CALLS):
            self._call()

    def _call(self) -> float:
        start = self._clock()
        if self._queue is None:
            assert self._request is not None
            self._request.infer(self._inputs)
            return self._clock() - start
        requests = 2 * len(self._queue)
        for _ in range(requests):
            self._queue.start_async(self._inputs)
        self._queue.wait_all()
        return (self._clock() - start) / requests


def measure(
    candidates: Sequence[ov.CompiledModel | Timer],
    reference: ov.CompiledModel | Timer,
    reference_ms: float,
    half_width: float = HALF_WIDTH,
    max_seconds: float | None = None,
) -> list[Latency]:
    """Latencies of candidates, interleaved with the reference and with each other.

    Stops when every interval is within ± `half_width` of its ratio, or when the time is up; the result says which.

    Args:
        candidates: what is measured.
        reference: what they are compared with.
        reference_ms: the reference's own latency, from `reference_latency_ms`.
        half_width: relative precision that is asked for.
        max_seconds: for all candidates together; by default 4 s for each.
    """
    timers = [_timer(reference), *(_timer(candidate) for candidate in candidates)]
    judged = judged_calls(timers)
    for timer in timers:
        timer.judge(judged)
    if half_width <= HALF_WIDTH:
        for place, timer in enumerate(timers):
            timer.spread(PLACES - place % 2)  # one more or less, so that rounds pair all copies of two models
    slowest = max(timers, key=lambda timer: timer.seconds)
    turns = min(MAX_TURNS, max(MIN_TURNS, int(ROUND_SECONDS / (2 * slowest.seconds))))
    fewest = _fewest_rounds(2 * turns * slowest.calls, half_width)
    deadline = time.perf_counter() + (MAX_SECONDS * len(candidates) if max_seconds is None else max_seconds)
    rounds: list[list[float]] = []
    shuffle = np.random.default_rng(0)
    precise = False
    while len(rounds) < MAX_ROUNDS and not precise:
        rounds.append(_round(timers, turns, shuffle))
        late = time.perf_counter() > deadline
        if late and len(rounds) >= FEWEST_ROUNDS:
            break
        precise = len(rounds) >= fewest and all(_is_precise(samples, half_width) for samples in _ratios(rounds)[0])
    ratios, left_out = _ratios(rounds)
    return [_latency(samples, reference_ms, precise, left_out) for samples in ratios]


def judged_calls(timers: Sequence[Timer]) -> int:
    """Of how many calls in a row the faster half counts: as many as a block of the slowest model has, up to a few."""
    slowest = max(timer.call_seconds for timer in timers)
    return min(JUDGED_CALLS, max(1, round(BLOCK_SECONDS / slowest)))


def reference_latency_ms(compiled: ov.CompiledModel | Timer, max_seconds: float | None = None) -> float:
    """The reference's own latency: median over rounds, in milliseconds. An absolute time, so only as steady as the machine."""
    timer = _timer(compiled)
    deadline = time.perf_counter() + (MAX_SECONDS / 4 if max_seconds is None else max_seconds)
    samples: list[float] = []
    while len(samples) < FEWEST_ROUNDS or time.perf_counter() < deadline:
        samples.append(timer.block_seconds())
    return float(np.median(samples) * 1e3)


def median_interval(samples: Sequence[float] | NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median from order statistics (binomial with p = 1/2).

    Samples that follow each other may be alike, because other load lasts for several of them. They then count as
    fewer: n / (1 + 2 Σ ρ), with ρ the autocorrelations of "above the median" at the first three lags.
    """
    values = np.asarray(samples, dtype=float)
    ordered, count = np.sort(values), len(values)
    effective = max(1, round(count / _inflation(values)))
    rank = int(binom.ppf((1 - confidence) / 2, effective, 0.5))
    lower = max(round(rank * count / effective) - 1, 0) if rank * count >= effective else 0
    return float(ordered[lower]), float(ordered[count - 1 - lower])


def _inflation(values: NDArray[np.float64]) -> float:
    """By how much the variance of a mean of signs exceeds that of independent ones (at least 1)."""
    signs = np.sign(values - np.median(values))
    variance = float((signs**2).mean())
    if len(values) < ENOUGH_TO_CORRELATE or variance == 0:
        return 1.0
    correlations = [float((signs[lag:] * signs[:-lag]).mean()) / variance for lag in range(1, LAGS + 1)]
    return max(1.0, 1 + 2 * sum(correlations))


def random_input(port: ov.Output, generator: np.random.Generator, shape: Sequence[int] | None = None) -> NDArray[np.generic]:
    """A random array for an input; integers stay small, so that they are valid indices."""
    size, dtype = tuple(shape or port.shape), port.element_type.to_dtype()
    if np.issubdtype(dtype, np.floating):
        return generator.standard_normal(size).astype(dtype)
    return generator.integers(0, 2, size).astype(dtype)


def _round(timers: Sequence[Timer], turns: int, shuffle: np.random.Generator) -> list[float]:
    """Seconds of each model: the median of its blocks, in turns such as B C A A C B.

    Whom a model follows decides which of its data are still in the caches, so every round has an order of its own.
    """
    order = [timers[i] for i in shuffle.permutation(len(timers))]
    for timer in order:
        timer.forget()
    for timer in order:
        timer.renew()
    blocks: dict[int, list[float]] = {id(timer): [] for timer in timers}
    for _ in range(turns):
        for timer in [*order, *reversed(order)]:
            blocks[id(timer)].append(timer.block_seconds())
    return [float(np.median(blocks[id(timer)])) for timer in timers]


def _ratios(rounds: list[list[float]]) -> tuple[NDArray[np.float64], int]:
    """Candidate / reference, (candidates, rounds), of the undisturbed rounds; and how many rounds were left out."""
    seconds = np.array(rounds).T
    kept = seconds[0] <= DISTURBED * np.quantile(seconds[0], 0.25)
    return seconds[1:, kept] / seconds[0, kept], int((~kept).sum())


def _fewest_rounds(calls: int, half_width: float) -> int:
    """Rounds, of so many calls of each model, that are measured at least: less where less precision is asked for."""
    share = min(1.0, HALF_WIDTH / half_width) if half_width else 1.0
    return max(FEWEST_ROUNDS, math.ceil(share * max(MIN_ROUNDS, MIN_CALLS / calls)))


def _timer(model: ov.CompiledModel | Timer) -> Timer:
    return model if isinstance(model, Timer) else Timer(model)


def _clock(compiled: ov.CompiledModel) -> Callable[[], float]:
    """The thread's CPU time where the calling thread does all the work, else wall time."""
    devices = _property(compiled, "EXECUTION_DEVICES")
    alone = _property(compiled, "INFERENCE_NUM_THREADS") == 1 and _property(compiled, "PERFORMANCE_HINT") == "LATENCY"
    return time.thread_time if alone and devices and all(is_cpu(device) for device in devices) else time.perf_counter


def _copy(compiled: ov.CompiledModel) -> ov.CompiledModel | None:
    """The same compiled model elsewhere in memory; None where the device cannot copy it, or it is too large."""
    devices = _property(compiled, "EXECUTION_DEVICES")
    if devices != ["CPU"] or not _property(compiled, "INFERENCE_NUM_THREADS"):
        return None
    blob = io.BytesIO()
    compiled.export_model(blob)
    if blob.tell() > LARGEST_COPY_BYTES:
        return None
    return core().import_model(blob.getvalue(), "CPU", {name: compiled.get_property(name) for name in COPIED_PROPERTIES})


def _queue(compiled: ov.CompiledModel) -> ov.AsyncInferQueue | None:
    return ov.AsyncInferQueue(compiled) if _property(compiled, "PERFORMANCE_HINT") == "THROUGHPUT" else None


def _property(compiled: ov.CompiledModel, name: str) -> Any:
    """A property's value, with the name of an enumeration's member; None where the device does not tell."""
    try:
        value = compiled.get_property(name)
    except RuntimeError:
        return None
    return getattr(value, "name", value)


def _is_precise(samples: NDArray[np.float64], half_width: float) -> bool:
    low, high = median_interval(samples)
    return (high - low) / 2 <= half_width * float(np.median(samples))


def _latency(samples: NDArray[np.float64], reference_ms: float, precise: bool, left_out: int) -> Latency:
    low, high = median_interval(samples)
    return Latency(
        ratio=float(np.median(samples)),
        ratio_low=low,
        ratio_high=high,
        reference_ms=reference_ms,
        samples=tuple(round(float(s), 5) for s in samples),
        precise=precise,
        rounds_left_out=left_out,
    )
