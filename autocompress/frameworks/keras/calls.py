"""Calling a Keras model with a batch, and looking at what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.data import Inputs, map_arrays, to_numpy
from autocompress.errors import TaskError
from autocompress.frameworks.keras.nodes import as_argument
from autocompress.task import Task

Wrap = Callable[[keras.layers.Layer, Callable[..., Any]], Callable[..., Any]]
"""From a layer and its method to what is called instead."""


def call(model: keras.Model, inputs: Inputs) -> Any:
    """The model in inference mode on positional or named inputs, eagerly."""
    return model(as_argument(inputs), training=False)


def outputs_of(value: Any) -> list[Any]:
    """The tensors of an output in the model's order."""
    return list(keras.tree.flatten(value))


def example_inputs(task: Task, batch: int) -> Inputs:
    """`batch` training samples as NumPy arrays; the last is repeated where there are fewer. Floats are float32."""
    samples = task.splits["train"].take(batch)
    samples += [samples[-1]] * (batch - len(samples))
    names = samples[0].keys() if isinstance(samples[0], dict) else range(len(samples[0]))
    joined: dict[Any, Any] = {name: as_float32(np.concatenate([sample[name] for sample in samples])) for name in names}  # type: ignore[index]
    return joined if isinstance(samples[0], dict) else tuple(joined.values())


def require_fitting(model: keras.Model, example: Inputs) -> None:
    """Check that inputs are such as a graph takes.

    Raises:
        TaskError: their number, a name or a shape is another.
    """
    wanted = {tensor.name: tuple(tensor.shape[1:]) for tensor in model.inputs}
    named = example if isinstance(example, dict) else dict(zip(wanted, example, strict=False))
    given = {name: tuple(array.shape[1:]) for name, array in named.items()}
    fits = given.keys() == wanted.keys() and len(example) == len(wanted)
    if not fits or not all(_fits(given[name], wanted[name]) for name in wanted):
        shapes = list(given.values()) if isinstance(example, tuple) else given
        remedy = "Give each sample the model's shapes, without the batch."
        raise TaskError(f"The train data fit the model's inputs, {wanted}", shapes, remedy)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(size is None or size == have for have, size in zip(shape, wanted, strict=True))


def arrays(values: Any) -> Any:
    """Inputs or targets with every array in NumPy."""
    return map_arrays(values, lambda array: as_float32(to_numpy(array)))


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """NumPy's float64 becomes float32, as models have it."""
    return array.astype(np.float32) if array.dtype == np.float64 else array


@contextmanager
def calls_replaced(layers: Sequence[keras.layers.Layer], wrap: Wrap) -> Iterator[None]:
    """Within it, other functions are called in place of some layers' own. What was traced before is not changed."""
    with methods_replaced("call", layers, wrap):
        yield


def in_mode(training: bool) -> Wrap:
    """Calls in training mode, or in inference mode, whatever they are asked for."""

    def wrap(_: keras.layers.Layer, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **{**kwargs, "training": training})

        return called

    return wrap


@contextmanager
def methods_replaced(name: str, layers: Sequence[keras.layers.Layer], wrap: Wrap) -> Iterator[None]:
    """The same for another method than `call`."""
    replacing = [(layer, vars(layer).get(name), wrap(layer, getattr(layer, name))) for layer in layers]
    for layer, _, replaced in replacing:
        object.__setattr__(layer, name, replaced)
    try:
        yield
    finally:
        for layer, own, _ in replacing:
            object.__delattr__(layer, name)
            if own is not None:
                object.__setattr__(layer, name, own)
