"""What is left where all channels of a group are removed: nothing is computed, and a constant takes the place of what was read.

A residual branch vanishes when its inner channels do: the layer that read them yields its bias everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Nothing:
    """Stands for a tensor without channels.

    Attributes:
        source: the last tensor before it that is still computed.
    """

    source: keras.KerasTensor


def nothing_among(arguments: Any) -> Nothing | None:
    """The first tensor without channels among nested arguments."""
    return next((value for value in keras.tree.flatten(arguments) if isinstance(value, Nothing)), None)


def source_of(arguments: Any) -> keras.KerasTensor:
    """A tensor that is still computed, from which the arguments come."""
    nothing = nothing_among(arguments)
    return live_among(arguments)[0] if nothing is None else nothing.source


def live_among(arguments: Any) -> list[keras.KerasTensor]:
    """The tensors with channels among nested arguments."""
    return [value for value in keras.tree.flatten(arguments) if isinstance(value, keras.KerasTensor)]


def constant(layer: keras.layers.Layer, bias: NDArray[Any] | None, nothing: Nothing, shape: tuple[int | None, ...]) -> Any:
    """What a layer that reads nothing yields: its bias everywhere.

    OpenVINO folds it: its values depend on nothing, and it takes nothing but sizes from the model.

    Args:
        layer: the original.
        bias: of its remaining outputs.
        nothing: what it reads.
        shape: of its output, with its remaining outputs. A size that is not fixed is that of the source.

    Raises:
        ValueError: the source has other dimensions, and not all sizes are fixed.
    """
    source = keras.Input(batch_shape=nothing.source.shape, dtype=nothing.source.dtype)
    ndim = len(source.shape)
    if None in shape[1:] and len(shape) != ndim:
        raise ValueError(f"the size of what {layer.name} yields is known only when the model runs")
    followed = [axis == 0 or (len(shape) == ndim and shape[axis] is None) for axis in range(ndim)]
    one = source[tuple(slice(None) if follows else slice(0, 1) for follows in followed)]
    zeros = keras.ops.zeros_like(one, dtype=layer.compute_dtype)
    if len(shape) != ndim:
        zeros = keras.ops.reshape(zeros, (-1, *[1] * (len(shape) - 1)))
    value = keras.ops.tile(zeros, (1, *(size or 1 for size in shape[1:])))
    offset = _offset(layer, bias, len(shape))
    if offset is not None:
        value = keras.layers.Rescaling(1.0, offset, dtype=layer.dtype_policy)(value)
    return keras.Model(source, value, name=layer.name)(nothing.source)


def _offset(layer: Any, bias: NDArray[Any] | None, ndim: int) -> NDArray[Any] | None:
    """What the layer yields at one position, in the form in which it is added to a sample."""
    if bias is None and getattr(layer.activation, "__name__", "") == "linear":
        return None
    if bias is None:
        raise ValueError(f"{layer.name} has no bias to tell what its activation makes of nothing")
    first = getattr(layer, "data_format", "") == "channels_first"
    value: NDArray[Any] = bias.reshape(-1, *[1] * (ndim - 2)) if first else bias
    return np.asarray(keras.ops.convert_to_numpy(layer.activation(keras.ops.convert_to_tensor(value))))
