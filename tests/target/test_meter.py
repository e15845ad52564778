"""Latency: the interval of the median, and ratios to a reference that is measured in the same moments."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from autocompress.device import Target
from autocompress.target import meter
from autocompress.target.meter import measure, median_interval, random_input, reference_latency_ms
from autocompress.target.runtime import compile_model

pytestmark = pytest.mark.timing


def convolutions(count: int, dtype: type = np.float32) -> ov.CompiledModel:
    """`count` convolutions of 32 channels on 20×20."""
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32) / 17
    parameter = ops.parameter([1, 32, 20, 20], dtype)
    node = parameter if dtype is np.float32 else ops.convert(parameter, np.float32)
    for _ in range(count):
        node = ops.relu(ops.convolution(node, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1]))
    return compile_model(ov.Model([node], [parameter]), Target(precision="f32"))


@pytest.fixture(scope="module")
def one() -> ov.CompiledModel:
    return convolutions(1)


# Ranks (counted from 1) of the shortest symmetric interval X(l) … X(n + 1 - l) that holds the median with at least 95 %:
# the largest l with P(Binomial(n, 1/2) ≤ l - 1) ≤ 2.5 %. By hand from the binomial coefficients:
#
#    n   sum of coefficients up to l - 1          P      l
#    6   1                          / 64        .0156    1
#    8   1                          / 256       .0039    1     (1 + 8) / 256 = .0352 is too much
#    9   1 + 9                      / 512       .0195    2
#   10   1 + 10                     / 1024      .0107    2
#   12   1 + 12 + 66                / 4096      .0193    3
#   20   1 + 20 + … + 15504         / 1048576   .0207    6
#   30   (table of order statistics)            .0214   10
@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (10, 2), (12, 3), (20, 6), (30, 10)])
def test_the_interval_is_made_of_the_binomial_ranks(count: int, rank: int) -> None:
    samples = np.random.default_rng(count).permutation(np.arange(1.0, count + 1))
    assert median_interval(samples.tolist()) == (rank, count + 1 - rank)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_samples_give_their_whole_range(count: int) -> None:
    """With 5 samples even the whole range holds the median with no more than 1 - 2/32 = 93.75 %."""
    assert median_interval([float(i) for i in range(count)]) == (0.0, count - 1)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = generator.exponential(size=(2000, 40))  # its median is log 2
    inside = [low <= np.log(2) <= high for low, high in map(median_interval, samples.tolist())]
    assert 0.94 <= np.mean(inside) <= 0.99


def test_a_smaller_confidence_gives_a_shorter_interval() -> None:
    samples = [float(i) for i in range(100)]
    wide, narrow = median_interval(samples, 0.99), median_interval(samples, 0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_model_takes_as_long_as_itself(one: ov.CompiledModel) -> None:
    (latency,) = measure([one], one, reference_ms=2.0, half_width=0.05)
    assert 0.8 < latency.ratio < 1.25
    assert latency.ratio_low <= latency.ratio <= latency.ratio_high
    assert latency.ms == 2.0 * latency.ratio
    assert (latency.low_ms, latency.high_ms) == (2.0 * latency.ratio_low, 2.0 * latency.ratio_high)


def test_every_round_is_kept(one: ov.CompiledModel) -> None:
    latencies = measure([one, one], one, reference_ms=1.0, half_width=10.0, max_seconds=60.0)
    for latency in latencies:
        assert len(latency.samples) + latency.rounds_left_out == meter.FEWEST_ROUNDS  # precise enough from the start
        assert latency.precise
        assert latency.ratio == pytest.approx(np.median(latency.samples), abs=1e-4)
        assert (latency.ratio_low, latency.ratio_high) == pytest.approx(median_interval(latency.samples), abs=1e-4)


def test_measuring_ends_however_noisy_the_machine_is(one: ov.CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_SECONDS", 0.1)
    (latency,) = measure([one], one, reference_ms=1.0, half_width=0.0)
    assert 1 < len(latency.samples) + latency.rounds_left_out < meter.MAX_ROUNDS
    assert not latency.precise


def test_several_models_are_told_apart_in_one_measurement(one: ov.CompiledModel) -> None:
    four, half = measure([convolutions(4), one], convolutions(2), reference_ms=1.0, half_width=0.05)
    assert four.ratio > 1.4
    assert half.ratio < 0.8


def test_the_references_own_latency_is_in_milliseconds(one: ov.CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_ROUNDS", 40)
    assert 0.005 < reference_latency_ms(one) < 50  # 7 million multiply-accumulates


def test_random_inputs_fit_their_port() -> None:
    ports = [ops.parameter([2, 3], dtype).output(0) for dtype in (np.float32, np.int64, np.uint8)]
    arrays = [random_input(port, np.random.default_rng(0)) for port in ports]
    assert [array.shape for array in arrays] == [(2, 3)] * 3
    assert [array.dtype for array in arrays] == [np.float32, np.int64, np.uint8]
    assert all(set(array.reshape(-1)) <= {0, 1} for array in arrays[1:])


def test_a_model_with_integer_inputs_can_be_measured(one: ov.CompiledModel) -> None:
    (latency,) = measure([convolutions(1, np.uint8)], one, reference_ms=1.0, half_width=1.0)
    assert latency.ratio > 0


def test_all_models_of_a_measurement_are_judged_by_equally_many_calls(one: ov.CompiledModel) -> None:
    """The faster half of few calls is slower than the faster half of many: a model would differ from itself."""
    fast, slow = meter.Timer(one), meter.Timer(one)
    slow.call_seconds = meter.BLOCK_SECONDS / 2
    assert meter.judged_calls([fast]) == meter.JUDGED_CALLS
    assert meter.judged_calls([fast, slow]) == 2
    fast.judge(2)
    assert fast.calls % 2 == 0


@pytest.mark.parametrize(("judged", "counted"), [(4, [1, 2]), (2, [1, 3]), (1, [4, 1, 3, 2])])
def test_of_every_few_calls_the_faster_half_counts(
    one: ov.CompiledModel, monkeypatch: pytest.MonkeyPatch, judged: int, counted: list[float]
) -> None:
    timer = meter.Timer(one)
    timer.call_seconds = meter.BLOCK_SECONDS / 4
    timer.judge(judged)
    calls = iter([9.0, 4.0, 3.0, 1.0, 2.0])  # the first warms up
    monkeypatch.setattr(timer, "_call", lambda: next(calls))
    assert timer.block_seconds() == pytest.approx(np.mean(counted))
