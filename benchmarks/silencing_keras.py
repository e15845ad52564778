"""What a pruned Keras model must compute, found from its weights alone.

The counterpart of `silencing.py`. All weights of a perturbed layer differ from each other, so each one that is left says where it
stood; whoever pruned the model is not asked. The original must then give the same outputs as the pruned one if the kernels of its
layers have zeros where inputs were lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

Lost = dict[str, dict[int, NDArray[np.int64]]]
"""Layer name → axis of its kernel → the indices that are gone."""
Layers = Mapping[str, Any]
"""Layer name → layer."""


def perturb(layers: Layers, seed: int = 1) -> None:
    """Let every block matter and all weights of a kernel differ: no zero-initialised norm, no layer scale of 1e-6."""
    generator = np.random.default_rng(seed)
    for layer in layers.values():
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if not keras.backend.is_float_dtype(weight.dtype):
                continue
            if len(shape) > 1:
                weight.assign(_distinct(shape, _inputs_of_one(layer, shape), generator))
            else:
                centred = weight.name in ("bias", "beta", "moving_mean")
                weight.assign(generator.random(shape) + (-0.5 if centred else 0.5))


def _inputs_of_one(layer: Any, shape: tuple[int, ...]) -> float:
    """How many weights are summed up in one output."""
    outputs = shape[-2] * shape[-1] if "Depthwise" in type(layer).__name__ else shape[-1]
    return float(np.prod(shape)) / outputs


def _distinct(shape: tuple[int, ...], summed: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Evenly spaced values in random order, with the variance of 1 / `summed`. Up to 2^24 of them differ in float32."""
    count = int(np.prod(shape))
    values = (generator.permutation(count) + 0.5) / count * 2 - 1
    return (values * (3 / summed) ** 0.5).astype(np.float32).reshape(shape)


def lost_channels(original: Layers, pruned: Layers) -> Lost:
    """What the kernel of each layer lost; layers that lost nothing are left out.

    Raises:
        ValueError: a kernel of the pruned model is no part of the original's.
    """
    lost: Lost = {}
    for name, layer in original.items():
        before, after = _kernel(layer), _kernel(pruned[name])
        if before.shape == after.shape:
            continue
        order = np.argsort(before, axis=None)
        found = np.minimum(np.searchsorted(before.reshape(-1)[order], after.reshape(-1)), before.size - 1)
        if not np.array_equal(before.reshape(-1)[order[found]], after.reshape(-1)):
            raise ValueError(f"{name}: the pruned weights are not the original's")
        places = np.unravel_index(order[found], before.shape)
        kept = [np.unique(axis) for axis in places]
        if not np.array_equal(before[np.ix_(*kept)], after):
            raise ValueError(f"{name}: what is left is not whole slices of the original, in its order")
        gone = {axis: np.setdiff1d(np.arange(size), kept[axis]) for axis, size in enumerate(before.shape)}
        lost[name] = {axis: indices for axis, indices in gone.items() if indices.size}
    return lost


def reading(layer: Any) -> tuple[int, ...]:
    """The axes of a kernel along which its inputs lie. A depthwise or grouped one passes on what others read: none."""
    kind, last = type(layer).__name__, len(layer.kernel.shape) - 1
    if "Depthwise" in kind or getattr(layer, "groups", 1) > 1:
        return ()
    if kind == "EinsumDense":
        sources, result = layer.equation.replace(" ", "").split("->")
        return tuple(axis for axis, letter in enumerate(sources.split(",")[1]) if letter not in result)
    return (last,) if "Transpose" in kind else (last - 1,)


def inputs_lost(original: Layers, lost: Lost) -> Lost:
    """The part of what was lost that was read."""
    found = {name: {axis: gone for axis, gone in axes.items() if axis in reading(original[name])} for name, axes in lost.items()}
    return {name: axes for name, axes in found.items() if axes}


def other_channels(original: Layers, lost: Lost, seed: int = 2) -> Lost:
    """For each layer as many indices as it lost, from those that it kept."""
    generator = np.random.default_rng(seed)
    chosen: Lost = {}
    for name, axes in lost.items():
        shape = original[name].kernel.shape
        kept = {axis: np.setdiff1d(np.arange(shape[axis]), gone) for axis, gone in axes.items()}
        chosen[name] = {axis: generator.permutation(kept[axis])[: len(gone)] for axis, gone in axes.items()}
    return chosen


def silence(original: Layers, lost: Lost) -> None:
    """Put zeros where inputs were lost."""
    for name, axes in lost.items():
        kernel = _kernel(original[name]).copy()
        for axis, gone in axes.items():
            np.moveaxis(kernel, axis, 0)[gone] = 0
        original[name].kernel.assign(kernel)


def _kernel(layer: Any) -> NDArray[Any]:
    return np.asarray(keras.ops.convert_to_numpy(layer.kernel))
