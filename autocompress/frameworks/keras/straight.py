"""Functions with gradients of their own, and variables with values for a while, on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

Gradients = Callable[[Any], tuple[Any, ...]]
"""From the gradient of a value to those of the arguments that it was computed from."""


def differentiated(function: Callable[..., tuple[Any, Gradients]]) -> Callable[..., Any]:
    """A function of tensors, from one that returns the value and its gradients. It may not use variables or other tensors."""

    def forward(*arguments: Any) -> Any:
        value, gradients = function(*arguments)

        def backward(*given: Any, upstream: Any = None) -> Any:  # torch names it, the others do not
            return gradients(given[0] if upstream is None else upstream)

        return value, backward

    def called(*arguments: Any) -> Any:
        return ops.custom_gradient(forward)(*arguments)

    return called


def is_tensorflow_on_a_cpu() -> bool:
    """Can TensorFlow's own operations be used? On a GPU they were not measured, and some refuse to be deterministic there."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


def read(variable: Any) -> Any:
    """The value of a variable as a tensor: TensorFlow hands on the variable itself, which no gradient function may use."""
    return ops.cast(variable, variable.dtype)


def valued(values: Iterable[tuple[Any, Any]]) -> keras.StatelessScope:
    """A scope in which variables have other values, which may have other shapes too.

    An outer scope's values are not seen within it: it takes all that a layer reads.
    """
    scope = keras.StatelessScope()
    for value in values:
        scope.add_update(value)
    return scope


def straight_through(change: Callable[..., Any], value: Any, *constants: Any) -> Any:
    """`change(value, *constants)` with the gradient of the value itself (Bengio et al. 2013)."""

    @differentiated
    def changed(value: Any, *constants: Any) -> Any:
        return change(value, *constants), lambda gradient: (gradient, *map(ops.zeros_like, constants))

    return changed(value, *constants)
