"""The metric on a compiled model, whatever the form of the data and the deployed batch size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress.data import Split
from autocompress.device import Target
from autocompress.errors import ConversionError, TaskError
from autocompress.metrics import Metric, resolve_metric
from autocompress.target.evaluate import batch_size, differ_by_rounding, evaluate, feed, score
from autocompress.target.runtime import compile_for_scoring

INPUTS = np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)
OTHERS = np.random.default_rng(1).standard_normal((23, 4)).astype(np.float32)
F32 = Target(precision="f32")


def sums(batch: int = 1) -> ov.CompiledModel:
    """first - second, and the sum of first: two named inputs, two outputs."""
    first, second = (ops.parameter([batch, 4], np.float32) for _ in range(2))
    outputs = [ops.subtract(first, second), ops.reduce_sum(first, ops.constant([1]), keep_dims=True)]
    model = ov.Model(outputs, [first, second])
    for port, name in zip(model.inputs, ("first", "second"), strict=True):
        port.get_tensor().set_names({name})
    return compile_for_scoring(model, F32)


def doubled(batch: int = 1) -> ov.CompiledModel:
    """Twice its only input."""
    parameter = ops.parameter([batch, 4], np.float32, "x")
    return compile_for_scoring(ov.Model([ops.multiply(parameter, ops.constant(np.float32(2)))], [parameter]), F32)


def captured(compiled: ov.CompiledModel, split: Split) -> tuple[Any, NDArray[Any]]:
    """What reaches the metric."""
    seen: list[Any] = []

    def metric(predictions: Any, targets: Any) -> float:
        seen.append((predictions, targets))
        return 1.0

    assert evaluate(compiled, split, Metric("seen", "maximize", metric)) == 1.0
    ((predictions, targets),) = seen
    return predictions, targets


class Loader:
    """Batches of 5, 5, 5, 5 and 3 samples, as tuples or dicts."""

    def __init__(self, form: str) -> None:
        self.form = form

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, 23, 5):
            part = slice(start, start + 5)
            first, second, targets = INPUTS[part], OTHERS[part], np.arange(23)[part]
            yield {
                "tuple": ((first, second), targets),
                "flat": (first, second, targets),
                "dict": {"second": second, "first": first, "labels": targets},
                "inner dict": ({"second": second, "first": first}, targets),
            }[self.form]


@pytest.mark.parametrize("samples_per_batch", [1, 4, 23, 100])
@pytest.mark.parametrize("deployed", [1, 4, 7, 32])
def test_every_sample_is_scored_once_and_in_order(deployed: int, samples_per_batch: int) -> None:
    compiled = doubled(deployed)
    predictions, targets = captured(compiled, Split("valid", (INPUTS, np.arange(23)), samples_per_batch))
    assert batch_size(compiled) == deployed
    np.testing.assert_array_equal(predictions, 2 * INPUTS)
    np.testing.assert_array_equal(targets, np.arange(23))


@pytest.mark.parametrize("deployed", [1, 2, 8])
@pytest.mark.parametrize("form", ["tuple", "flat", "dict", "inner dict"])
def test_several_inputs_and_outputs_keep_their_places(form: str, deployed: int) -> None:
    predictions, targets = captured(sums(deployed), Split("valid", Loader(form)))
    assert isinstance(predictions, tuple)
    np.testing.assert_allclose(predictions[0], INPUTS - OTHERS, rtol=1e-6)
    np.testing.assert_allclose(predictions[1], INPUTS.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(targets, np.arange(23))


def test_whole_arrays_may_be_several_inputs_too() -> None:
    predictions, _ = captured(sums(3), Split("valid", ((INPUTS, OTHERS), np.arange(23)), 10))
    np.testing.assert_allclose(predictions[0], INPUTS - OTHERS, rtol=1e-6)


def test_targets_of_several_parts_arrive_joined() -> None:
    targets = {"a": np.arange(23), "b": np.arange(46).reshape(23, 2)}
    _, found = captured(doubled(), Split("valid", (INPUTS, targets), 10))
    assert found.keys() == targets.keys()
    assert all(np.array_equal(found[name], targets[name]) for name in targets)


def test_a_metric_by_name_is_computed_on_all_samples() -> None:
    classes = INPUTS.argmax(1)
    classes[:5] = (classes[:5] + 1) % 4
    split = Split("valid", (INPUTS, classes), 4)
    assert evaluate(doubled(6), split, resolve_metric("accuracy", None)) == pytest.approx(18 / 23)
    assert evaluate(doubled(6), Split("valid", (INPUTS, 2 * INPUTS), 4), resolve_metric("mse", None)) == 0.0


def test_an_unknown_input_name_is_said() -> None:
    with pytest.raises(ConversionError, match=r"inputs (first, second|second, first), not third"):
        feed(sums(), {"first": INPUTS[:1], "third": INPUTS[:1]})


def test_a_metric_that_is_not_a_number_is_refused() -> None:
    metric = Metric("strange", "maximize", lambda predictions, targets: float("nan"))
    with pytest.raises(TaskError, match=r"metric strange returns a finite number; got nan"):
        evaluate(doubled(), Split("valid", (INPUTS, np.arange(23))), metric)


def seen_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes at which whole splits are scored from here on."""
    sizes: list[int] = []

    def watched(compiled: ov.CompiledModel, split: Split, metric: Metric) -> float:
        sizes.append(batch_size(compiled))
        return evaluate(compiled, split, metric)

    monkeypatch.setattr("autocompress.target.evaluate.evaluate", watched)
    return sizes


def scaled(x: Any) -> Any:
    """Each number twice."""
    return ops.multiply(x, ops.constant(np.float32(2)))


def centred(x: Any) -> Any:
    """Less the mean over the batch: zero for one sample."""
    return ops.subtract(x, ops.reduce_mean(x, ops.constant([0]), keep_dims=True))


def flattened(x: Any) -> Any:
    """A shape that was written down for one sample."""
    return ops.reshape(scaled(x), ops.constant([1, 4]), special_zero=False)


@pytest.mark.parametrize(
    ("make", "deployed", "samples", "expected"),
    [
        (scaled, 1, 23, 23),
        (scaled, 1, 8, 8),
        (scaled, 3, 23, 21),
        (scaled, 1, 1, 1),
        (scaled, 20, 23, 20),
        (centred, 1, 23, 1),
        (flattened, 1, 23, 1),
    ],
)
def test_samples_share_a_request_where_no_output_changes(
    make: Any, deployed: int, samples: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = seen_batches(monkeypatch)
    parameter = ops.parameter([deployed, 4], np.float32, "x")
    model = ov.Model([make(parameter)], [parameter])
    targets = np.zeros_like(INPUTS) if make is centred else 2 * INPUTS
    split = Split("valid", (INPUTS, targets), samples)
    assert score(model, F32, split, resolve_metric("mse", None)) == 0.0
    assert sizes == [expected]
    assert list(model.inputs[0].shape) == [deployed, 4]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([[1.0, -np.inf]], [[1.0, -np.inf]], True),
        ([[1.0, -np.inf]], [[2.0, -np.inf]], False),
        ([[1.0, -np.inf]], [[1.0, 0.0]], False),
        ([[np.nan, 1.0]], [[np.nan, 1.0]], True),
        (np.zeros((0, 4)), np.zeros((0, 4)), False),
        (np.zeros((1, 4)), np.zeros((2, 4)), False),
    ],
)
def test_only_rounding_may_tell_two_outputs_apart(before: Any, after: Any, expected: bool) -> None:
    assert differ_by_rounding(np.array(before), np.array(after)) == expected


def test_large_samples_are_scored_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, images = seen_batches(monkeypatch), np.ones((4, 2**18), np.float32)
    parameter = ops.parameter([1, 2**18], np.float32, "x")
    score(ov.Model([scaled(parameter)], [parameter]), F32, Split("valid", (images, images), 4), resolve_metric("mse", None))
    assert sizes == [1]
