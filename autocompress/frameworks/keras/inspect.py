"""The proof of a graph's channel groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.keras.graph import layers_by_name, rebuild
from autocompress.frameworks.keras.layers import DEPTHWISE, arrays
from autocompress.frameworks.keras.nodes import graph_of, is_graph
from autocompress.frameworks.keras.prune import remove_channels, silent_weights, weights_by_name
from autocompress.frameworks.proof import Outputs, Proof, Prover, Removed

SATURATING = ("sigmoid", "softmax", "tanh")
"""Activations behind which two different outputs may look alike."""


def prove(model: keras.Model, example: Any, groups: Mapping[str, ChannelGroup]) -> Proof:
    """Which groups can be removed."""
    return _KerasProver(perturbed(model), example, groups).prove()


class _KerasProver(Prover):
    """Prunes, silences and runs graphs."""

    def __init__(self, model: keras.Model, example: Any, groups: Mapping[str, ChannelGroup]) -> None:
        super().__init__(groups)
        self._model, self._weights = model, weights_by_name(model)
        model.compile(jit_compile=False)  # it is run often, so a function is made of it once
        here = arrays(model, example)
        elsewhere = [_another(keras.ops.convert_to_numpy(array)) for array in here]
        self._here, self._elsewhere = (keras.tree.pack_sequence_as(graph_of(model).input, given) for given in (here, elsewhere))

    def pruned_outputs(self, removed: Removed, follow: Iterable[str]) -> Outputs:
        """Of a smaller copy."""
        return _flat(remove_channels(self._model, self.groups, removed)(self._here, training=False))

    def silenced_outputs(self, removed: Removed, elsewhere: bool = False) -> Outputs:
        """Of the model while it is silenced."""
        silent = silent_weights(self._weights, self.groups, removed)
        before = {tensor: keras.ops.convert_to_numpy(self._weights[tensor]) for tensor in silent}
        self._assign(silent)
        try:
            return _flat(self._model.predict_on_batch(self._elsewhere if elsewhere else self._here))
        finally:
            self._assign(before)

    def _assign(self, values: Mapping[str, NDArray[Any]]) -> None:
        for tensor, value in values.items():
            self._weights[tensor].assign(value)


def perturbed(model: keras.Model) -> keras.Model:
    """A copy of a graph in which every block matters: a zero-initialised norm or a tiny scale would hide a wrong mapping.

    Its outputs are taken before a last softmax or the like, which would hide it too.
    """
    ends = _saturating_ends(model)
    changed = rebuild(model, lambda name, layer: _open_end(layer) if id(layer) in ends else None)
    for layer in layers_by_name(changed).values():
        for weight in layer.weights:
            if keras.backend.is_float_dtype(weight.dtype):
                weight.assign(_noise(layer, weight, np.random.default_rng(sum(map(ord, weight.path)))))
    return changed


def _noise(layer: keras.layers.Layer, weight: Any, generator: np.random.Generator) -> NDArray[Any]:
    shape = tuple(weight.shape)
    if weight.name == "moving_mean":
        return 0.3 * generator.normal(size=shape)
    if len(shape) <= 1:
        return generator.random(shape) + 0.5
    outputs = shape[-1] * (shape[-2] if isinstance(layer, DEPTHWISE) else 1)
    return np.asarray(generator.normal(size=shape) / (np.prod(shape) / outputs) ** 0.5)


def _saturating_ends(model: keras.Model) -> set[int]:
    """The layers whose activation is the last thing that happens."""
    found = set()
    for tensor in graph_of(model).outputs:
        operation = tensor._keras_history.operation
        activation = getattr(getattr(operation, "activation", None), "__name__", "")
        if is_graph(operation):
            found |= _saturating_ends(operation)
        elif activation in SATURATING or isinstance(operation, keras.layers.Softmax):
            found.add(id(operation))
    return found


def _open_end(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A copy without its activation."""
    if isinstance(layer, keras.layers.Softmax):
        return keras.layers.Identity(name=layer.name)
    new = type(layer).from_config(layer.get_config() | {"activation": "linear"})
    if layer.weights:
        new.build_from_config(layer.get_build_config())
    return new


def _flat(outputs: Any) -> Outputs:
    return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]


def _another(array: NDArray[Any]) -> NDArray[Any]:
    """Another input of the same kind: reversed along every dimension but the batch's, and floats turned around zero."""
    reversed_ = np.flip(array, tuple(range(1, array.ndim)))
    return -0.7 * reversed_ if np.issubdtype(array.dtype, np.floating) else reversed_
