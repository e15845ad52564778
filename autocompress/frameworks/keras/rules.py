"""What Keras' operations, and layers without weights, do to the labels of their inputs (`labels.py`).

What only moves values is run on the labels themselves. Element by element, the inputs' labels can only go together. What is mixed
along a dimension (a softmax, a mean, a product) can only go as a whole. What is not known has to stay.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from autocompress.frameworks.classes import Classes, Ids
from autocompress.frameworks.keras.names import ACTIVATIONS, MIXES, MOVES, POINTWISE, POOLS, SIZED
from autocompress.frameworks.labels import combined, compressed, united, varies

MIXING_ACTIVATIONS = ("log_softmax", "softmax", "sparsemax")


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the example, and its label."""

    array: Any
    label: Ids | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(np.shape(self.array))

    @property
    def ndim(self) -> int:
        """Of the array."""
        return len(self.shape)


@dataclass(frozen=True, eq=False)
class Call:
    """An operation's call.

    Attributes:
        name: of the operation, with those of the models around it.
        operation: a layer or an operation.
        args, kwargs: with `Value` where the call has tensors.
        operands: the tensors among them, in order; constants and variables too.
        shapes: of the outputs.
    """

    name: str
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[Value, ...]
    shapes: tuple[tuple[int, ...], ...]


Result = Sequence[Ids | None]
Remember = Callable[[Call, int, Ids], None]
"""Told that an operation remembers the sizes of one of its outputs; the number of its input is -1."""


class Rules:
    """Applies the rules to one model's operations."""

    def __init__(self, classes: Classes, remember: Remember) -> None:
        self.classes = classes
        self._remember = remember

    def find(self, operation: Any) -> Callable[[Call], Result] | None:
        """The rule of an operation or layer of Keras; None where there is none."""
        name = type(operation).__name__
        if not type(operation).__module__.startswith("keras.src."):
            return None
        named: dict[str, Callable[[Call], Result]] = {
            "Activation": lambda call: [self.activated(operation.activation, call.operands[0].label)],
            "Einsum": self._einsum,
            "Matmul": self._matmul,
            "DotProductAttention": self._attention,
            "GetItem": self._get_item,
            "Pad": self._pad,
            "Average": self._pointwise if isinstance(operation, keras.layers.Layer) else self._mix,
        }
        tables = ((named, None), (MOVES, self._move), (POINTWISE, self._pointwise), (MIXES, self._mix), (POOLS, self._pool))
        return next((rule or named[name] for table, rule in tables if name in table), None)

    def freeze(self, operands: Iterable[Value], reason: str) -> None:
        """All channels of these tensors have to stay."""
        for value in operands:
            if value.label is not None:
                self.classes.freeze(value.label, reason)

    def activated(self, function: Any, label: Ids | None) -> Ids | None:
        """The label after an activation function."""
        name = getattr(function, "__name__", type(function).__name__)
        if label is None or function is None or name in ACTIVATIONS:
            return label
        if name in MIXING_ACTIVATIONS:
            return united(self.classes, label, [-1])
        self.classes.freeze(label, f"what the activation {name} does to its channels is not known")
        return label

    def combined(self, operands: Iterable[Value], ndim: int) -> Ids | None:
        """Element by element, labels can only go together."""
        return combined(self.classes, ((value.label, value.shape) for value in operands), ndim)

    def _pointwise(self, call: Call) -> Result:
        return [self.combined(call.operands, len(call.shapes[0]))]

    def _move(self, call: Call) -> Result:
        """Run the operation on the labels."""
        name = type(call.operation).__name__

        def whole(value: Any) -> Any:
            if not isinstance(value, Value):
                return value
            label = np.zeros((), np.int64) if value.label is None else value.label
            return keras.ops.convert_to_tensor(np.broadcast_to(label, value.shape))

        args, kwargs = keras.tree.map_structure(whole, (call.args, call.kwargs))
        if name in ("Take", "TakeAlongAxis"):  # by indices that have no labels
            args = (args[0], *(value.array if isinstance(value, Value) else value for value in call.args[1:]))
            self._require_even(call.operands[0], call.operation.axis)
        if name == "Roll":
            self._require_even(call.operands[0], call.operation.axis)
        found = keras.tree.flatten(call.operation.call(*args, **kwargs))
        labels = [compressed(keras.ops.convert_to_numpy(label)) for label in found]
        if name in SIZED:
            for place, label in enumerate(labels):
                self._remember(call, place, label)
        return labels

    def _require_even(self, value: Value, axis: Any) -> None:
        """Freeze a tensor whose channels lie along an axis in which an operation counts them."""
        axes = range(value.ndim) if axis is None else axis if isinstance(axis, list | tuple) else [axis]
        if value.label is not None and any(varies(value.label, one) for one in axes):
            self.classes.freeze(value.label, "its channels are counted where they are moved")

    def _get_item(self, call: Call) -> Result:
        value, key = call.operands[0], call.args[1] if len(call.args) > 1 else call.kwargs["key"]
        assert value.label is not None
        for axis, part in enumerate(spread(key, value.ndim)):
            steps = isinstance(part, slice) and part.step in (None, 1)
            if varies(value.label, axis) and not steps:
                self.classes.freeze(value.label, "its channels are taken one by one")
        self._remember(call, -1, value.label)
        return self._move(call)

    def _pad(self, call: Call) -> Result:
        value, widths = call.operands[0], call.operation.pad_width
        assert value.label is not None
        for axis, width in enumerate(widths if len(widths) > 1 else list(widths) * value.ndim):
            if any(width) and varies(value.label, axis):
                self.classes.freeze(value.label, "its channels meet values that do not follow them")
                return [None]
        return [value.label]

    def _mix(self, call: Call) -> Result:
        label = call.operands[0].label
        assert label is not None
        axis = call.operation.axis
        axes = [
            a % label.ndim for a in (range(label.ndim) if axis is None else axis if isinstance(axis, list | tuple) else [axis])
        ]
        mixed = united(self.classes, label, axes)
        if len(call.shapes[0]) == label.ndim:
            return [mixed]
        return [mixed.reshape([size for a, size in enumerate(mixed.shape) if a not in axes])]

    def _pool(self, call: Call) -> Result:
        value = call.operands[0]
        assert value.label is not None
        channels = channel_axis(call.operation, value.ndim)
        spatial = [axis for axis in range(1, value.ndim) if axis != channels]
        mixed = united(self.classes, value.label, spatial)
        kept = len(call.shapes[0]) == value.ndim
        return [mixed if kept else mixed.reshape([size for axis, size in enumerate(mixed.shape) if axis not in spatial])]

    def _einsum(self, call: Call) -> Result:
        sources, _, result = call.operation.subscripts.replace(" ", "").partition("->")
        if "." in sources or not result:
            raise ValueError("letters that are not written out")
        return [self.contracted(sources.split(","), result, call.operands)]

    def _matmul(self, call: Call) -> Result:
        first, second = call.operands
        if min(first.ndim, second.ndim) < 2:
            raise ValueError("a vector")
        batch = string.ascii_lowercase[: max(first.ndim, second.ndim) - 2]
        sources = [f"{batch[len(batch) + 2 - value.ndim :]}{last}" for value, last in ((first, "xy"), (second, "yz"))]
        return [self.contracted(sources, f"{batch}xz", [first, second])]

    def _attention(self, call: Call) -> Result:
        """softmax(q kᵀ) v, element by element of heads."""
        query, key, value = (call.kwargs.get(name) or call.args[place] for place, name in enumerate(("query", "key", "value")))
        extra = [one for one in call.operands if all(one is not known for known in (query, key, value))]
        shape = (*(query.shape[i] for i in (0, 2, 1)), key.shape[1])
        weights = self.contracted(["btnh", "bsnh"], "bnts", [query, key])
        if weights is not None:
            mixed = self.combined([Value(np.empty(shape, bool), weights), *extra], 4)
            weights = None if mixed is None else united(self.classes, mixed, [-1])
        return [self.contracted(["bnts", "bsnh"], "btnh", [Value(np.empty(shape, bool), weights), value])]

    def contracted(self, sources: Sequence[str], result: str, operands: Sequence[Value]) -> Ids | None:
        """A sum of products, in the letters of an einsum: what is summed over can only go as a whole."""
        letters = result + "".join(sorted(set("".join(sources)) - set(result)))
        found: list[Value] = []
        for source, value in zip(sources, operands, strict=True):
            places = [source.find(letter) for letter in letters]
            shape = [value.shape[place] if place >= 0 else 1 for place in places]
            label = value.label
            if label is not None:
                label = united(self.classes, label, [source.index(one) for one in source if one not in result])
                label = label.transpose([p for p in places if p >= 0]).reshape([label.shape[p] if p >= 0 else 1 for p in places])
            found.append(Value(np.broadcast_to(False, shape), label))
        whole = self.combined_products(found, len(letters))
        return None if whole is None else compressed(whole.reshape(whole.shape[: len(result)]))

    def combined_products(self, operands: Sequence[Value], ndim: int) -> Ids | None:
        """The label of a product in which each tensor may lack dimensions (of size 1) that others have."""
        labelled = [value for value in operands if value.label is not None]
        for value in labelled:
            for other in operands:
                if other.label is None and any(varies(value.label, a) and other.shape[a] > 1 for a in range(ndim)):  # type: ignore[arg-type]
                    self.classes.freeze(value.label, "its channels are multiplied with values that do not follow them")  # type: ignore[arg-type]
        result: Ids | None = None
        for value in labelled:
            assert value.label is not None
            if result is None:
                result = value.label
            else:
                self.classes.join(result, value.label)
                result = np.maximum(result, value.label)
        return result


def channel_axis(operation: Any, ndim: int) -> int:
    """The dimension along which an operation's channels lie."""
    return 1 if getattr(operation, "data_format", None) == "channels_first" else ndim - 1


def spread(key: Any, ndim: int) -> list[Any]:
    """What an index says of each dimension of a tensor; new dimensions are left out."""
    parts = [part for part in (key if isinstance(key, list | tuple) else [key]) if part is not None]
    before = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    after = parts[before + 1 :]
    return [*parts[:before], *[slice(None)] * (ndim - before - len(after)), *after]
