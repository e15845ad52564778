"""One view of every Keras model: a graph of layers and operations, which can be built anew.

A Functional model holds nested models, which are graphs themselves. A layer of a nested model is called "outer/inner". A
subclassed model becomes such a graph by being called on symbolic inputs, and so does a layer made of layers (`expand.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from autocompress.errors import TaskError
from autocompress.frameworks.keras.expand import is_composite, traced, traced_composite
from autocompress.frameworks.keras.nodes import Values, as_argument, filled, graph_of, inputs_of, is_graph, nodes_of, symbolic_in

Replace = Callable[[str, keras.layers.Layer], keras.layers.Layer | None]
"""From a layer's name and the layer to what stands in its place; None is a copy of it with its weights."""
HEAVY = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
    keras.layers.EinsumDense,
)
"""Layers that are compressed."""


def functional(model: keras.Model, example: Any) -> keras.Model:
    """A model as a graph that shares its layers and weights; the model itself where it is such a graph already.

    Some layers become several, with copies of their weights (`substitutes.py`).

    Args:
        model: Functional, Sequential or subclassed.
        example: inputs of any batch size: a tuple of arrays, or a dict of arrays by name.

    Raises:
        TaskError: the model cannot be called on symbolic inputs.
    """
    graph = model if is_graph(model) else traced(model, example)
    if any(is_composite(node.operation) for node in _all_nodes(graph)):
        graph = _Expander().graph(graph)
    return graph


def layers_by_name(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The layers of a graph and of its nested models, in the order in which they are first called. Inputs are left out."""
    return dict(_named_layers(model, ""))


def operation_names(model: keras.Model) -> list[str]:
    """The names of all operations of a graph and of its nested models, in the order in which they are called."""
    return [node.operation.name for node in _all_nodes(model)]


def heavy_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The convolutions and dense layers of a graph by name."""
    return {name: layer for name, layer in layers_by_name(model).items() if isinstance(layer, HEAVY)}


def require_float32(model: keras.Model) -> None:
    """Check that layers compute in float32: grids, ranges and proofs are of numbers that are exact to seven digits.

    Raises:
        TaskError: one does not.
    """
    other = {name: layer.dtype_policy.name for name, layer in heavy_layers(model).items() if layer.compute_dtype != "float32"}
    if other:
        name, policy = next(iter(other.items()))
        remedy = 'Build it under keras.config.set_dtype_policy("float32") and load the same weights.'
        raise TaskError("Convolutions and dense layers of a Keras model compute in float32", f"{name} in {policy}", remedy)


def rebuild(model: keras.Model, replace: Replace) -> keras.Model:
    """A new model in which every layer is what `replace` returns.

    Nested models stay nested, shared layers stay shared, and every call keeps its arguments.

    Args:
        model: a graph.
        replace: called once with each layer of the graph and of its nested models.

    Raises:
        TaskError: a layer with weights cannot be made again from its configuration.
    """
    return Builder(replace).graph(model)


def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A built copy of a layer with its weights. A layer without weights that cannot be made again is returned itself.

    Raises:
        TaskError: a layer with weights cannot be made again from its configuration.
    """
    try:
        new = type(layer).from_config(layer.get_config())
        if layer.weights:
            new.build_from_config(layer.get_build_config())
            new.set_weights(layer.get_weights())
        return new
    except Exception as error:  # a user's own class, or a function that cannot be serialized
        if layer.weights:
            remedy = "Let its class implement get_config and, if need be, get_build_config."
            raise TaskError("Every layer can be made again from its configuration", f"{layer.name}: {error}", remedy) from error
        return layer


def copied_operation(operation: Any) -> Any:
    """A copy of an operation that is not a layer, under its name."""
    try:
        new = type(operation).from_config(operation.get_config())
    except NotImplementedError:  # it has arguments that no configuration holds; it has no state either
        return operation
    new.name = operation.name
    return new


class Builder:
    """Builds graphs anew. What was made is kept, so that shared layers stay shared."""

    def __init__(self, replace: Replace) -> None:
        self._replace = replace
        self._made: dict[int, Any] = {}

    def graph(self, model: keras.Model, values: Sequence[Any] = (), prefix: str = "") -> keras.Model:
        """A new graph; that of a nested model has inputs of the shapes of `values`."""
        inputs = graph_of(model).inputs
        tensors = {id(old): input_like(old, new) for old, new in zip(inputs, values or inputs, strict=True)}
        return self.model(model, self.run(model, tensors, prefix))

    def run(self, model: keras.Model, tensors: Values, prefix: str) -> Values:
        """Take a graph's new inputs through its new operations."""
        tensors = dict(tensors)
        for node in nodes_of(model):
            args, kwargs = filled(node, tensors)
            made = keras.tree.flatten(self.call(node, args, kwargs, prefix))
            tensors |= {id(old): new for old, new in zip(node.outputs, made, strict=True)}
        return tensors

    def model(self, model: keras.Model, tensors: Values) -> keras.Model:
        """A model with the same structure of inputs and outputs."""
        graph = graph_of(model)
        inputs, outputs = (keras.tree.map_structure(lambda t: tensors[id(t)], side) for side in (graph.input, graph.output))
        new = keras.Model(inputs, outputs, name=model.name)
        new._trainable = model.trainable  # the layers have their own
        return new

    def call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """The call of an operation on new arguments."""
        return self.made(node, args, kwargs, prefix)(*args, **kwargs)

    def made(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """What stands in the place of an operation."""
        old = node.operation
        if id(old) not in self._made:
            self._made[id(old)] = self.make(node, args, kwargs, prefix)
        return self._made[id(old)]

    def make(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """Make what will stand in the place of an operation that is met for the first time."""
        old = node.operation
        name = prefix + old.name
        if is_graph(old):
            return self.graph(old, inputs_of(old, args, kwargs), f"{name}/")
        if isinstance(old, keras.layers.Layer):
            return self._replace(name, old) or copied(old)
        return copied_operation(old)


class _Expander(Builder):
    """Puts nested models in the place of layers that are made of layers. All other layers are kept."""

    def __init__(self) -> None:
        super().__init__(lambda name, layer: layer)

    def call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """A nested model takes the symbolic tensors alone; what else the layer was called with is part of it."""
        made = self.made(node, args, kwargs, prefix)
        is_expanded = is_graph(made) and not is_graph(node.operation)
        return made(as_argument(symbolic_in(args, kwargs))) if is_expanded else made(*args, **kwargs)

    def make(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """A graph of what a layer made of layers does."""
        old = node.operation
        inside = traced_composite(old, args, kwargs) if is_composite(old) else None
        return super().make(node, args, kwargs, prefix) if inside is None else self.graph(inside, prefix=f"{prefix}{old.name}/")


def input_like(old: keras.KerasTensor, new: keras.KerasTensor) -> keras.KerasTensor:
    """An input like another, with the sizes of a tensor where they were fixed."""
    layer = old._keras_history.operation
    shape = tuple(None if size is None else now for size, now in zip(old.shape, new.shape, strict=True))
    return keras.Input(batch_shape=shape, dtype=old.dtype, name=layer.name, optional=layer.optional)


def _all_nodes(model: keras.Model) -> Iterator[Any]:
    for node in nodes_of(model):
        yield node
        if is_graph(node.operation):
            yield from _all_nodes(node.operation)


def _named_layers(model: keras.Model, prefix: str) -> Iterator[tuple[str, keras.layers.Layer]]:
    for node in nodes_of(model):
        name = prefix + node.operation.name
        if is_graph(node.operation):
            yield from _named_layers(node.operation, f"{name}/")
        elif isinstance(node.operation, keras.layers.Layer):
            yield name, node.operation
