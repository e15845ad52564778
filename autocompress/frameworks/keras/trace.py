"""Which channels of a graph can only go together, found by taking an example through it with labels (`labels.py`, `rules.py`).

A convolution or dense layer reads the channels of its input and writes new ones; every other operation says what becomes of
them. In the end each class of channels is a set of slices of weights, and of the sizes that operations remember.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from autocompress.frameworks.channels import Axis, ChannelGroup, Role, Traced, element_axes, groups_of
from autocompress.frameworks.classes import Classes, Ids
from autocompress.frameworks.keras.expand import traced_composite
from autocompress.frameworks.keras.graph import HEAVY, layers_by_name
from autocompress.frameworks.keras.layer_rules import NORMS, LayerRules
from autocompress.frameworks.keras.layers import arrays
from autocompress.frameworks.keras.nodes import walk
from autocompress.frameworks.keras.rules import Call, Result, Rules, Value
from autocompress.frameworks.labels import varies

LARGEST_WEIGHT = 1_000_000
"""Elements of a weight of a user's own layer that are labelled one by one."""
SIZE_MARK = "#"
"""An operation's name and the number of the output of which it remembers the sizes; -1 is its input."""


def channel_groups(model: keras.Model, example: Any) -> dict[str, ChannelGroup]:
    """All groups of a graph by name, with those that have to stay."""
    return groups_of(trace(model, example))


def trace(model: keras.Model, example: Any) -> Traced:
    """Take an example through a graph and follow its channels."""
    tracer = _Tracer(model)
    outputs = walk(model, [Value(array) for array in arrays(model, example)], tracer.visit)
    tracer.rules.freeze(outputs, "its channels are the model's output")
    return tracer.result()


@dataclass
class _Note:
    """Ids of the elements of a tensor, of size 1 along the dimensions in which they do not vary."""

    layer: str
    ids: Ids
    role: Role
    channels: int
    is_sliced: bool


class _Tracer:
    """Follows labels through a graph."""

    def __init__(self, model: keras.Model) -> None:
        self.classes = Classes()
        self.rules = Rules(self.classes, self._remember)
        self._layer_rules = LayerRules(self.classes, self.rules, self.note)
        self._notes: dict[tuple[str, Role], _Note] = {}
        self._inside = 0
        self._weights = {
            id(weight): f"{name}/{weight.name}" for name, layer in layers_by_name(model).items() for weight in layer.weights
        }

    def visit(self, name: str, node: Any, args: Any, kwargs: Any) -> list[Value]:
        """Run an operation, then label what comes out."""
        operation = node.operation
        plain_args, plain_kwargs = keras.tree.map_structure(_array, (args, kwargs))
        outputs = keras.tree.flatten(operation(*plain_args, **plain_kwargs))
        operands = tuple(value for one in keras.tree.flatten((args, kwargs)) if (value := self._operand(one)) is not None)
        call = Call(name, operation, args, kwargs, operands, tuple(tuple(np.shape(output)) for output in outputs))
        labels = [*self._labels(call), *[None] * len(outputs)]
        return [Value(output, label) for output, label in zip(outputs, labels, strict=False)]

    def note(self, layer: str, tensor: str, ids: Ids, role: Role, channels: int = 0, is_sliced: bool = True) -> None:
        """Note the channels in a tensor; if there are some already (the layer is called again), they go together.

        Args:
            layer: empty for what only carries channels.
            tensor: the name of a weight; one with a mark is a number that goes with channels.
            ids: of the tensor's elements, of size 1 along the dimensions in which they do not vary.
            role: what is done with the channels.
            channels: how many the layer has there, if not one for each index.
            is_sliced: False where the layer loses channels but the tensor nothing.
        """
        known = self._notes.get((tensor, role))
        if known is None:
            self._notes[tensor, role] = _Note(layer, ids, role, channels, is_sliced)
        else:
            self.classes.join(known.ids, ids)

    def result(self) -> Traced:
        """Classes, and the slices of tensors that belong to them."""
        found, reasons = self.classes.resolve()
        axes: list[Axis] = []
        for (tensor, role), note in self._notes.items():
            classes = found[note.ids]
            varying = [axis for axis in range(classes.ndim) if varies(note.ids, axis)]
            if len(varying) > 1:
                axes += element_axes(tensor, classes, reasons, note.layer, role, note.channels)
            else:  # along no axis: a single channel, which stays
                axis = (*varying, 0)[0] if note.is_sliced else None
                each = max(1, note.channels // classes.size)
                axes.append(Axis(note.layer, tensor, axis, classes.reshape(-1), role, each))
        return Traced(tuple(axes), reasons)

    def _labels(self, call: Call) -> Result:
        """The labels of the outputs of a call."""
        if isinstance(call.operation, HEAVY):
            return self._followed(call, self._layer_rules.heavy)
        if all(value.label is None for value in call.operands):
            return []
        if isinstance(call.operation, NORMS):
            return self._followed(call, self._layer_rules.norm)
        rule = self.rules.find(call.operation)
        if rule is not None:
            return self._followed(call, rule)
        return self._followed(call, self._through_layer) if isinstance(call.operation, keras.layers.Layer) else self._lost(call)

    def _followed(self, call: Call, rule: Callable[[Call], Result]) -> Result:
        try:
            return rule(call)
        except Exception:  # a form of the operation that the rule does not know
            what = type(call.operation).__name__
            self.rules.freeze(call.operands, f"what {what} does to its channels could not be followed")
            return []

    def _lost(self, call: Call) -> Result:
        self.rules.freeze(call.operands, f"what {type(call.operation).__name__} does to its channels is not known")
        return []

    def _through_layer(self, call: Call) -> Result:
        """A user's own layer is followed through what it does to its inputs and its own weights."""
        layer = call.operation
        args, kwargs = keras.tree.map_structure(_symbol, (call.args, call.kwargs))
        inside = None if layer._layers else traced_composite(layer, args, kwargs)
        if inside is None:
            return self._lost(call)
        self._inside += 1
        given = [value for value in keras.tree.flatten((call.args, call.kwargs)) if isinstance(value, Value)]
        outputs = walk(inside, given, self.visit, f"{call.name}/")
        self._inside -= 1
        return [value.label for value in outputs]

    def _operand(self, value: Any) -> Value | None:
        """A tensor among the arguments; a weight gets ids of its own when it is first met."""
        if isinstance(value, Value):
            return value
        if id(value) in self._weights:
            return Value(np.broadcast_to(False, value.shape), self._ids_of(value))
        return Value(value) if getattr(value, "shape", ()) != () else None

    def _ids_of(self, weight: Any) -> Ids | None:
        place = (self._weights[id(weight)], "carries")
        if place not in self._notes and 0 < int(np.prod(weight.shape)) <= LARGEST_WEIGHT:
            self.note("", place[0], self.classes.new(int(np.prod(weight.shape))).reshape(weight.shape), "carries")
        return self._notes[place].ids if place in self._notes else None

    def _remember(self, call: Call, place: int, label: Ids) -> None:
        """Note that an operation remembers sizes. One inside of a layer cannot be told others."""
        if self._inside:
            self.classes.freeze(label, "a layer of the model's own remembers its width")
        else:
            self.note("", f"{call.name}{SIZE_MARK}{place}", label, "carries")


def _array(value: Any) -> Any:
    return value.array if isinstance(value, Value) else value


def _symbol(value: Any) -> Any:
    return (
        keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.array.dtype)) if isinstance(value, Value) else value
    )
