"""Ranges that samples have one by one are those that they have together, where they stay apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

import autocompress as ac
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.target import calibration
from autocompress.target.calibration import quantize_activations

SAMPLES = 6
MADE_FOR_ONE = {"flatten", "mlp", "sequential", "shared"}
"""OpenVINO changes their graphs when they get another batch size: a Reshape holds it."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many times NNCF runs the graph, for each graph that it quantizes."""
    found: list[int] = []
    quantized = calibration._quantized

    def counted(model: Any, data: Any, *arguments: Any, **options: Any) -> Any:
        found.append(len(data))
        return quantized(model, data, *arguments, **options)

    monkeypatch.setattr(calibration, "_quantized", counted)
    return found


def described(model: ov.Model) -> list[tuple[str, Any, Any]]:
    """Every operation with its shapes, and with its values if it is a constant."""
    return [
        (op.get_type_name(), [list(value.shape) for value in op.outputs()], op.data if op.get_type_name() == "Constant" else None)
        for op in model.get_ordered_ops()
    ]


def assert_same(one: ov.Model, other: ov.Model) -> None:
    for (kind, shapes, values), (other_kind, other_shapes, other_values) in zip(described(one), described(other), strict=True):
        assert (kind, shapes) == (other_kind, other_shapes)
        if values is not None:
            np.testing.assert_allclose(values, other_values, rtol=1e-5, atol=1e-7)


def samples_of(model: ov.Model) -> list[tuple[Any, ...]]:
    generator = np.random.default_rng(0)
    shapes = [tuple(port.shape) for port in model.inputs]
    return [tuple(generator.normal(size=shape).astype(np.float32) for shape in shapes) for _ in range(SAMPLES)]


@pytest.mark.parametrize("kind", [*models.CLASSIFIERS, "two inputs"])
def test_a_graph_is_quantized_as_it_is_by_single_samples(kind: str, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    task = models.small_task(models.build(kind)) if kind in models.CLASSIFIERS else two_inputs()
    framework = TorchFramework()
    model = framework.to_openvino(task, framework.compress(task, ac.Policy(), "l2"), 1).model
    samples = task.splits["train"].take(SAMPLES)
    together = quantize_activations(model, samples, [], correct_bias=False)
    monkeypatch.setattr(calibration, "TOGETHER", 1)
    assert_same(together, quantize_activations(model, samples, [], correct_bias=False))
    assert calls == [SAMPLES if kind in MADE_FOR_ONE else 1, SAMPLES]
    assert "FakeQuantize" in {op.get_type_name() for op in together.get_ops()}


def two_inputs() -> ac.Task:
    data = models.halves(models.digits()["train"])
    return models.small_task(models.seeded(models.TwoInputs), train=data, valid=data)


def linear(value: Any) -> Any:
    """A matrix product with a constant that has 8 rows."""
    weight = ops.constant(np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32))
    return ops.relu(ops.matmul(value, weight, False, False))


FIRST = ops.constant(np.int64(0))
MIXING: dict[str, Callable[[Any], Any]] = {
    "windows": lambda value: ops.reshape(value, [2, 3, 8], False),
    "rows": lambda value: ops.reshape(value, [SAMPLES, 8], False),
    "transposed": lambda value: ops.transpose(value, [1, 0, 2]),
    "mean over samples": lambda value: ops.subtract(value, ops.reduce_mean(value, FIRST, True)),
    "softmax over samples": lambda value: ops.softmax(value, 0),
    "norm over samples": lambda value: ops.mvn(value, ops.constant(np.array([0, 2])), True, 1e-6, "inside_sqrt"),
    "sum over samples": lambda value: ops.cumsum(value, FIRST),
    "samples by samples": lambda value: ops.gather(value, ops.convert(ops.reduce_mean(value, [1, 2], False), "i64"), FIRST),
    "how many there are": lambda value: ops.divide(value, ops.convert(ops.gather(ops.shape_of(value), FIRST, FIRST), "f32")),
    "another rank": lambda value: ops.add(value, ops.reduce_mean(value, [1], False)),
}
"""What is done to (1, 6, 8), after which samples are not one behind the other, or not by themselves."""


@pytest.mark.parametrize("kind", MIXING)
def test_samples_that_do_not_stay_apart_are_run_one_by_one(kind: str, calls: list[int]) -> None:
    value = ops.parameter([1, SAMPLES, 8], np.float32, name="x")
    model = ov.Model([linear(MIXING[kind](value))], [value], kind)
    quantize_activations(model, samples_of(model), [], correct_bias=False)
    assert calls == [SAMPLES]


def test_attention_is_quantized_as_it_is_by_single_samples(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    value = ops.parameter([1, 4, 8], np.float32, name="x")
    scores = ops.softmax(ops.matmul(value, value, False, True), -1)
    model = ov.Model([linear(ops.matmul(scores, value, False, False))], [value], "attention")
    together = quantize_activations(model, samples_of(model), [], correct_bias=False)
    monkeypatch.setattr(calibration, "TOGETHER", 1)
    assert_same(together, quantize_activations(model, samples_of(model), [], correct_bias=False))
    assert calls == [1, SAMPLES]


def test_what_fails_with_many_samples_is_quantized_by_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized, tried = calibration._quantized, []

    def failing(model: Any, data: Any, *arguments: Any, of_many: bool = False) -> Any:
        tried.append(of_many)
        if of_many:
            raise RuntimeError
        return quantized(model, data, *arguments)

    monkeypatch.setattr(calibration, "_quantized", failing)
    value = ops.parameter([1, 4, 8], np.float32, name="x")
    model = ov.Model([linear(value)], [value], "plain")
    assert "FakeQuantize" in {op.get_type_name() for op in quantize_activations(model, samples_of(model), [], False).get_ops()}
    assert tried == [True, False]


def test_biases_are_corrected_by_single_samples(calls: list[int]) -> None:
    task, framework = models.small_task(models.build("conv")), TorchFramework()
    model = framework.to_openvino(task, framework.compress(task, ac.Policy(), "l2"), 1).model
    quantize_activations(model, task.splits["train"].take(SAMPLES), [], correct_bias=True)
    assert calls == [SAMPLES]


@pytest.mark.parametrize(
    ("count", "size", "together"), [(300, 784, 30), (7, 784, 7), (37, 784, 1), (12, 50_000, 4), (8, 300_000, 1), (4, 0, 4)]
)
def test_all_calls_take_as_many_samples_as_fit(count: int, size: int, together: int) -> None:
    samples = [{"x": np.zeros((1, size), np.float32)}] * count
    assert calibration._calls_in_one(samples) == together
