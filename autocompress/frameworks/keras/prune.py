"""Physical removal of channels, and its counterpart in the whole model: silencing those who read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.frameworks.channels import ChannelGroup, removed_slices
from autocompress.frameworks.keras.graph import HEAVY, Builder, input_like, layers_by_name
from autocompress.frameworks.keras.kernels import kernel_axes
from autocompress.frameworks.keras.layer_rules import GROUPS
from autocompress.frameworks.keras.nodes import as_argument, graph_of, inputs_of, is_graph
from autocompress.frameworks.keras.resize import output_shape, resized, resized_key, resized_operation
from autocompress.frameworks.keras.trace import SIZE_MARK
from autocompress.frameworks.keras.vanish import Nothing, constant, live_among, nothing_among, source_of

Groups = Mapping[str, ChannelGroup]


def remove_channels(model: keras.Model, groups: Groups, removed: Mapping[str, Sequence[int]]) -> keras.Model:
    """A smaller copy of a graph.

    Args:
        model: the original.
        groups: of the original.
        removed: group → its channels that go. Where all go, the layers between them and the next that have other inputs go too.

    Raises:
        ValueError: what remains does not fit together.
    """
    return _Pruner(removed_slices(groups, removed)).graph(model)


def silence(model: keras.Model, groups: Groups, removed: Mapping[str, Sequence[int]]) -> None:
    """Let nothing in a graph read some channels, in place.

    They still run through batch norms and activations, but the weights that read them are zero: exactly what removing them does.
    """
    weights = weights_by_name(model)
    for tensor, value in silent_weights(weights, groups, removed).items():
        weights[tensor].assign(value)


def silent_weights(weights: Mapping[str, Any], groups: Groups, removed: Mapping[str, Sequence[int]]) -> dict[str, NDArray[Any]]:
    """The weights that read some channels, with zeros where they do."""
    found: dict[str, NDArray[Any]] = {}
    for (tensor, axis), gone in removed_slices(groups, removed, ("reads",)).items():
        if tensor not in found:
            found[tensor] = np.array(keras.ops.convert_to_numpy(weights[tensor]))
        np.moveaxis(found[tensor], axis, 0)[gone] = 0
    return found


def weights_by_name(model: keras.Model) -> dict[str, Any]:
    """The variables of a graph's layers, by the names that the members of its groups have."""
    return {f"{name}/{weight.name}": weight for name, layer in layers_by_name(model).items() for weight in layer.weights}


def by_tensor(slices: Mapping[tuple[str, int], NDArray[np.int64]]) -> dict[str, dict[int, NDArray[np.int64]]]:
    """Tensor → axis → the indices that go."""
    found: dict[str, dict[int, NDArray[np.int64]]] = {}
    for (tensor, axis), gone in slices.items():
        found.setdefault(tensor, {})[axis] = gone
    return found


def what_remains(weight: Any, gone: Mapping[int, NDArray[np.int64]]) -> NDArray[Any]:
    """A weight without some indices, by axis."""
    value = np.asarray(keras.ops.convert_to_numpy(weight))
    for axis, indices in gone.items():
        value = np.delete(value, indices, axis)
    return value


class _Pruner(Builder):
    """Builds a graph with smaller layers."""

    def __init__(self, slices: Mapping[tuple[str, int], NDArray[np.int64]]) -> None:
        super().__init__(lambda name, layer: None)
        self._slices = by_tensor(slices)

    def call(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """A call with fewer channels. Without any there is nothing to call, and who reads that yields a constant."""
        operation, name = node.operation, prefix + node.operation.name
        if isinstance(operation, HEAVY) and 0 in self._kept(operation.kernel, name).shape:
            return self._without_kernel(node, name, args)
        if is_graph(operation):
            return self._within(node, args, kwargs, prefix)
        nothing = nothing_among((args, kwargs))
        if nothing is not None:
            return self._with_nothing(node, args, nothing, prefix)
        gone = self._slices.get(f"{name}{SIZE_MARK}-1")
        if gone is not None:  # an index, which is an argument
            args, kwargs = (args[0], resized_key(args[1], gone, node.input_tensors[0].shape)), {}
        return super().call(node, args, kwargs, prefix)

    def make(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """A smaller layer, or an operation that remembers other sizes."""
        old = node.operation
        name = prefix + old.name
        outputs = [tensor.shape for tensor in node.outputs]
        sizes = {i: gone for i in range(len(outputs)) if (gone := self._slices.get(f"{name}{SIZE_MARK}{i}")) is not None}
        if sizes:
            return resized_operation(old, outputs, sizes)
        weights = getattr(old, "weights", [])
        kept = [self._kept(weight, name) for weight in weights]
        before, after = [tuple(weight.shape) for weight in weights], [value.shape for value in kept]
        if before == after:
            return super().make(node, args, kwargs, prefix)
        new = resized(old, before, after, len(self._slices.get(f"{name}{GROUPS}", {}).get(0, ())))
        new.build(keras.tree.map_structure(lambda tensor: tuple(tensor.shape), args[0]))
        new.set_weights(kept)
        return new

    def _without_kernel(self, node: Any, name: str, args: tuple[Any, ...]) -> Any:
        """What a layer without outputs, or without inputs, yields."""
        layer, kernel = node.operation, self._kept(node.operation.kernel, name).shape
        nothing = Nothing(source_of(args))
        if any(kernel[axis] == 0 for axis in kernel_axes(layer).outputs):
            return [nothing]
        bias = None if layer.bias is None else self._kept(layer.bias, name)
        return constant(layer, bias, nothing, output_shape(layer, kernel, node.outputs[0].shape))

    def _with_nothing(self, node: Any, args: tuple[Any, ...], nothing: Nothing, prefix: str) -> Any:
        """An operation without channels is left out; a concatenation takes the others."""
        parts = live_among(args) if type(node.operation).__name__ == "Concatenate" else []
        if len(parts) > 1:
            return super().call(node, (parts,), {}, prefix)
        return parts or [nothing] * len(node.outputs)

    def _within(self, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> Any:
        """A nested model, of which inputs and outputs may have no channels."""
        old, given = node.operation, inputs_of(node.operation, args, kwargs)
        if id(old) not in self._made:
            tensors = {id(one): _inner(one, value) for one, value in zip(graph_of(old).inputs, given, strict=True)}
            found = self.run(old, tensors, f"{prefix}{old.name}/")
            outputs = [found[id(tensor)] for tensor in graph_of(old).outputs]
            if nothing_among((given, outputs)) is None:
                self._made[id(old)] = self.model(old, found), outputs
            else:  # what is left has another structure
                inputs, live = [source_of(tensor) for tensor in tensors.values()], live_among(outputs)
                self._made[id(old)] = keras.Model(inputs, live, name=old.name) if live else None, outputs
        new, outputs = self._made[id(old)]
        if nothing_among((given, outputs)) is None:
            return new(*args, **kwargs)
        options = {name: value for name, value in kwargs.items() if name != "inputs"}
        sources = [source_of(value) for value in given]
        live_outputs = iter(keras.tree.flatten(new(as_argument(sources), **options)) if new is not None else ())
        return [Nothing(sources[0]) if isinstance(output, Nothing) else next(live_outputs) for output in outputs]

    def _kept(self, weight: Any, name: str) -> NDArray[Any]:
        return what_remains(weight, self._slices.get(f"{name}/{weight.name}", {}))


def _inner(old: keras.KerasTensor, value: Any) -> Any:
    """An input of a nested model for what it is given."""
    if isinstance(value, Nothing):
        return Nothing(keras.Input(batch_shape=value.source.shape, dtype=value.source.dtype))
    return input_like(old, value)
