"""Labels: which channel each element of a tensor belongs to.

A label has one class id per element; 0 is "no channel". It is kept small: its size is 1 where it does not vary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

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


def combined(classes: Classes, operands: Iterable[tuple[Ids | None, Sequence[int]]], ndim: int) -> Ids | None:
    """The label of what is computed element by element: the operands' labels can only go together.

    Args:
        classes: where that is noted.
        operands: label and shape of each.
        ndim: dimensions of the result.
    """
    first, *others = sorted(operands, key=lambda operand: operand[0] is None)
    if first[0] is None:
        return None
    result, shape = aligned(first[0], ndim), _aligned_shape(first[1], ndim)
    for own, own_shape in others:
        size = _aligned_shape(own_shape, ndim)
        label = None if own is None else aligned(own, ndim)
        grown = [a for a in range(ndim) if shape[a] == 1 < size[a] and label is not None and varies(label, a)]
        broadcast = any(varies(result, axis) and size[axis] == 1 for axis in range(ndim))
        if label is None:
            if any(varies(result, axis) and size[axis] > 1 for axis in range(ndim)):
                classes.freeze(result, "its channels meet values that do not follow them")
        elif grown and not broadcast:
            classes.freeze(result, "its channels are broadcast")
            result = label
        elif broadcast:
            classes.freeze(label, "its channels are broadcast")
            if grown:
                classes.freeze(result, "its channels are broadcast")
        else:
            classes.join(result, label)
            result = np.maximum(result, label)
        shape = [max(a, b) for a, b in zip(shape, size, strict=True)]
    return compressed(result)


def _aligned_shape(shape: Sequence[int], ndim: int) -> list[int]:
    """The shape with ones in front, as broadcasting adds them."""
    return [1] * (ndim - len(shape)) + list(shape)
