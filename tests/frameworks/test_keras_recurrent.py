"""Recurrent layers reach OpenVINO with the outputs that they have in Keras."""

from __future__ import annotations

from collections.abc import Callable

import keras
import keras_models as models
import numpy as np
import pytest
from keras import layers

from autocompress.device import Target
from autocompress.frameworks.keras.convert import convert
from autocompress.frameworks.keras.graph import functional
from autocompress.target.runtime import compile_model

SEQUENCES = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)


def network(*stack: layers.Layer, length: int | None = 6) -> Callable[[], keras.Model]:
    return lambda: keras.Sequential([keras.Input((length, 4)), *stack, layers.Dense(3)])


@pytest.mark.parametrize(
    "make",
    [
        network(layers.Bidirectional(layers.LSTM(5, return_sequences=True)), layers.GRU(5)),
        network(layers.SimpleRNN(5, go_backwards=True), length=None),
        network(layers.Masking(), layers.GRU(5, reset_after=False)),
        network(layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])),
    ],
    ids=["bidirectional", "any length", "masked", "cells"],
)
def test_a_recurrent_network_is_converted(make: Callable[[], keras.Model]) -> None:
    model = functional(models.seeded(make), (SEQUENCES,))
    compiled = compile_model(convert(model, (SEQUENCES,)), Target(precision="f32"))
    np.testing.assert_allclose(compiled((SEQUENCES,))[0], model(SEQUENCES), rtol=1e-4, atol=1e-5)
    assert not any(layer.unroll for layer in model._flatten_layers() if isinstance(layer, layers.RNN))
