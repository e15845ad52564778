"""Which channels layers with weights read, write and carry."""

from __future__ import annotations

from typing import Any, Protocol

import keras
import numpy as np

from autocompress.frameworks.channels import Role
from autocompress.frameworks.classes import Classes, Ids
from autocompress.frameworks.keras.layers import DEPTHWISE, TRANSPOSED, einsum_letters
from autocompress.frameworks.keras.rules import Call, Result, Rules, Value, channel_axis
from autocompress.frameworks.labels import along, compressed, united, varies

NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
    keras.layers.PReLU,
)
"""Layers whose weights only carry channels."""
INPUTS, GROUPS = "#inputs", "#groups"
"""Behind a layer's name: what goes with channels without being a slice of a weight."""


class Note(Protocol):
    """See `trace._Tracer.note`."""

    def __call__(self, layer: str, tensor: str, ids: Ids, role: Role, channels: int = 0, is_sliced: bool = True) -> None:
        """Note channels."""


class LayerRules:
    """Applies the rules of layers with weights."""

    def __init__(self, classes: Classes, rules: Rules, note: Note) -> None:
        self.classes, self.rules, self.note = classes, rules, note
        self._written: dict[str, Ids] = {}

    def heavy(self, call: Call) -> Result:
        """A convolution or dense layer."""
        layer = call.operation
        if isinstance(layer, keras.layers.EinsumDense):
            label: Ids | None = self._einsum_dense(call)
        else:
            axis = channel_axis(layer, len(call.shapes[0]))
            ids = self._read(call, axis)
            written = self._depthwise(call, ids) if isinstance(layer, DEPTHWISE) else self._convolution(call, ids)
            label = None if written is None else along(written, len(call.shapes[0]), axis)
            if written is not None and getattr(layer, "bias", None) is not None:
                self.note("", f"{call.name}/bias", written, "carries")
        return [self.rules.activated(layer.activation, label)]

    def norm(self, call: Call) -> Result:
        """A normalization: what it mixes can only go as a whole; its weights follow the channels."""
        layer, (value, *_) = call.operation, call.operands
        assert value.label is not None
        if isinstance(layer, keras.layers.GroupNormalization):
            self._unite_groups(call, value)
        elif isinstance(layer, keras.layers.LayerNormalization | keras.layers.RMSNormalization):
            united(self.classes, value.label, _axes(layer.axis))
        carried = [self._carried(call, weight, value.ndim) for weight in layer.weights]
        return [self.rules.combined([value, *carried], value.ndim)]

    def _carried(self, call: Call, weight: Any, ndim: int) -> Value:
        """A weight that is multiplied with or added to the channels, laid along their axes."""
        layer, shape = call.operation, tuple(weight.shape)
        if isinstance(layer, keras.layers.PReLU):
            places = [1, *shape]
        else:
            axes = sorted(axis % ndim for axis in _axes(layer.axis))
            places = [shape[axes.index(axis)] if axis in axes else 1 for axis in range(ndim)]
        tensor = f"{call.name}/{weight.name}"
        if tensor not in self._written:
            self._written[tensor] = self.classes.new(int(np.prod(shape))).reshape(shape)
            self.note("", tensor, self._written[tensor], "carries")
        return Value(np.broadcast_to(False, places), self._written[tensor].reshape(places))

    def _unite_groups(self, call: Call, value: Value) -> None:
        """Channels of a group are mixed; the layer remembers how many groups there are."""
        layer, axis = call.operation, call.operation.axis
        assert value.label is not None
        if any(varies(value.label, other) for other in range(value.ndim) if other != axis % value.ndim):
            united(self.classes, value.label, range(value.ndim))
            return
        ids = np.broadcast_to(value.label.reshape(-1), value.shape[axis])
        grouped = ids.reshape(layer.groups, -1)
        self.classes.join(grouped, grouped.max(1, keepdims=True))
        self.note("", call.name + GROUPS, grouped.max(1), "carries")

    def _read(self, call: Call, axis: int) -> Ids | None:
        """Ids along the axis that a layer reads. Channels along other dimensions have to stay."""
        value = call.operands[0]
        if value.label is None:
            return None
        label, others = value.label, [a for a in range(value.ndim) if a != axis and varies(value.label, a)]
        if others:
            self.classes.freeze(label, f"{call.name} mixes its channels in another way than reading them")
            label = united(self.classes, label, others)
        return np.broadcast_to(label.reshape(-1), value.shape[axis])

    def _convolution(self, call: Call, ids: Ids | None) -> Ids:
        """A dense layer is one too. A group of a grouped convolution goes as a whole, with its inputs and outputs."""
        layer, name = call.operation, call.name
        reads, writes = layer.kernel.ndim - 2, layer.kernel.ndim - 1
        if isinstance(layer, TRANSPOSED):
            reads, writes = writes, reads
        written = self._outputs(name, int(layer.kernel.shape[writes]))
        if ids is not None and getattr(layer, "groups", 1) > 1:
            inputs, outputs = ids.reshape(layer.groups, -1), written.reshape(layer.groups, -1)
            for part in (inputs, outputs):
                self.classes.join(part, inputs[:, :1])
            self.note(name, name + INPUTS, ids, "reads", is_sliced=False)
        elif ids is not None:
            self.note(name, f"{name}/kernel", along(ids, layer.kernel.ndim, reads), "reads")
        self.note(name, f"{name}/kernel", along(written, layer.kernel.ndim, writes), "writes")
        return written

    def _depthwise(self, call: Call, ids: Ids | None) -> Ids | None:
        """Each input channel has outputs of its own, which go with it."""
        layer, name = call.operation, call.name
        if ids is None:
            return None
        axis, multiplier = layer.kernel.ndim - 2, int(layer.kernel.shape[-1])
        self.note(name, name + INPUTS, ids, "reads", is_sliced=False)
        self.note(name, f"{name}/{layer.kernel.name}", along(ids, layer.kernel.ndim, axis), "writes", len(ids) * multiplier)
        return np.repeat(ids, multiplier)

    def _outputs(self, name: str, count: int) -> Ids:
        if name not in self._written:
            self._written[name] = self.classes.new(count)
        return self._written[name]

    def _einsum_dense(self, call: Call) -> Ids | None:
        """The weight's letters that are summed over are read; those that stand in the output alone are written."""
        layer, name, (value, *_) = call.operation, call.name, call.operands
        sources, result = layer.equation.replace(" ", "").split("->")
        source, weight = sources.split(",")
        read, shared, new = einsum_letters(layer)
        sizes = dict(zip(weight, (int(size) for size in layer.kernel.shape), strict=True))
        letters = shared + new
        count = int(np.prod([sizes[letter] for letter in letters]))
        written = _laid(self._outputs(name, count).reshape([sizes[letter] for letter in letters]), letters, weight)
        if value.label is not None:
            inputs = self._read_by_einsum(call, source, weight)
            self.note(name, f"{name}/kernel", inputs, "reads", int(np.prod([sizes[letter] for letter in read])))
            if shared:
                self.classes.join(inputs, written)
        self.note(name, f"{name}/kernel", written, "writes", int(np.prod([sizes[letter] for letter in new])))
        label = _laid(written, weight, result, len(call.shapes[0]))
        if layer.bias is None:
            return label
        bias = self._outputs(f"{name}/bias", int(np.prod(layer.bias.shape))).reshape(layer.bias.shape)
        self.note("", f"{name}/bias", bias, "carries")
        combined = self.rules.combined(
            [Value(np.empty(call.shapes[0], bool), label), Value(np.empty(bias.shape, bool), bias)], label.ndim
        )
        assert combined is not None
        return combined

    def _read_by_einsum(self, call: Call, source: str, weight: str) -> Ids:
        """Ids of the channels that an EinsumDense reads, in the letters of its weight."""
        value = call.operands[0]
        assert value.label is not None
        label = value.label
        places = _places(source, label.ndim)
        outside = [axis for axis in range(label.ndim) if axis not in [places[one] for one in source if one in weight]]
        if any(varies(label, axis) for axis in outside):
            self.classes.freeze(label, f"{call.name} mixes its channels in another way than reading them")
            label = united(self.classes, label, outside)
        return _laid(label, source, weight)


def _axes(axis: Any) -> list[int]:
    return list(axis) if isinstance(axis, list | tuple) else [axis]


def _places(letters: str, ndim: int) -> dict[str, int]:
    """The dimension of each letter; an ellipsis takes what is left."""
    before, _, after = letters.partition("...")
    return {one: i for i, one in enumerate(before)} | {one: ndim - len(after) + i for i, one in enumerate(after)}


def _laid(label: Ids, letters: str, target: str, ndim: int = 0) -> Ids:
    """A label in other letters; of size 1 where it has none of them."""
    places, ndim = _places(letters, label.ndim), ndim or len(target)
    wanted = {axis: letter for letter, axis in _places(target, ndim).items()}
    order = [places[wanted[axis]] for axis in range(ndim) if wanted.get(axis) in places]
    rest = [axis for axis in range(label.ndim) if axis not in order]
    moved = label.transpose([*order, *rest]).reshape([label.shape[axis] for axis in order])
    sizes = iter(moved.shape)
    return compressed(moved.reshape([next(sizes) if wanted.get(axis) in places else 1 for axis in range(ndim)]))
