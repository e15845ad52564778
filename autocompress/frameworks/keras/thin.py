"""The thin form of the elastic model: one compiled step in which layers compute only the channels that a policy keeps.

Variables keep their shapes. While a layer is called it sees what a policy leaves of them, in sizes that the graph leaves open, so
no policy needs a graph of its own. Only TensorFlow's graphs leave sizes open.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.keras.calls import outputs_of
from autocompress.frameworks.keras.fused import fused_norms
from autocompress.frameworks.keras.graph import layers_by_name
from autocompress.frameworks.keras.layer_rules import INPUTS
from autocompress.frameworks.keras.layers import DEPTHWISE
from autocompress.frameworks.keras.nodes import as_argument
from autocompress.frameworks.keras.straight import is_tensorflow_on_a_cpu, read, valued
from autocompress.frameworks.keras.trace import SIZE_MARK
from autocompress.frameworks.proof import first_line

Place = tuple[str, int]
"""A tensor's name and one of its axes."""
Cut = tuple[Any, Mapping[int, Place]]
"""A variable, and axis → the place whose channels lie along it."""
Along = tuple[Any, Any]
"""The indices that are kept, ascending, and for each of all indices which one of these it is; their number if it is none."""
LAST, SIZE = "channels_last", f"{SIZE_MARK}0"
CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
PLAIN = (*CONVOLUTIONS, keras.layers.Dense, keras.layers.EinsumDense)
"""Layers that can be called with whatever sizes their weights have, beside batch norms; not a user's own kinds of them."""
SAME = 1e-3
"""Difference of tensors that are the same but for the order of sums, over their largest value."""
SMALLEST = 1e-3
"""What counts as largest value at least."""


class Kept:
    """Which indices are kept along each place: a number for each, in one variable."""

    def __init__(self, sizes: Mapping[Place, int]) -> None:
        ends = np.cumsum([0, *sizes.values()]).tolist()
        self._spans = dict(zip(sizes, pairwise(ends), strict=True))
        self._flags = keras.Variable(np.ones(ends[-1], np.float32), trainable=False, autocast=False, name="kept")

    def obey(self, gone: Mapping[Place, NDArray[np.int64]]) -> None:
        """Keep all but what goes along some places."""
        flags = np.ones(self._flags.shape, np.float32)
        for place, (start, _) in self._spans.items():
            flags[start + gone.get(place, np.zeros(0, np.int64))] = 0
        self._flags.assign(flags)

    def along(self, place: Place) -> Along:
        """What is kept along a place."""
        start, end = self._spans[place]
        flags = read(self._flags)[start:end]
        (indices,) = ops.nonzero(flags)
        return indices, ops.cast(ops.where(flags > 0, ops.cumsum(flags) - 1, ops.sum(flags)), "int32")


class Thin(keras.layers.Layer):
    """A layer that computes with what is kept of its variables, and learns the statistics of what is kept.

    Args:
        layer: the whole layer.
        cuts: its variables with channels that may go.
        kept: of the model.
    """

    def __init__(self, layer: keras.layers.Layer, cuts: Sequence[Cut], kept: Kept, **options: Any) -> None:
        super().__init__(**{"name": layer.name, "dtype": layer.dtype_policy, **options})
        self.layer, self.kept = layer, kept
        self.places = {id(variable): axes for variable, axes in cuts}  # by id: a variable would become this layer's own
        self.supports_masking, self.built = layer.supports_masking, True

    def call(self, inputs: Any, **options: Any) -> Any:
        """The layer on inputs that have lost the channels that it does not read."""
        places = dict.fromkeys(place for axes in self.places.values() for place in axes.values())
        kept = {place: self.kept.along(place) for place in places}
        cuts = {own: {axis: kept[place] for axis, place in axes.items()} for own, axes in self.places.items()}
        values = [(variable, _taken(read(variable), cuts.get(id(variable), {}))) for variable in self.layer.variables]
        with valued(values) as scope:
            output = self.layer(inputs, **options)
        for variable, given in values:
            if (now := scope.get_current_value(variable)) is not given:
                variable.assign(_put_back(variable, now, cuts.get(id(variable), {})))
        return output

    def compute_output_shape(self, shape: Any) -> Any:
        """That of the whole layer."""
        return self.layer.compute_output_shape(shape)


def whole(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer that can be thin, or a layer itself."""
    return layer.layer if isinstance(layer, Thin) else layer


def can_be_thin() -> bool:
    """Does Keras compile steps with open sizes here? On a GPU every new size is searched for its best convolution."""
    if not is_tensorflow_on_a_cpu():
        return False
    import tensorflow as tf

    return not tf.config.functions_run_eagerly()


def places_of(graph: keras.Model, groups: Mapping[str, ChannelGroup], names: Collection[str]) -> dict[str, set[Place]]:
    """Group → where its channels lie, for those of some groups that can go from the layers of a graph as they are."""
    layers, found = layers_by_name(graph), {}
    for name in names:
        members = [(member.tensor, member.axis) for member in groups[name].members]
        if all(_can_go(layers, tensor, axis) for tensor, axis in members):
            found[name] = {(tensor, axis) for tensor, axis in members if axis is not None}
    return found


def open_sizes(layer: keras.layers.Layer, name: str, places: Collection[Place]) -> None:
    """Let a layer ask for sizes when it is called, in place. Keras remembers some from when it was built.

    Args:
        layer: is changed.
        name: in the graph.
        places: what may be thin.
    """
    if type(layer) in CONVOLUTIONS:
        object.__setattr__(layer, "call", partial(_convolved, layer))
    elif type(layer) is keras.layers.EinsumDense:
        object.__setattr__(layer, "call", partial(_summed, layer))
    elif type(layer) is keras.layers.BatchNormalization:
        layer.axis = -1
    elif type(layer) is keras.layers.Reshape:
        shape = enumerate(layer.target_shape, 1)
        layer.target_shape = tuple(-1 if (name + SIZE, axis) in places else size for axis, size in shape)


def why_not_computed(model: keras.Model, inputs: Any, expected: Sequence[NDArray[Any]]) -> str | None:
    """Why a step of a model cannot be compiled or does not give some outputs as it is now; None where it does.

    It cannot where an operation has to know a size, and does not where one knows a wrong one.
    """
    import tensorflow as tf

    def outputs(inputs: Any) -> list[Any]:
        return outputs_of(model(inputs, training=False))

    def step(inputs: Any) -> list[Any]:
        learned = [variable.value for variable in model.trainable_variables]
        return list(tf.gradients(outputs_of(model(inputs, training=True)), learned))

    tensors = keras.tree.map_structure(tf.convert_to_tensor, as_argument(inputs))
    try:
        with fused_norms(model):
            tf.function(step, autograph=False).get_concrete_function(tensors)
            graph = tf.function(outputs, autograph=False).get_concrete_function(tensors)
        found = [tensor.numpy() for tensor in graph(tensors)]
    except Exception as error:  # of any layer, a user's own too
        return f"its step cannot be compiled with open sizes ({type(error).__name__}: {first_line(error)})"
    is_same = all(one.shape == other.shape and _is_same(one, other) for one, other in zip(found, expected, strict=True))
    return None if is_same else "a layer computes something else of fewer channels"


def _is_same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool(np.abs(one - other).max(initial=0) <= SAME * np.abs(other).max(initial=SMALLEST))


def _can_go(layers: Mapping[str, Any], tensor: str, axis: int | None) -> bool:
    if tensor.endswith(INPUTS):
        return isinstance(layers[tensor.removesuffix(INPUTS)], DEPTHWISE)
    layer: Any = layers.get(tensor.removesuffix(SIZE) if tensor.endswith(SIZE) else tensor.rpartition("/")[0])
    if type(layer) is keras.layers.Reshape:
        return -1 not in layer.target_shape
    if type(layer) is keras.layers.BatchNormalization:
        return not (layer.renorm or layer.activity_regularizer) and layer.axis in (-1, layer.input_spec.ndim - 1)
    return type(layer) in PLAIN and getattr(layer, "groups", 1) == 1 and getattr(layer, "data_format", LAST) == LAST


def _convolved(layer: Any, value: Any) -> Any:
    """What a convolution does, with the channels last."""
    padding = layer.padding
    if padding == "causal":
        value, padding = ops.pad(value, layer._compute_causal_padding()), "valid"
    convolve = ops.depthwise_conv if isinstance(layer, DEPTHWISE) else ops.conv
    return _ended(layer, convolve(value, read(layer.kernel), layer.strides, padding, layer.data_format, layer.dilation_rate))


def _summed(layer: keras.layers.EinsumDense, value: Any, training: bool | None = None) -> Any:
    """What an EinsumDense does. Keras' own sum reshapes to sizes that it has to know."""
    import tensorflow as tf

    return _ended(layer, tf.einsum(layer.equation, value, read(layer.kernel)))


def _ended(layer: Any, value: Any) -> Any:
    """What a layer does with its sums."""
    if layer.bias is not None:
        value = value + read(layer.bias)
    return value if layer.activation is None else layer.activation(value)


def _taken(value: Any, kept: Mapping[int, Along]) -> Any:
    """What is kept along some axes."""
    for axis, along in kept.items():
        value = _taken_along(value, axis, *along)
    return value


def _taken_along(value: Any, axis: int, indices: Any, places: Any) -> Any:
    """The same along one axis. Its gradient is dense, as optimizers want it, and takes three operations instead of sixty."""
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def taken(value: Any) -> Any:
        def gradient(given: Any) -> Any:
            padded = tf.pad(given, [(0, int(other == axis)) for other in range(len(value.shape))])
            return tf.gather(padded, places, axis=axis)

        return tf.gather(value, indices, axis=axis), gradient

    return taken(value)


def _put_back(variable: Any, now: Any, kept: Mapping[int, Along]) -> Any:
    """What a variable becomes when what is kept of it becomes something. Statistics have one axis."""
    return ops.scatter_update(read(variable), kept[0][0][:, None], now) if kept else now
