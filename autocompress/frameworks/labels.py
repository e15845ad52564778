"""Labels: which channel each element of a tensor belongs to.

A label has one class id per element; 0 is "no channel". It is kept small: its size is 1 where it does not vary.
"""

from __future__ import annotations

from collections.abc import Sequence

from autocompress.frameworks.classes import Classes, Ids


def compressed(label: Ids) -> Ids:
    """The label with size 1 along every dimension in which it does not vary."""
    for axis in range(label.ndim):
        if label.shape[axis] > 1:
            first = label.take([0], axis)
            if (label == first).all():
                label = first
    return label


def varies(label: Ids, axis: int) -> bool:
    """True where the label differs along a dimension."""
    return bool(label.shape[axis] > 1)


def aligned(label: Ids, ndim: int) -> Ids:
    """The label with dimensions of size 1 in front, as broadcasting adds them."""
    return label.reshape(*[1] * (ndim - label.ndim), *label.shape)


def along(label: Ids, ndim: int, axis: int) -> Ids:
    """A label of one dimension, laid along one axis of a tensor."""
    shape = [1] * ndim
    shape[axis] = -1
    return label.reshape(shape)


def united(classes: Classes, label: Ids, axes: Sequence[int]) -> Ids:
    """The label after its elements along some axes were mixed with each other: they can only go together."""
    axes = tuple(axis % label.ndim for axis in axes if label.ndim)
    if not any(varies(label, axis) for axis in axes):
        return label
    one: Ids = label.max(axes, keepdims=True)
    classes.join(label, one)
    return one
