"""Layers and operations made again with other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.keras.kernels import kernel_axes
from autocompress.frameworks.keras.layers import DEPTHWISE
from autocompress.frameworks.keras.rules import channel_axis, spread

Gone = Mapping[int, NDArray[np.int64]]
"""Axis → the indices that go."""
Shape = tuple[int | None, ...]


def resized(layer: keras.layers.Layer, before: Sequence[Shape], after: Sequence[Shape], lost_groups: int) -> keras.layers.Layer:
    """A layer like another, to be built for weights of other shapes.

    Args:
        layer: the original.
        before: shapes of its weights.
        after: shapes of what remains of them.
        lost_groups: groups of channels that a group normalization loses.
    """
    config = layer.get_config()
    if isinstance(layer, keras.layers.EinsumDense):
        config["output_shape"] = output_shape(layer, after[0], tuple(layer.partial_output_shape))
    elif isinstance(layer, keras.layers.Dense):
        config["units"] = after[0][-1]
    elif isinstance(layer, keras.layers.GroupNormalization):
        config["groups"] = layer.groups - lost_groups
    elif "filters" in config:
        filters = after[0][kernel_axes(layer).outputs[0]]
        config["filters"] = filters
        if config.get("groups", 1) > 1:
            config["groups"] = layer.groups * filters // layer.filters
    elif not isinstance(layer, DEPTHWISE):
        config |= _followed(config, before, after)
    return type(layer).from_config(config)


def resized_operation(operation: Any, outputs: Sequence[Shape], sizes: Mapping[int, Gone]) -> Any:
    """A reshape, broadcast or split that remembers other sizes.

    Args:
        operation: the original.
        outputs: the shapes of its outputs.
        sizes: number of an output → axis → the indices that go.
    """
    if isinstance(operation, keras.layers.Layer):
        config = operation.get_config()
        config["target_shape"] = _less(operation.target_shape, {axis - 1: gone for axis, gone in sizes[0].items()})
        return type(operation).from_config(config)
    if type(operation).__name__ == "Split":
        axis = operation.axis % len(outputs[0])
        left = [int(shape[axis] or 0) - len(sizes.get(i, {}).get(axis, ())) for i, shape in enumerate(outputs)]
        is_even = isinstance(operation.indices_or_sections, int) and len(set(left)) == 1
        sections = len(left) if is_even else tuple(int(end) for end in np.cumsum(left[:-1]))
        return type(operation)(sections, operation.axis, name=operation.name)
    attribute = "newshape" if hasattr(operation, "newshape") else "shape"
    return type(operation)(_less(getattr(operation, attribute), sizes[0]), name=operation.name)


def resized_key(key: Any, gone: Gone, shape: Shape) -> Any:
    """An index that takes what it took, where others are gone."""
    if isinstance(key, list | tuple) and None in key:
        raise ValueError("an index adds dimensions where channels go")
    parts = spread(key, len(shape))
    for axis, lost in gone.items():
        part, size = parts[axis], int(shape[axis] or 0)
        start, stop, _ = part.indices(size)
        parts[axis] = slice(start - int((lost < start).sum()), stop - int((lost < stop).sum()))
    return tuple(parts)


def output_shape(layer: keras.layers.Layer, kernel: Shape, old: Shape) -> Shape:
    """The shape of a layer's output if its kernel had another shape."""
    shape = list(old)
    if isinstance(layer, keras.layers.EinsumDense):
        source, result = layer.equation.replace(" ", "").split("->")
        sizes = dict(zip(source.split(",")[1], kernel, strict=True))
        for i, letter in zip(range(len(shape)), reversed(result.split("...")[-1]), strict=False):
            shape[-1 - i] = sizes.get(letter, shape[-1 - i])
    else:
        shape[channel_axis(layer, len(old))] = kernel[kernel_axes(layer).outputs[0]]
    return tuple(shape)


def _less(shape: Sequence[int | None], gone: Gone) -> Shape:
    """A remembered shape; -1 and None stand for what is found out when the model runs."""
    return tuple(size if size in (-1, None) else int(size or 0) - len(gone.get(axis, ())) for axis, size in enumerate(shape))


def _followed(config: Mapping[str, Any], before: Sequence[Shape], after: Sequence[Shape]) -> dict[str, int]:
    """Numbers in the configuration of a user's own layer that are widths of its weights."""
    pairs = [pair for shapes in zip(before, after, strict=True) for pair in zip(*shapes, strict=True)]
    changed = {old: new for old, new in pairs if new is not None and old != new}
    return {key: changed[value] for key, value in config.items() if type(value) is int and value in changed}
