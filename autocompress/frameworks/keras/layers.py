"""The layers that are compressed, in the words that are the same for all frameworks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from autocompress.frameworks.keras.graph import HEAVY
from autocompress.frameworks.keras.nodes import as_argument, walk
from autocompress.structure import Layer

TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def layers_of(model: keras.Model, example: Any) -> tuple[Layer, ...]:
    """Every convolution and dense layer of a graph, with its multiply-accumulates for one sample.

    Args:
        model: a graph.
        example: inputs of one sample.
    """
    layers: dict[str, Layer] = {}

    def visit(name: str, node: Any, args: Any, kwargs: Any) -> Any:
        layer = node.operation
        output = layer(*args, **kwargs)
        if isinstance(layer, HEAVY):
            macs = _macs(layer, args[0].shape, output.shape) + (layers[name].macs if name in layers else 0)
            layers[name] = Layer(name, type(layer).__name__, weight_shape(layer), macs, groups_in(layer))
        return output

    walk(model, arrays(model, example), visit)
    return tuple(layers.values())


def arrays(model: keras.Model, example: Any) -> list[Any]:
    """An example as tensors in the order of a graph's inputs."""
    given = [example[tensor.name] for tensor in model.inputs] if isinstance(example, dict) else as_argument(example)
    flat = keras.tree.flatten(given)
    return [keras.ops.convert_to_tensor(array, tensor.dtype) for array, tensor in zip(flat, model.inputs, strict=True)]


def weight_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    """The shape of a layer's weight: (outputs, inputs of a group, *kernel); a transposed convolution has its inputs first.

    An EinsumDense has all of its outputs, and all inputs that it sums over, in one number each.
    """
    kernel = tuple(layer.kernel.shape)
    if isinstance(layer, keras.layers.EinsumDense):
        read, _, written = einsum_letters(layer)
        sizes = dict(zip(layer.equation.replace(" ", "").split("->")[0].split(",")[1], kernel, strict=True))
        return tuple(int(np.prod([sizes[letter] for letter in letters])) for letters in (written, read))
    if isinstance(layer, DEPTHWISE):
        return (kernel[-2] * kernel[-1], 1, *kernel[:-2])
    return (kernel[-1], kernel[-2], *kernel[:-2])  # of a transposed convolution the inputs are last


def groups_in(layer: keras.layers.Layer) -> int:
    """Of a convolution; a depthwise one has as many as input channels."""
    return int(layer.kernel.shape[-2]) if isinstance(layer, DEPTHWISE) else int(getattr(layer, "groups", 1))


def einsum_letters(layer: keras.layers.EinsumDense) -> tuple[str, str, str]:
    """The letters of the weight that the layer sums over, that stand in all of its tensors, and that it writes."""
    sources, result = layer.equation.replace(" ", "").split("->")
    value, weight = sources.split(",")
    read = "".join(letter for letter in weight if letter not in result)
    shared = "".join(letter for letter in weight if letter in result and letter in value)
    written = "".join(letter for letter in weight if letter in result and letter not in value)
    return read, shared, written


def einsum_places(layer: keras.layers.EinsumDense, axes: Sequence[int]) -> dict[int, int]:
    """Axes of the weight → axes of the input, counted from the end; without those that lie before an ellipsis."""
    source, weight = layer.equation.replace(" ", "").split("->")[0].split(",")
    fixed = source.split("...")[-1]
    return {axis: fixed.index(weight[axis]) - len(fixed) for axis in axes if weight[axis] in fixed}


def _macs(layer: keras.layers.Layer, inputs: Any, outputs: Any) -> int:
    weights = int(np.prod(layer.kernel.shape))
    if isinstance(layer, keras.layers.EinsumDense):
        result = layer.equation.replace(" ", "").split("->")[1]
        weight = layer.equation.replace(" ", "").split("->")[0].split(",")[1]
        outside = result.replace("...", "")
        fixed = [size for letter, size in zip(reversed(outside), reversed(outputs), strict=False) if letter in weight]
        return weights * int(np.prod(outputs)) // int(np.prod(fixed))
    if not hasattr(layer, "kernel_size"):
        return weights * int(np.prod(outputs[:-1]))
    shape = inputs if isinstance(layer, TRANSPOSED) else outputs
    spatial = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    return weights * int(shape[0]) * int(np.prod(spatial))
