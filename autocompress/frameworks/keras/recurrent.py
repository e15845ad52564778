"""Recurrent layers without loops: OpenVINO has operations of its own for them, and cannot read those that TensorFlow makes.

While a model is traced, a product with a marker stands for a layer, which keeps shapes and place; in the graph it then becomes
the sequence. What no such operation computes (masks, own cells, returned states, other activations) is traced step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import keras
import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress.frameworks.keras.calls import calls_replaced

MARKER = "autocompress_sequence_"
"""Begins the name of an input that marks a layer."""
LSTM_GATES = (1, 0, 2, 3)
"""Keras has input, forget, cell, output; OpenVINO begins with forget. The gates of a GRU have one order."""


@contextmanager
def unrolled(model: keras.Model) -> Iterator[None]:
    """Within it, recurrent layers are traced step by step, for sequences whose length is known then."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN)]
    before = [layer.unroll for layer in layers]
    try:
        for layer in layers:
            layer.unroll = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.unroll = was


def sequence_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The recurrent layers that can be an operation of OpenVINO."""
    return [layer for layer in model._flatten_layers() if type(layer) in SEQUENCES and _is_usual(layer)]


def marker_shape(layer: keras.layers.Layer) -> tuple[int, int]:
    """(inputs, units)."""
    return int(layer.cell.kernel.shape[0]), int(layer.units)


@contextmanager
def marked(layers: Sequence[keras.layers.Layer], markers: Sequence[Any]) -> Iterator[None]:
    """Within it, a product with its marker is traced in the place of each layer."""
    import tensorflow as tf

    of_layer = {id(layer): marker for layer, marker in zip(layers, markers, strict=True)}

    def wrap(layer: keras.layers.Layer, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
            if initial_state is not None or mask is not None:
                return original(sequences, initial_state=initial_state, mask=mask, training=training)
            given = tf.reverse(sequences, [1]) if layer.go_backwards else sequences
            outputs = tf.raw_ops.BatchMatMulV2(x=given, y=of_layer[id(layer)])
            return outputs if layer.return_sequences else outputs[:, -1]

        return called

    with calls_replaced(layers, wrap):
        yield


def put_sequences(model: ov.Model, layers: Sequence[keras.layers.Layer]) -> None:
    """OpenVINO's operations in the place of the products with markers, which are removed."""
    numbers = count(1)
    for parameter in model.get_parameters():
        name = parameter.output(0).get_any_name()
        if not name.startswith(MARKER):
            continue
        layer = layers[int(name.removeprefix(MARKER))]
        for marked_input in parameter.output(0).get_target_inputs():
            product = marked_input.get_node()
            sequence = SEQUENCES[type(layer)](product.input_value(0), layer)
            sequence.set_friendly_name(f"{layer.name}/sequence_{next(numbers)}")
            outputs = ops.squeeze(sequence.output(0), ops.constant(np.array([1], np.int64)))
            for consumer in product.output(0).get_target_inputs():
                consumer.replace_source_output(outputs.output(0))
        model.remove_parameter(parameter)


def _is_usual(layer: keras.layers.Layer) -> bool:
    """True where OpenVINO's operation computes what the layer does."""
    functions = [layer.activation, getattr(layer, "recurrent_activation", keras.activations.sigmoid)]
    is_usual = functions == [keras.activations.tanh, keras.activations.sigmoid] and layer.compute_dtype == "float32"
    return is_usual and not layer.return_state and not layer.stateful


def _lstm(value: ov.Output, layer: keras.layers.Layer) -> ov.Node:
    kernel, recurrent, bias = (_gates(array, 4)[..., LSTM_GATES, :] for array in _weights(layer, 4))
    state, lengths = _start(value, layer.units)
    parts = map(_constant, (_rows(kernel), _rows(recurrent), bias.reshape(1, -1)))
    return ops.lstm_sequence(value, state, state, lengths, *parts, layer.units, "FORWARD")


def _gru(value: ov.Output, layer: keras.layers.Layer) -> ov.Node:
    kernel, recurrent, bias = (_gates(array, 3) for array in _weights(layer, 3))
    if layer.reset_after:  # the last gate has the biases of inputs and states apart
        given, of_state = bias if bias.ndim == 3 else (bias, np.zeros_like(bias))
        bias = np.concatenate([given[:2] + of_state[:2], given[2:], of_state[2:]])
    state, lengths = _start(value, layer.units)
    parts = map(_constant, (_rows(kernel), _rows(recurrent), bias.reshape(1, -1)))
    return ops.gru_sequence(value, state, lengths, *parts, layer.units, "FORWARD", linear_before_reset=layer.reset_after)


def _rnn(value: ov.Output, layer: keras.layers.Layer) -> ov.Node:
    kernel, recurrent, bias = (_gates(array, 1) for array in _weights(layer, 1))
    state, lengths = _start(value, layer.units)
    parts = map(_constant, (_rows(kernel), _rows(recurrent), bias.reshape(1, -1)))
    return ops.rnn_sequence(value, state, lengths, *parts, layer.units, "FORWARD")


SEQUENCES: Mapping[type, Callable[[ov.Output, keras.layers.Layer], ov.Node]] = {
    keras.layers.LSTM: _lstm,
    keras.layers.GRU: _gru,
    keras.layers.SimpleRNN: _rnn,
}


def _weights(layer: keras.layers.Layer, gates: int) -> list[NDArray[np.float32]]:
    """Kernel (inputs, gates · units), recurrent kernel, bias."""
    cell = layer.cell
    weights = [keras.ops.convert_to_numpy(weight) for weight in (cell.kernel, cell.recurrent_kernel)]
    bias = np.zeros(gates * layer.units, np.float32) if cell.bias is None else keras.ops.convert_to_numpy(cell.bias)
    return [*weights, bias]


def _gates(array: NDArray[np.float32], gates: int) -> NDArray[np.float32]:
    """The last axis as (gates, units)."""
    return array.reshape(*array.shape[:-1], gates, -1)


def _rows(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """(inputs, gates, units) as (1, gates · units, inputs)."""
    return kernel.reshape(kernel.shape[0], -1).T[None]


def _start(value: ov.Output, units: int) -> tuple[ov.Node, ov.Node]:
    """States of zeros, and the sequences' length."""
    batch, length, _ = value.get_shape()
    return _constant(np.zeros((batch, 1, units), np.float32)), _constant(np.full(batch, length, np.int32))


def _constant(array: NDArray[Any]) -> ov.Node:
    return ops.constant(np.ascontiguousarray(array))
