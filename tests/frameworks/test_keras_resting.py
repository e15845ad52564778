"""Keras models that are only called: kernels that stand still, statistics and ranges in one pass."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import keras
import keras_models
import numpy as np
import pytest
from keras import ops
from test_contract import KerasCases, compressed

import autocompress as ac
from autocompress.frameworks.keras import reestimate as reestimate_module
from autocompress.frameworks.keras.calls import call
from autocompress.frameworks.keras.reestimate import reestimate, reestimate_batch_norm
from autocompress.frameworks.keras.resting import predicted, resting
from autocompress.frameworks.keras.simulate import input_ranges, simulated_layers
from autocompress.frameworks.keras.weights import SimulatedWeight

CASES = KerasCases()
INT8 = ac.LayerPolicy(8, 8)


def candidate(layer: ac.LayerPolicy = INT8, **options: Any) -> tuple[Any, ac.Task]:
    task = keras_models.small_task(keras_models.build("conv"), **options)
    policy = ac.Policy({}, {one.name: layer for one in CASES.framework.inspect(task).layers})
    return compressed(CASES, task, policy).model, task


def images_of(task: ac.Task, count: int) -> list[Any]:
    return [(sample[0],) for sample in task.splits["train"].take(count)]


def test_a_kernel_is_transformed_once_for_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = candidate()
    reestimate(model, task)
    images, own, calls = images_of(task, 12), SimulatedWeight.call, []
    expected = np.concatenate([ops.convert_to_numpy(call(model, one)) for one in images])
    monkeypatch.setattr(SimulatedWeight, "call", lambda self, kernel: (calls.append(self), own(self, kernel))[1])
    np.testing.assert_allclose(predicted(model, images)[0], expected, rtol=1e-5, atol=1e-6)
    assert len(calls) == len(simulated_layers(model))


def test_the_next_pass_sees_other_kernels() -> None:
    model, task = candidate()
    images = images_of(task, 2)
    before = predicted(model, images)[0]
    kernel = simulated_layers(model)["conv1"].layer.kernel
    kernel.assign(-kernel)
    after = predicted(model, images)[0]
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(
        after, np.concatenate([ops.convert_to_numpy(call(model, one)) for one in images]), rtol=1e-4, atol=1e-5
    )


def test_statistics_are_those_of_all_calls_of_a_norm() -> None:
    values = np.random.default_rng(0).normal(size=(1024, 3)).astype(np.float32)
    inputs, norm = [keras.Input((3,)), keras.Input((3,))], keras.layers.BatchNormalization()
    outputs = keras.layers.Dense(2)(keras.layers.Add()([norm(one) for one in inputs]))
    data = (values, values + 10), np.zeros(1024, int)
    reestimate_batch_norm(keras.Model(inputs, outputs), ac.Task(keras.Model(inputs, outputs), train=data, valid=data))
    np.testing.assert_allclose(norm.moving_mean.numpy(), values.mean(0) + 5, atol=0.2)


def test_nothing_stays_behind() -> None:
    model, _ = candidate()
    inner = chain(Tensors())
    outer = keras.Model(inner.input, inner(inner(inner.input)["input"]))
    for one in (model, outer):
        with pytest.raises(KeyError), resting(one), resting(one):
            raise KeyError
        assert "_run_through_graph" not in vars(one)
    assert "_run_through_graph" not in vars(inner)
    assert not any("call" in vars(layer.weight) for layer in simulated_layers(model).values())


@dataclass
class Tensors:
    """Those that were made, and how many were still there at each call."""

    made: list[weakref.ref[Any]] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)

    def forget(self) -> None:
        self.made.clear()
        self.alive.clear()


class Watched(keras.layers.Layer):
    """Passes on a new tensor, and one that nobody asked for."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors = tensors

    def call(self, inputs: Any) -> Any:
        outputs = [inputs + 1.0, inputs - 1.0]
        if not isinstance(inputs, keras.KerasTensor):
            self.tensors.alive.append(sum(one() is not None for one in self.tensors.made))
            self.tensors.made += map(weakref.ref, outputs)
        return outputs


def chain(tensors: Tensors) -> keras.Model:
    """Five calls after each other, the middle three in a model of their own; the first's output is wanted at the end."""
    inner = keras.Input((4,))
    value = inner
    for _ in range(3):
        value = Watched(tensors)(value)[0]
    nested = keras.Model(inner, value)
    outer = keras.Input((4,))
    first = Watched(tensors)(outer)[0]
    last = Watched(tensors)(nested(first))[0]
    return keras.Model(outer, {"first": first, "sum": keras.layers.Add()([first, last]), "input": outer})


def test_a_tensor_is_given_up_after_its_last_use() -> None:
    tensors, images = Tensors(), (np.ones((2, 4), np.float32),)
    model = chain(tensors)
    tensors.forget()
    call(model, images)
    assert len(tensors.alive) == 5
    assert max(tensors.alive) > 2
    tensors.forget()
    with resting(model):
        found = call(model, images)
    assert max(tensors.alive) == 2  # what is wanted at the end, and the input of the call
    for name, expected in (("first", 2.0), ("sum", 8.0), ("input", 1.0)):
        np.testing.assert_array_equal(found[name], np.full((2, 4), expected))


@pytest.mark.parametrize(
    ("options", "layer", "passes"),
    [
        ({}, INT8, 1),
        ({"batch_size": 16}, INT8, 2),
        ({"calibration": tuple(array[:40] for array in keras_models.digits()["train"])}, INT8, 2),
        ({}, ac.LayerPolicy(8, 4), 2),
        ({}, ac.LayerPolicy(8), 2),
    ],
    ids=["as usual", "small batches", "data of its own", "4 bits", "float inputs"],
)
def test_ranges_come_with_the_statistics_where_that_is_the_same(
    options: dict[str, Any], layer: ac.LayerPolicy, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, together = reestimate_module.reestimate_as_trained, []
    monkeypatch.setattr(reestimate_module, "reestimate_as_trained", lambda *given: (together.append(given), own(*given)))
    model, task = candidate(layer, **options)
    reestimate(model, task)
    assert len(together) == (passes == 1)


def test_ranges_of_one_pass_are_near_those_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {"train": tuple(array[:640] for array in keras_models.digits()["train"])}
    (once, task), (twice, _) = candidate(**many), candidate(**many)
    reestimate(once, task)
    monkeypatch.setattr(reestimate_module, "LARGE_BATCH", 1000)
    reestimate(twice, task)
    found, expected = input_ranges(once), input_ranges(twice)
    assert found.keys() == expected.keys() == simulated_layers(once).keys()
    for name, bounds in expected.items():
        np.testing.assert_allclose(found[name], bounds, rtol=0.05, atol=1e-6)
    for one, other in zip(once.variables, twice.variables, strict=True):
        if "moving" in one.name:
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-4, atol=1e-6)
