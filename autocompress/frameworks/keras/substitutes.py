"""Layers that are better seen as several: what stands in their place computes the same, with copies of their weights."""

from __future__ import annotations

from typing import Any

import keras

SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
NOT_FIRST_ON_CPU = (
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    *(keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D),
    *(keras.layers.AveragePooling1D, keras.layers.AveragePooling2D, keras.layers.AveragePooling3D),
)
"""Layers that TensorFlow computes on a CPU with the channels last alone."""


def has_substitute(operation: Any) -> bool:
    """True for a separable convolution, and on TensorFlow for one with the channels first."""
    return isinstance(operation, SEPARABLE) or _is_turned(operation)


def substitute(layer: keras.layers.Layer, given: keras.KerasTensor) -> keras.Model:
    """What stands in a layer's place, as a graph of its input."""
    value = keras.Input(batch_shape=given.shape, dtype=given.dtype)
    outputs = _separated(layer, value) if isinstance(layer, SEPARABLE) else _turned(layer, value)
    graph = keras.Model(value, outputs, name=layer.name)
    graph.set_weights(layer.get_weights())
    return graph


def _is_turned(operation: Any) -> bool:
    first = getattr(operation, "data_format", None) == "channels_first"
    return first and isinstance(operation, NOT_FIRST_ON_CPU) and keras.backend.backend() == "tensorflow"


def _turned(layer: keras.layers.Layer, value: Any) -> Any:
    """The layer with the channels last, between two permutations. Its weights are the same."""
    last = type(layer).from_config(layer.get_config() | {"data_format": "channels_last"})
    dimensions = range(1, len(value.shape))
    to_last = keras.layers.Permute((*dimensions[1:], 1), name="channels_last")
    to_first = keras.layers.Permute((dimensions[-1], *dimensions[:-1]), name="channels_first")
    return to_first(last(to_last(value)))


def _separated(layer: Any, value: Any) -> Any:
    """The depthwise and the pointwise convolution, each of which becomes a node of its own in OpenVINO."""
    config = layer.get_config()
    common = {key: config[key] for key in ("trainable", "dtype", "data_format")}
    spatial = {key: config[key] for key in ("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")}
    details = ("initializer", "regularizer", "constraint")
    of_depthwise = {f"depthwise_{key}": config[f"depthwise_{key}"] for key in details}
    of_pointwise = {f"kernel_{key}": config[f"pointwise_{key}"] for key in details}
    last = {key: config[key] for key in ("filters", "activation", "use_bias", *(k for k in config if k.startswith("bias_")))}
    first, second = (
        (keras.layers.DepthwiseConv1D, keras.layers.Conv1D)
        if isinstance(layer, keras.layers.SeparableConv1D)
        else (keras.layers.DepthwiseConv2D, keras.layers.Conv2D)
    )
    depthwise = first.from_config({"name": "depthwise", "use_bias": False, **common, **spatial, **of_depthwise})
    pointwise = second.from_config({"name": "pointwise", "kernel_size": 1, **common, **of_pointwise, **last})
    return pointwise(depthwise(value))
