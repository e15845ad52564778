"""One-dimensional layers as two-dimensional ones on images of a height of 1, in what is deployed.

TensorFlow computes a 1-D convolution so as well, but leaves the images after each one. Then biases, norms, activations and
quantizers stand between two reshapes, where nothing is fused, a dilated convolution is cut into batches, and a depthwise one
crashes OpenVINO 2026.4 in INT8. Here values stay images from one such layer to the next, through what works element by element.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import keras
import numpy as np

from autocompress.errors import ConversionError
from autocompress.frameworks.keras.graph import Builder, layers_by_name
from autocompress.frameworks.keras.names import ACTIVATIONS, POINTWISE
from autocompress.frameworks.keras.nodes import Values, graph_of, inputs_of, is_graph, symbolic_in
from autocompress.target.precision import LayerGrid

CONVOLUTIONS = {
    keras.layers.Conv1D: keras.layers.Conv2D,
    keras.layers.Conv1DTranspose: keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv1D: keras.layers.DepthwiseConv2D,
}
TURNED = CONVOLUTIONS | {
    keras.layers.MaxPooling1D: keras.layers.MaxPooling2D,
    keras.layers.AveragePooling1D: keras.layers.AveragePooling2D,
    keras.layers.GlobalMaxPooling1D: keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalAveragePooling1D: keras.layers.GlobalAveragePooling2D,
    keras.layers.ZeroPadding1D: keras.layers.ZeroPadding2D,
    keras.layers.Cropping1D: keras.layers.Cropping2D,
    keras.layers.UpSampling1D: keras.layers.UpSampling2D,
}
SIZES = ("kernel_size", "strides", "dilation_rate", "pool_size", "size")
MARGINS = ("padding", "cropping")
HEIGHT, SEQUENCE, IMAGE = 2, 3, 4
"""Axis of the height in codes (outputs, inputs, height, width); ranks of a batch of sequences and of one of images."""


def as_images(model: keras.Model, codes: Mapping[str, LayerGrid]) -> tuple[keras.Model, dict[str, LayerGrid]]:
    """A plain graph with its one-dimensional layers turned, under the same names, and the codes in their kernels' new shape.

    Args:
        model: a plain graph. Without a 1-D convolution it is returned itself.
        codes: of its layers by name.

    Raises:
        ConversionError: a layer cannot be turned.
    """
    turned = {name for name, layer in layers_by_name(model).items() if type(layer) in CONVOLUTIONS and _can_turn(layer)}
    if not turned:
        return model, dict(codes)
    try:
        graph = _Images().graph(model)
    except Exception as error:  # a user's layers can do anything
        raise ConversionError(f"1-D layers cannot become 2-D ones: {type(error).__name__}: {error}") from error
    with_height = {name: replace(codes[name], codes=np.expand_dims(codes[name].codes, HEIGHT)) for name in turned & codes.keys()}
    return graph, {**codes, **with_height}


class _Images(Builder):
    """Builds a graph in which some tensors (batch, width, channels) are images (batch, 1, width, channels)."""

    def __init__(self) -> None:
        super().__init__(lambda name, layer: None)
        self._is_image: dict[int, bool] = {}
        self._other_form: dict[int, Any] = {}
        """id of a tensor → the same value as an image, or as a sequence."""
        self._forms: dict[int, tuple[list[bool], list[bool]]] = {}
        """id of a nested model → which of its inputs, and of its outputs, are images."""
        self._numbers = count()

    def model(self, model: keras.Model, tensors: Values) -> keras.Model:
        """The whole graph's outputs have their own form."""
        return super().model(
            model, tensors | {id(old): self._in_form(tensors[id(old)], False) for old in graph_of(model).outputs}
        )

    def call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """A call on images where the operation has to, or where it can and one is given."""
        operation, given = node.operation, symbolic_in(args, kwargs)
        if is_graph(operation):
            return self._nested(operation, inputs_of(operation, args, kwargs), kwargs, f"{prefix}{operation.name}/")
        if isinstance(operation, keras.layers.SpatialDropout1D):  # it does nothing once a model is deployed
            return given[0]
        is_plain = all(getattr(tensor, "_keras_mask", None) is None for tensor in node.input_tensors)
        if is_plain and _can_turn(operation):
            return self._turned(operation, self._in_form(given[0], True))
        ranks = {len(tensor.shape) for tensor in node.input_tensors}
        images = is_plain and ranks == {SEQUENCE} and _follows(operation) and any(map(self._image, given))
        args, kwargs = keras.tree.map_structure(lambda value: self._in_form(value, images), (args, kwargs))
        made = super().call(node, args, kwargs, prefix)
        return self._marked(made) if images else made

    def make(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """A copy; that of a batch norm is built for what it is given."""
        old = node.operation
        if not isinstance(old, keras.layers.BatchNormalization) or not self._image(args[0]):
            return super().make(node, args, kwargs, prefix)
        new = type(old).from_config(old.get_config() | {"axis": -1})
        new.build(args[0].shape)
        new.set_weights(old.get_weights())
        return new

    def _turned(self, layer: keras.layers.Layer, image: Any) -> Any:
        """What a layer gives on an image."""
        if getattr(layer, "padding", "") == "causal":
            before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            image = keras.layers.ZeroPadding2D(((0, 0), (before, 0)), name=self._name("causal"))(image)
        if id(layer) not in self._made:
            self._made[id(layer)] = _two_dimensional(layer, image.shape)
        return self._marked(self._made[id(layer)](image))

    def _nested(self, old: keras.Model, given: list[Any], kwargs: dict[str, Any], prefix: str) -> Any:
        """A nested model, which takes and gives images where its first call does."""
        if id(old) not in self._made:
            forms = list(map(self._image, given))
            inputs = [
                keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor_of.name)
                for tensor, tensor_of in zip(given, old.inputs, strict=True)
            ]
            self._is_image |= {id(tensor): form for tensor, form in zip(inputs, forms, strict=True)}
            tensors = self.run(old, dict(zip(map(id, graph_of(old).inputs), inputs, strict=True)), prefix)
            outputs = [tensors[id(tensor)] for tensor in graph_of(old).outputs]
            self._made[id(old)] = super().model(old, tensors)
            self._forms[id(old)] = forms, list(map(self._image, outputs))
        inner, (takes, gives) = self._made[id(old)], self._forms[id(old)]
        tensors_in = dict(zip(map(id, graph_of(inner).inputs), map(self._in_form, given, takes), strict=True))
        argument = keras.tree.map_structure(lambda tensor: tensors_in[id(tensor)], graph_of(inner).input)
        options = {name: value for name, value in kwargs.items() if name != "inputs"}
        outputs = inner(argument, **options)
        self._is_image |= {id(tensor): form for tensor, form in zip(keras.tree.flatten(outputs), gives, strict=True)}
        return outputs

    def _image(self, value: Any) -> bool:
        return self._is_image.get(id(value), False)

    def _marked(self, outputs: Any) -> Any:
        """Note that outputs are images, where they have the rank."""
        self._is_image |= {id(tensor): len(tensor.shape) == IMAGE for tensor in keras.tree.flatten(outputs)}
        return outputs

    def _in_form(self, value: Any, image: bool) -> Any:
        """A tensor as an image or as a sequence; anything else is left as it is."""
        if not isinstance(value, keras.KerasTensor) or self._image(value) == image:
            return value
        if id(value) not in self._other_form:
            width, channels = (-1 if size is None else size for size in value.shape[-2:])
            shape = (1, width, channels) if image else (width, channels)
            self._other_form[id(value)] = keras.layers.Reshape(shape, name=self._name("reshape"))(value)
            self._is_image[id(self._other_form[id(value)])] = image
        return self._other_form[id(value)]

    def _name(self, what: str) -> str:
        return f"autocompress_{what}_{next(self._numbers)}"


def _can_turn(operation: Any) -> bool:
    return type(operation) in TURNED and getattr(operation, "data_format", "channels_last") == "channels_last"


def _follows(operation: Any) -> bool:
    """True for an operation that does the same to images: element by element, or along the channels."""
    if isinstance(operation, keras.layers.BatchNormalization):
        # A norm that is called twice is built once, and what it is given the second time may be a sequence.
        return operation.axis in (-1, SEQUENCE - 1) and len(operation._inbound_nodes) == 1
    if isinstance(operation, keras.layers.Activation):
        return getattr(operation.activation, "__name__", "") in ACTIVATIONS
    if isinstance(operation, keras.layers.Concatenate):
        return bool(operation.axis == -1)
    return type(operation).__module__.startswith("keras.src.") and type(operation).__name__ in POINTWISE


def _two_dimensional(layer: keras.layers.Layer, shape: Any) -> keras.layers.Layer:
    """The layer for images, with its weights."""
    config = layer.get_config()
    config |= {name: (1, _single(config[name])) for name in SIZES if name in config}
    config |= {name: ((0, 0), tuple(config[name])) for name in MARGINS if not isinstance(config.get(name, ""), str)}
    if isinstance(layer, keras.layers.DepthwiseConv1D):  # TensorFlow wants equal strides; a height of 1 does not see them
        config["strides"] = (config["strides"][1],) * 2
    if config.get("padding") == "causal":
        config["padding"] = "valid"
    if config.get("output_padding") is not None:
        config["output_padding"] = (0, _single(config["output_padding"]))
    new = TURNED[type(layer)].from_config(config)
    new.build(shape)
    new.set_weights([weight[None] if weight.ndim == SEQUENCE else weight for weight in layer.get_weights()])
    return new


def _single(size: Any) -> int:
    return int(size[0]) if isinstance(size, tuple | list) else int(size)
