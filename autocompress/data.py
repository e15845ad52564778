"""Reading a user's data, whatever its shape, without importing a framework.

A *split* is either a pair of arrays `(inputs, targets)`, or anything that can be iterated again and again and yields batches
(a DataLoader or a `tf.data.Dataset`, for example), or a Keras `PyDataset`. A *batch* is `(inputs, targets)`, `(input, input, …,
targets)` or a dict with the targets under one key; of Keras' own kinds of data it may be `(inputs, targets, sample weights)`.
The inputs of a batch are a tuple (positional) or a dict (by name); the first dimension of each array is the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import TaskError

Inputs = tuple[Any, ...] | dict[str, Any]
MERGED, MERGED_ELEMENTS = 16, 2**19
"""Batches that are made one, at most, and elements of the largest array in it."""
ENDLESS = -1
"""The cardinality of a `tf.data.Dataset` that repeats."""


@dataclass(frozen=True)
class Batch:
    """Inputs of a model call, the targets that belong to them, and how much each sample counts in a loss, where data say so."""

    inputs: Inputs
    targets: Any
    weights: Any = None

    @property
    def size(self) -> int:
        """Samples in this batch."""
        return size_of(self.inputs)

    def map(self, change: Any) -> Batch:
        """The batch with `change` applied to every array."""
        weights = None if self.weights is None else map_arrays(self.weights, change)
        return Batch(map_arrays(self.inputs, change), map_arrays(self.targets, change), weights)


@dataclass(frozen=True)
class Split:
    """One of train, validation, test, calibration.

    Args:
        name: for error messages.
        source: see the module's docstring.
        batch_size: samples per batch where the source is a pair of arrays.
        target_key: the key of the targets where batches are dicts.

    Raises:
        TaskError: the source is empty, can be iterated only once, or holds no batches.
    """

    name: str
    source: Any
    batch_size: int = 64
    target_key: str = "labels"

    def __post_init__(self) -> None:
        if self.is_arrays:
            inputs, targets = self.source
            sizes = {len(array) for array in (*_arrays(_as_inputs(inputs)), *_arrays(targets))}
            if len(sizes) != 1:
                raise TaskError(f"Inputs and targets of the {self.name} data have one length", sorted(sizes))
            if sizes == {0}:
                raise self._empty()
            return
        if self._is_endless:
            raise TaskError(
                f"The {self.name} data ends after one pass",
                f"a {type(self.source).__name__} without an end",
                "Leave repeat() out, or take() as many batches as a pass has.",
            )
        if self._is_py_dataset:
            return
        if hasattr(self.source, "__getitem__") and not isinstance(self.source, list | tuple):
            raise TaskError(
                f"The {self.name} data yields batches",
                f"a {type(self.source).__name__}, which yields samples",
                "Wrap it in a DataLoader, or pass (inputs, targets).",
            )
        try:
            once = isinstance(self.source, Iterator) or not callable(self.source.__iter__)
        except AttributeError as error:
            raise TaskError(
                f"The {self.name} data is (inputs, targets) or yields batches",
                type(self.source).__name__,
                "Pass a DataLoader or arrays.",
            ) from error
        if once:
            raise TaskError(
                f"The {self.name} data can be iterated again and again", "a generator", "Pass a DataLoader or arrays."
            )

    @property
    def is_arrays(self) -> bool:
        """True for a pair (inputs, targets) of whole arrays."""
        if not isinstance(self.source, tuple | list) or len(self.source) != 2:
            return False
        batches = isinstance(self.source, list) and any(isinstance(part, tuple | list | Mapping) for part in self.source)
        return not batches and all(map(_is_whole, self.source))

    def batches(self, order: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """The batches, in `order` (indices of samples; whole arrays only)."""
        if self.is_arrays:
            yield from self._slices(order)
            return
        empty = True
        for batch in self._indexed() if self._is_py_dataset else self.source:
            empty = False
            yield self._split(batch)
        if empty:
            raise self._empty()

    def numpy(self) -> Iterator[Batch]:
        """The batches as NumPy arrays."""
        return (batch.map(to_numpy) for batch in self.batches())

    def take(self, count: int) -> list[Inputs]:
        """The inputs of the first `count` samples, one sample each with a batch dimension of 1, in NumPy."""
        samples: list[Inputs] = []
        for batch in self.numpy():
            samples.extend(map_arrays(batch.inputs, lambda a, i=i: a[i : i + 1]) for i in range(batch.size))
            if len(samples) >= count:
                break
        return samples[:count]

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name or place of each input → its shape for one sample, of the first one."""
        inputs = next(self.numpy()).inputs
        named = inputs if isinstance(inputs, dict) else dict(enumerate(inputs))
        return {str(name): tuple(array.shape[1:]) for name, array in named.items()}

    @property
    def length(self) -> int | None:
        """Samples, where that is known without reading them."""
        if self.is_arrays:
            return len(_arrays(_as_inputs(self.source[0]))[0])
        dataset: Any = getattr(self.source, "dataset", None)
        return len(dataset) if hasattr(dataset, "__len__") else None

    @property
    def batch_count(self) -> int:
        """Batches of one pass."""
        if self.is_arrays:
            return max(1, -(-(self.length or 0) // self.batch_size))
        try:
            return len(self.source)
        except TypeError:  # a loader of an iterable data set does not know
            return sum(1 for _ in self.batches())

    @property
    def first_size(self) -> int:
        """Samples of the first batch, or of every whole one where that is known without reading it."""
        if self.is_arrays:
            return self.batch_size
        size = getattr(self.source, "batch_size", None)  # a loader with a batch sampler does not know
        return size if isinstance(size, int) else next(self.batches()).size

    @property
    def comes_alone(self) -> bool:
        """True where the data come one sample at a time."""
        return self.first_size == 1

    def digest(self) -> str:
        """A hash of every sample that does not depend on their order (a loader may shuffle)."""
        total = 0
        for batch in self.numpy():
            arrays = [*_arrays(batch.inputs), *_arrays(batch.targets)]
            for i in range(batch.size):
                sample = hashlib.blake2b(digest_size=8)
                for array in arrays:
                    sample.update(np.ascontiguousarray(array[i]).tobytes())
                total += int.from_bytes(sample.digest(), "little")
        return f"{total % 2**64:016x}"

    def _slices(self, order: NDArray[np.int64] | None) -> Iterator[Batch]:
        inputs, targets = _as_inputs(self.source[0]), self.source[1]
        count = (self.length or 0) if order is None else len(order)
        for start in range(0, count, self.batch_size):
            part = slice(start, start + self.batch_size)
            index = part if order is None else order[part]
            yield Batch(map_arrays(inputs, lambda a, i=index: a[i]), map_arrays(targets, lambda a, i=index: a[i]))

    @property
    def _is_py_dataset(self) -> bool:
        """Batches by index, and told when a pass ends."""
        return all(hasattr(self.source, name) for name in ("__getitem__", "__len__", "on_epoch_end"))

    @property
    def _is_endless(self) -> bool:
        cardinality = getattr(self.source, "cardinality", None)  # of a tf.data.Dataset
        return callable(cardinality) and int(cardinality()) == ENDLESS

    def _indexed(self) -> Iterator[Any]:
        yield from (self.source[index] for index in range(len(self.source)))
        self.source.on_epoch_end()

    @property
    def _has_weights(self) -> bool:
        """True where a third part of a batch weighs the samples, as Keras reads it."""
        return self._is_py_dataset or hasattr(self.source, "element_spec")

    def _split(self, batch: Any) -> Batch:
        if isinstance(batch, Mapping):
            if self.target_key not in batch:
                raise TaskError(
                    f"A dict batch of the {self.name} data holds its targets under '{self.target_key}'",
                    f"the keys {', '.join(map(str, batch))}",
                    "Say which: Task(..., target_key=...).",
                )
            return Batch({key: value for key, value in batch.items() if key != self.target_key}, batch[self.target_key])
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise TaskError(
                f"A batch of the {self.name} data is (inputs, targets) or a dict",
                type(batch).__name__,
                "Let the loader yield both.",
            )
        if len(batch) == 3 and self._has_weights:
            return Batch(_as_inputs(batch[0]), batch[1], batch[2])
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        return Batch(_as_inputs(inputs), batch[-1])

    def _empty(self) -> TaskError:
        return TaskError(f"The {self.name} data holds at least one sample", "none", "Check its path and its filters.")


def rebatched(batches: Iterator[Batch], size: int) -> Iterator[tuple[Inputs, int]]:
    """Inputs in batches of exactly `size`, and how many samples of each are real (the last one repeats its last sample)."""
    for batch in batches:
        for start in range(0, batch.size, size):
            real = min(size, batch.size - start)
            filling = [*range(start, start + real), *[start + real - 1] * (size - real)]
            part = slice(start, start + size) if real == size else filling
            yield map_arrays(batch.inputs, lambda a, part=part: a[part]), real


def merged(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """The same inputs in fewer, larger batches; arrays in NumPy."""
    return map(united, fitting(batches))


def fitting(batches: Iterable[Inputs], *, of_one_size: bool = False) -> Iterator[list[Inputs]]:
    """Inputs, as many batches at a time as should be one; arrays in NumPy.

    A call of a small model costs more than its arithmetic. Where a call gives up what was used, some batches together take about
    as much memory as a training step on one of them; less in a deep model, more where a few layers make much of little. Large
    inputs stay as they are, and so do batches that do not fit together.

    Args:
        batches: one after the other.
        of_one_size: batches of different sizes do not fit together.
    """
    parts: list[Inputs] = []
    for inputs in batches:
        if parts and not _fits_with(parts, inputs, of_one_size):
            yield parts
            parts = []
        parts.append(inputs)
    if parts:
        yield parts


def united(parts: list[Inputs]) -> Inputs:
    """The inputs of some batches as those of one."""
    return parts[0] if len(parts) == 1 else join(parts)


def size_of(inputs: Inputs) -> int:
    """Samples in the inputs of a batch."""
    return len(_arrays(inputs)[0])


def elements_per_sample(inputs: Inputs) -> int:
    """Of the largest array."""
    return max(int(array[:1].size) for array in _arrays(inputs))


def _fits_with(parts: list[Inputs], inputs: Inputs, of_one_size: bool) -> bool:
    samples = sum(map(size_of, [*parts, inputs]))
    is_small = samples * elements_per_sample(inputs) <= MERGED_ELEMENTS
    fits = not of_one_size or size_of(parts[0]) == size_of(inputs)
    return len(parts) < MERGED and is_small and fits and _form(parts[0]) == _form(inputs)


def _form(inputs: Any) -> Any:
    """Names, places, shapes and types of arrays, but for the number of samples."""
    if isinstance(inputs, Mapping):
        return {key: _form(item) for key, item in inputs.items()}
    if isinstance(inputs, tuple | list):
        return [_form(item) for item in inputs]
    return inputs.shape[1:], inputs.dtype


def map_arrays(value: Any, change: Any) -> Any:
    """`value` with `change` applied to each array in it; dicts, lists and tuples keep their form."""
    if isinstance(value, Mapping):
        return {key: map_arrays(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map_arrays(item, change) for item in value)
    return change(value)


def as_prediction(outputs: Sequence[Any]) -> Any:
    """A model's outputs as a metric takes them: one by itself, several as a tuple."""
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def to_numpy(array: Any) -> NDArray[Any]:
    """A tensor of any framework, or anything array-like, as NumPy."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array)


def join(parts: list[Any]) -> Any:
    """Concatenate batches of arrays along the first dimension; dicts and tuples keep their form."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: join([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        return tuple(join([part[i] for part in parts]) for i in range(len(first)))
    return np.concatenate(parts)


def _as_inputs(inputs: Any) -> Inputs:
    if isinstance(inputs, Mapping):
        return dict(inputs)
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def _arrays(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [array for item in value.values() for array in _arrays(item)]
    if isinstance(value, tuple | list):
        return [array for item in value for array in _arrays(item)]
    return [value]


def _is_whole(value: Any) -> bool:
    return bool(_arrays(value)) and all(hasattr(array, "shape") and hasattr(array, "__getitem__") for array in _arrays(value))
