"""A model that is not being trained: what is the same for every batch is computed once, and nothing is kept for long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.data import Inputs, merged
from autocompress.frameworks.keras.calls import arrays, call, calls_replaced, methods_replaced, outputs_of
from autocompress.frameworks.keras.fused import fused_norms
from autocompress.frameworks.keras.nodes import Values, filled, graph_of, is_graph, nodes_of
from autocompress.frameworks.keras.simulate import simulated_layers


@contextmanager
def resting(model: keras.Model) -> Iterator[None]:
    """Within it, a model that is called eagerly transforms each kernel once, and its batch norms are fused.

    That is a quarter of what a pass of a simulated ResNet-8 over 250 images takes. What was computed is given up after its last
    use, where Keras keeps it until the outputs are there.
    """
    weights = [layer.weight for layer in simulated_layers(model).values() if layer.weight is not None]
    graphs = list({id(graph): graph for graph in _graphs(model)}.values())
    freeing = methods_replaced("_run_through_graph", graphs, _freeing)
    with fused_norms(model), calls_replaced(weights, _once), freeing, _without_gradients():
        yield


def predicted(model: keras.Model, batches: Iterable[Inputs]) -> list[NDArray[Any]]:
    """The outputs for batches of inputs, in order."""
    given = merged(arrays(inputs) for inputs in batches)
    with resting(model):
        found = [[keras.ops.convert_to_numpy(output) for output in outputs_of(call(model, inputs))] for inputs in given]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _once(_: keras.layers.Layer, original: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose first result is that of all others: a weight's argument is its layer's kernel every time."""
    found: list[Any] = []

    def called(kernel: Any) -> Any:
        if not found:
            found.append(original(kernel))
        return found[0]

    return called


def _without_gradients() -> AbstractContextManager[Any]:
    """PyTorch keeps what a gradient would need."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def _graphs(model: keras.Model) -> Iterator[keras.Model]:
    """A graph and its nested ones, one for each call."""
    yield graph_of(model)
    for node in nodes_of(model):
        if is_graph(node.operation):
            yield from _graphs(node.operation)


def _last_uses(graph: keras.Model) -> list[tuple[Any, list[int]]]:
    """The calls of a graph in order, each with the tensors that nothing needs after it."""
    needed = set(map(id, graph.outputs))
    found: list[tuple[Any, list[int]]] = []
    for node in reversed(nodes_of(graph)):
        last = {id(tensor) for tensor in (*node.input_tensors, *node.outputs)} - needed
        needed |= last
        found.append((node, list(last)))
    return found[::-1]


def _freeing(graph: keras.Model, _: Callable[..., Any]) -> Callable[..., Any]:
    """Keras' `_run_through_graph`; calls that do not depend on each other may follow in another order."""
    calls = _last_uses(graph)

    def run(inputs: Any, operation_fn: Callable[..., Any]) -> Any:
        values: Values = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
        for node, last in calls:
            args, kwargs = filled(node, values)
            outputs = keras.tree.flatten(operation_fn(node.operation)(*args, **kwargs))
            values |= zip(map(id, node.outputs), outputs, strict=False)  # Keras passes over what was not declared, too
            del args, kwargs, outputs
            for tensor_id in last:
                del values[tensor_id]
        return keras.tree.map_structure(lambda tensor: values[id(tensor)], graph.output)

    return run
