"""No strided convolution of one pixel is differentiated: TensorFlow's kernel writes where it must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import keras_models
import numpy as np
import pytest
from keras import layers
from test_contract import KerasCases

import autocompress as ac
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.keras.calls import call
from autocompress.frameworks.keras.framework import KerasFramework
from autocompress.frameworks.keras.gradients import mean_gradients
from autocompress.frameworks.keras.graph import functional
from autocompress.frameworks.keras.strided import subsampled

SETTINGS = TuneSettings(1, 1e-2, distillation=0)  # so that the teacher, which is not differentiated, is not called
HALF = ac.Policy({"block1_conv1": 0.5})


def fine_tuned(task: ac.Task) -> None:
    framework = KerasFramework()
    framework.fine_tune(task, framework.compress(task, HALF, "l2"), SETTINGS, lambda _: None)


def shared(task: ac.Task) -> None:
    training = KerasFramework().share(task, "l2", SETTINGS)
    training.candidate(HALF)  # so that the channels are known, for which the original is called
    training.begin(1)
    training.epoch(iter([HALF] * 9), lambda _: None)


def gradients(task: ac.Task) -> None:
    mean_gradients(task, functional(task.model, next(iter(task.splits["train"].batches())).inputs), squared=True)


@pytest.mark.parametrize(("train", "masked"), [(fine_tuned, False), (shared, False), (shared, True), (gradients, False)])
def test_a_training_has_none(train: Callable[[ac.Task], None], masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if masked:
        monkeypatch.setattr("autocompress.frameworks.keras.elastic.can_be_thin", lambda: False)
    seen: set[tuple[int, int]] = set()
    convolve = keras.ops.conv

    def recorded(value: Any, kernel: Any, strides: Any, *others: Any, **named: Any) -> Any:
        if trains:
            seen.add((int(kernel.shape[0]), max(strides)))
        return convolve(value, kernel, strides, *others, **named)

    trains: list[bool] = []
    for method in ("fit", "train_on_batch"):
        monkeypatch.setattr(keras.Model, method, within(trains, getattr(keras.Model, method)))
    monkeypatch.setattr("keras.src.ops.conv", recorded)
    monkeypatch.setattr(keras.ops, "conv", recorded)
    task = KerasCases().task("resnet")
    train(task)
    assert seen == {(3, 1), (3, 2), (1, 1)}


def within(flags: list[bool], method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that has a flag up while it runs."""

    def flagged(*args: Any, **kwargs: Any) -> Any:
        flags.append(True)
        try:
            return method(*args, **kwargs)
        finally:
            flags.pop()

    return flagged


@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ((9, 3), lambda: layers.Conv1D(4, 1, strides=2, activation="relu")),
        ((9, 3), lambda: layers.Conv1D(4, 1, strides=2, padding="causal")),
        ((8, 9, 3), lambda: layers.Conv2D(4, 1, strides=(2, 1), padding="same")),
        ((8, 9, 4), lambda: layers.Conv2D(4, 1, strides=2, groups=2, use_bias=False)),
        ((3, 8, 9), lambda: layers.Conv2D(4, 1, strides=2, data_format="channels_first")),
        ((8, 9, 7, 3), lambda: layers.Conv3D(4, 1, strides=(2, 1, 3))),
    ],
)
def test_outputs_are_the_same(shape: tuple[int, ...], make: Callable[[], layers.Layer]) -> None:
    inputs = keras.Input(shape)
    model = keras.Model(inputs, make()(inputs))
    value = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    expected, strides = call(model, (value,)), model.layers[-1].strides
    seen = []
    with subsampled(model):
        np.testing.assert_allclose(model.layers[-1](inputs=value), expected, rtol=1e-5, atol=1e-6)
    with subsampled(model), pytest.MonkeyPatch.context() as patch:
        convolve = keras.ops.conv
        patch.setattr("keras.src.ops.conv", lambda *args, **named: seen.append(named["strides"]) or convolve(*args, **named))
        found = call(model, (value,))
    assert seen == [[1] * (len(shape) - 1)]
    assert model.layers[-1].strides == strides
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


class Own(layers.Conv2D):
    """A user's own convolution, which may do what it likes with its strides."""


@pytest.mark.parametrize("make", [lambda: Own(4, 1, 2), lambda: layers.Conv2D(4, 3, 2), lambda: layers.Conv2D(4, 1)])
def test_others_stay_as_they_are(make: Callable[[], layers.Layer]) -> None:
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, make()(inputs))
    with subsampled(model):
        assert "call" not in vars(model.layers[-1])


def test_a_pruned_shortcut_of_large_images_trains() -> None:
    """Without the context the process dies on CPUs with AVX-512."""
    inputs = keras.Input((64, 64, 3))
    value = layers.Conv2D(12, 3, padding="same", name="first")(inputs)
    value = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 1, strides=2, name="second")(value))
    generator = np.random.default_rng(0)
    data = generator.normal(size=(16, 64, 64, 3)).astype("float32"), np.arange(16) % 10
    loss = keras_models.cross_entropy()
    task = ac.Task(keras.Model(inputs, value), train=data, valid=data, loss=loss, metric="accuracy")
    candidate = KerasFramework().compress(task, ac.Policy({"first": 0.25}), "l2")
    KerasFramework().fine_tune(task, candidate, TuneSettings(25, 1e-2, 0.5), lambda _: None)
    assert candidate.model.get_layer("second").kernel.shape == (1, 1, 9, 16)
    assert all(np.isfinite(weight).all() for weight in candidate.model.get_weights())
