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
from autocompress.target.precision import RECURRENT_OPERATIONS
from autocompress.target.runtime import compile_model

SEQUENCES = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)


def network(*stack: layers.Layer, length: int | None = 6) -> Callable[[], keras.Model]:
    return lambda: keras.Sequential([keras.Input((length, 4)), *stack, layers.Dense(3)])


SEVERAL = [layers.Bidirectional(layers.LSTM(5, return_sequences=True)), layers.GRU(5), layers.RepeatVector(2), layers.LSTM(3)]
NETWORKS = {
    "several": (network(*SEVERAL), {"LSTMSequence", "GRUSequence"}),
    "any length": (network(layers.SimpleRNN(5, go_backwards=True), length=None), {"RNNSequence"}),
    "backwards": (network(layers.LSTM(5, go_backwards=True, return_sequences=True, use_bias=False)), {"LSTMSequence"}),
    "reset before": (network(layers.GRU(5, reset_after=False)), {"GRUSequence"}),
    "without bias": (network(layers.GRU(5, use_bias=False)), {"GRUSequence"}),
    "masked": (network(layers.Masking(), layers.GRU(5)), set()),
    "other activation": (network(layers.LSTM(5, activation="relu")), set()),
    "cells": (network(layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])), set()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_recurrent_network_is_converted(name: str) -> None:
    """What OpenVINO has an operation for becomes one, with one copy of its weights; the rest is unrolled."""
    make, operations = NETWORKS[name]
    model = functional(models.seeded(make), (SEQUENCES,))
    generator = np.random.default_rng(1)
    model.set_weights([0.3 * generator.normal(size=weight.shape) for weight in model.get_weights()])
    converted = convert(model, (SEQUENCES,))
    assert {node.get_type_name() for node in converted.get_ops() if node.get_type_name() in RECURRENT_OPERATIONS} == operations
    compiled = compile_model(converted, Target(precision="f32"))
    np.testing.assert_allclose(compiled((SEQUENCES,))[0], model(SEQUENCES), rtol=1e-4, atol=1e-5)
    assert not any(layer.unroll for layer in model._flatten_layers() if isinstance(layer, layers.RNN))
