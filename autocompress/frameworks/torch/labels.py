"""Labels: which channel each element of a tensor belongs to, and which channels can only go together.

A label tensor has one class id per element; 0 is "no channel". It is kept small: along a dimension in which it does not vary its
size is 1. Ids that must go together are noted in pairs and become classes in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from autocompress.frameworks.classes import Classes


def new_label(classes: Classes, count: int) -> torch.Tensor:
    """A label along one dimension, of ids that nothing else has."""
    return torch.from_numpy(classes.new(count)).double()


def compressed(label: torch.Tensor) -> torch.Tensor:
    """The label with size 1 along every dimension in which it does not vary."""
    for axis in range(label.ndim):
        if label.shape[axis] > 1:
            first = label.narrow(axis, 0, 1)
            if bool((label == first).all()):
                label = first
    return label.clone()


def varies(label: torch.Tensor, axis: int) -> bool:
    """True where the label differs along a dimension."""
    return label.shape[axis] > 1


def united(classes: Classes, label: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """The label after its elements along some axes were mixed with each other: they can only go together."""
    axes = [axis % label.ndim for axis in axes if label.ndim]
    if not any(varies(label, axis) for axis in axes):
        return label
    one = label.amax(axes, keepdim=True)
    classes.join(label, one)
    return one
