"""The calls of a Keras graph, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras.src.models.functional import Functional

Values = dict[int, Any]
"""id of a symbolic tensor → what stands for it."""
Visit = Callable[[str, Any, tuple[Any, ...], dict[str, Any]], Any]
"""From the name of an operation, its call, and the arguments to the output."""


def is_graph(operation: Any) -> bool:
    """True for a model whose layers are known without calling it: Functional, or Sequential after its first call."""
    if isinstance(operation, keras.Sequential):
        return operation._functional is not None
    return isinstance(operation, Functional) and type(operation).call is Functional.call


def graph_of(model: keras.Model) -> Functional:
    """The Functional model behind a graph."""
    return model._functional if isinstance(model, keras.Sequential) else model


def nodes_of(model: keras.Model) -> list[Any]:
    """The calls of a graph's operations, each after those whose outputs it takes; a nested model is one operation."""
    graph = graph_of(model)
    order: list[Any] = []
    seen, inputs = set[int](), {id(tensor) for tensor in graph.inputs}
    stack = [(tensor, False) for tensor in reversed(graph.outputs)]
    while stack:
        tensor, is_ready = stack.pop()
        if id(tensor) in inputs:
            continue
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        if is_ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((tensor, True))
            stack.extend((source, False) for source in reversed(node.input_tensors))
    return order


def innermost(operation: Any) -> Any:
    """The layer that others stand around, or the operation itself."""
    while isinstance(inner := getattr(operation, "layer", None), keras.layers.Layer):
        operation = inner
    return operation


def filled(node: Any, values: Values) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with its symbolic tensors replaced."""

    def fill(value: Any) -> Any:
        return values[id(value)] if isinstance(value, keras.KerasTensor) else value

    args, kwargs = keras.tree.map_structure(fill, (node.arguments.args, node.arguments.kwargs))
    return args, kwargs


def inputs_of(graph: keras.Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a call of a graph gives to each of its inputs, in their order."""
    given = args[0] if args else kwargs["inputs"]
    if isinstance(given, dict) and not isinstance(graph_of(graph).input, dict):
        return [given[tensor.name] for tensor in graph.inputs]
    return list(keras.tree.flatten(given))


def walk(model: keras.Model, values: Sequence[Any], visit: Visit, prefix: str = "") -> list[Any]:
    """Take values through a graph and its nested models.

    Args:
        model: a graph.
        values: for its inputs, in their order.
        visit: called with every operation that is not a model.
        prefix: of the names.

    Returns:
        The values of the outputs, in their order.
    """
    graph = graph_of(model)
    found: Values = {id(tensor): value for tensor, value in zip(graph.inputs, values, strict=True)}
    for node in nodes_of(graph):
        args, kwargs = filled(node, found)
        name = prefix + node.operation.name
        if is_graph(node.operation):
            outputs = walk(node.operation, inputs_of(node.operation, args, kwargs), visit, f"{name}/")
        else:
            outputs = keras.tree.flatten(visit(name, node, args, kwargs))
        found |= {id(tensor): value for tensor, value in zip(node.outputs, outputs, strict=True)}
    return [found[id(tensor)] for tensor in graph.outputs]


def symbolic_in(*arguments: Any) -> list[keras.KerasTensor]:
    """The symbolic tensors among nested arguments, in order."""
    return [value for value in keras.tree.flatten(arguments) if isinstance(value, keras.KerasTensor)]


def as_argument(inputs: Any) -> Any:
    """Inputs in the form in which a Keras model takes them: one tensor, a list of them, or a dict."""
    return inputs if isinstance(inputs, dict) else inputs[0] if len(inputs) == 1 else list(inputs)
