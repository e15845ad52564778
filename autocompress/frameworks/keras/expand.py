"""Layers made of other layers (attention, a user's own blocks, subclassed models), seen as graphs.

Such a layer is called on symbolic inputs; what it does becomes a nested model of its name, with its own layers and weights.
"""

from __future__ import annotations

from typing import Any

import keras

from autocompress.errors import TaskError
from autocompress.frameworks.keras.nodes import as_argument, is_graph, symbolic_in
from autocompress.frameworks.keras.substitutes import has_substitute, substitute

KERAS_COMPOSITES = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
"""Of Keras' own layers; the others (recurrent ones, wrappers, augmentations) do more than call their parts."""


def traced(model: keras.Model, example: Any) -> keras.Model:
    """A subclassed model, or a Sequential that was never called, as a graph with the same layers and weights.

    Raises:
        TaskError: it cannot be called on symbolic inputs.
    """
    inputs: Any = (
        {name: _symbolic(array, name) for name, array in example.items()}
        if isinstance(example, dict)
        else [_symbolic(array) for array in example]
    )
    try:
        if isinstance(model, keras.Sequential):
            model(as_argument(inputs))
            return model
        return keras.Model(as_argument(inputs), model.call(as_argument(inputs)), name=model.name)
    except Exception as error:  # a user's call can do anything
        remedy = "Use keras.ops in its call, layers with names of their own, and no NumPy or TensorFlow functions."
        received = f"{model.name}, which raises {type(error).__name__}: {error}"
        raise TaskError("A subclassed model can be called on symbolic inputs", received, remedy) from error


def is_composite(operation: Any) -> bool:
    """True for a layer that can be seen as several: its weights are those of the layers that it calls, or it has a substitute."""
    if has_substitute(operation):
        return True
    if not isinstance(operation, keras.layers.Layer) or is_graph(operation):
        return False
    is_foreign = not type(operation).__module__.startswith("keras.src.") or isinstance(operation, KERAS_COMPOSITES)
    parts = operation._flatten_layers(include_self=False)
    of_parts = {id(weight) for part in parts for weight in part.weights}
    is_wrapper = isinstance(operation, keras.layers.Wrapper | keras.layers.RNN)
    return bool(parts) and is_foreign and not is_wrapper and all(id(weight) in of_parts for weight in operation.weights)


def traced_composite(layer: keras.layers.Layer, args: Any, kwargs: Any) -> keras.Model | None:
    """What a layer made of layers does in a call, as a graph of the symbolic tensors among its arguments.

    None where it cannot be followed, or where one of them carries a mask, which the layers inside would read unseen.
    """
    given = symbolic_in(args, kwargs)
    if has_substitute(layer):
        return substitute(layer, given[0])
    if any(getattr(tensor, "_keras_mask", None) is not None for tensor in given):
        return None
    inputs = [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in given]
    waiting = iter(inputs)

    def fill(value: Any) -> Any:
        return next(waiting) if isinstance(value, keras.KerasTensor) else value

    try:
        args, kwargs = keras.tree.map_structure(fill, (args, kwargs))
        return keras.Model(as_argument(inputs), layer.call(*args, **kwargs), name=layer.name)
    except Exception:  # a user's call can do anything; the layer then stays as it is
        return None


def _symbolic(array: Any, name: str | None = None) -> keras.KerasTensor:
    dtype = str(array.dtype).rpartition(".")[2]  # torch writes "torch.float32"
    return keras.Input(shape=tuple(array.shape[1:]), dtype="float32" if dtype == "float64" else dtype, name=name)
