"""Which channels of a module can only go together, found by running it once with labels (`labels.py`, `rules.py`).

A convolution or linear layer reads the channels of its input and writes new ones; every other operation says what becomes of
them. In the end each class of channels is a set of slices of parameters and buffers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from autocompress.frameworks.channels import Axis, Role, Traced, element_axes
from autocompress.frameworks.classes import Classes
from autocompress.frameworks.torch.calls import call, outputs_of
from autocompress.frameworks.torch.labels import new_label, united, varies
from autocompress.frameworks.torch.layers import TRANSPOSED, heavy_modules, quiet
from autocompress.frameworks.torch.rules import Rules, tensors_of

LARGEST_PARAMETER = 1_000_000
"""Elements of a parameter outside of layers that are labelled one by one."""


def trace(model: nn.Module, example: Any) -> Traced:
    """Run a module on an example and follow its channels. It is set to evaluation mode and not changed otherwise."""
    model.eval()
    tracer = _Tracer(model)
    with tracer.watching(), quiet(), torch.no_grad():
        outputs = call(model, example)
    tracer.rules.freeze_values(outputs_of(outputs), "its channels are the model's output")
    return tracer.result()


@dataclass
class _Slices:
    """Ids of the indices along one axis."""

    layer: str
    ids: torch.Tensor
    role: Role


class _Tracer(TorchDispatchMode):
    """Follows labels through a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.classes = Classes()
        self.rules = Rules(self.classes, self._label_of)
        self._labels = WeakTensorKeyDictionary()
        self._names = WeakTensorKeyDictionary()
        self._turned = WeakTensorKeyDictionary()
        self._slices: dict[tuple[str, int | None], _Slices] = {}
        self._elements: dict[str, torch.Tensor] = {}
        self._layers = heavy_modules(model)
        self._inside = 0
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                self._names[tensor] = name

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks at the layers, and every operation outside of them seen."""
        hooks = []
        for module in self._layers:
            hooks += [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave, always_call=True)]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, then label what comes out."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._inside:
            return out
        outputs = tensors_of(out)
        name = str(func._schema.name)
        if (
            name in ("aten::t", "aten::transpose")
            and args[0].ndim == 2
            and args[0] in self._names
            and args[0] not in self._labels
        ):
            self._turned[out] = self._names[args[0]]
        elif name in ("aten::mm", "aten::addmm") and (args[-1] in self._turned or self._is_matrix_parameter(args[-1])):
            self._labels[out] = self._through_parameter(args[-2], args[-1], args[0] if len(args) == 3 else None)
        else:
            for tensor, label in zip(outputs, self.rules.apply(func, args, kwargs, outputs), strict=True):
                self._put(tensor, label)
        return out

    def result(self) -> Traced:
        """Classes, and the slices of tensors that belong to them."""
        found, reasons = self.classes.resolve()
        axes = [
            Axis(slices.layer, tensor, axis, found[slices.ids.numpy().astype(np.int64)], slices.role)
            for (tensor, axis), slices in self._slices.items()
        ]
        for name, ids in self._elements.items():
            axes += element_axes(name, found[ids.numpy().astype(np.int64)], reasons)
        return Traced(tuple(axes), reasons)

    def _put(self, tensor: torch.Tensor, label: torch.Tensor | None) -> None:
        if label is not None:
            self._labels[tensor] = label
        elif tensor in self._labels:
            del self._labels[tensor]

    def _label_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """A tensor's label. A parameter gets ids of its own when it is first met."""
        if tensor in self._labels:
            return self._labels[tensor]  # type: ignore[no-any-return]
        if tensor not in self._names or tensor.ndim == 0 or tensor.numel() > LARGEST_PARAMETER:
            return None
        label = new_label(self.classes, tensor.numel()).reshape(tensor.shape)
        self._elements[self._names[tensor]] = self._labels[tensor] = label
        return label

    def _enter(self, module: Any, inputs: tuple[Any, ...]) -> None:
        self._inside += 1  # what is done with labels is not to be followed
        if self._inside == 1:
            self._read_by(module, inputs[0])

    def _leave(self, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if self._inside == 1 and isinstance(output, torch.Tensor):
            ids = self._written_by(module)
            self._labels[output] = ids.reshape([-1 if a == _channel_axis(module, output) else 1 for a in range(output.ndim)])
        self._inside -= 1

    def _read_by(self, module: Any, value: torch.Tensor) -> None:
        """Note which channels a layer reads."""
        name, groups = self._layers[module], getattr(module, "groups", 1)
        ids = self._channels(name, value, _channel_axis(module, value))
        if ids is None:
            return
        if groups == 1:
            self._note(name, self._names[module.weight], 0 if isinstance(module, TRANSPOSED) else 1, ids, "reads")
            return
        # a group of a grouped convolution goes as a whole, with its inputs and outputs
        inputs, outputs = ids.reshape(groups, -1), self._written_by(module).reshape(groups, -1)
        for part in (inputs, outputs):
            self.classes.join(part, inputs[:, :1])
        self._note(name, self._names[module.weight], 0 if isinstance(module, TRANSPOSED) else None, ids, "reads")

    def _channels(self, reader: str, value: torch.Tensor, axis: int) -> torch.Tensor | None:
        """Ids along the axis that a layer reads. Channels along other dimensions have to stay."""
        label = self._label_of(value)
        if label is None:
            return None
        others = [a for a in range(label.ndim) if a != axis and varies(label, a)]
        if others:
            self.classes.freeze(label, f"{reader} mixes its channels in another way than reading them")
            label = united(self.classes, label, others)
        return label.reshape(-1).expand(value.shape[axis])

    def _written_by(self, module: Any) -> torch.Tensor:
        """Ids of a layer's output channels."""
        name = self._layers[module]
        grouped = isinstance(module, TRANSPOSED) and module.groups > 1
        axis = None if grouped else 1 if isinstance(module, TRANSPOSED) else 0
        place = (self._names[module.weight] + "#" * grouped, axis)  # a grouped transposed weight is sliced along its inputs alone
        if place not in self._slices:
            count = module.out_features if hasattr(module, "out_features") else module.out_channels
            self._note(name, *place, new_label(self.classes, count), "writes")
        if module.bias is not None:  # of a second layer with the same weight, its own
            self._note("", self._names[module.bias], 0, self._slices[place].ids, "carries")
        return self._slices[place].ids

    def _is_matrix_parameter(self, tensor: torch.Tensor) -> bool:
        return tensor.ndim == 2 and tensor in self._names and tensor not in self._labels

    def _through_parameter(self, value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """A product with a parameter outside of any layer, as in `torch.nn.functional.linear`, is a layer as well."""
        turned = weight in self._turned
        tensor = self._turned[weight] if turned else self._names[weight]
        layer = tensor.removesuffix(".weight")
        ids = self._channels(layer, value, value.ndim - 1)
        if ids is not None:
            self._note(layer, tensor, int(turned), ids, "reads")
        place = (tensor, 1 - int(turned))
        if place not in self._slices:
            self._note(layer, *place, new_label(self.classes, weight.shape[1]), "writes")
        written = self._slices[place].ids
        carried = None if bias is None else self._label_of(bias)
        if carried is not None:
            self.classes.join(written, carried.reshape(-1))
        return written.reshape(1, -1)

    def _note(self, layer: str, tensor: str, axis: int | None, ids: torch.Tensor, role: Role) -> None:
        """Note the channels along an axis; if there are some already (the layer is called again), they go together."""
        known = self._slices.get((tensor, axis))
        if known is None:
            self._slices[tensor, axis] = _Slices(layer, ids.clone(), role)
        else:
            self.classes.join(known.ids, ids)


def _channel_axis(module: Any, value: torch.Tensor) -> int:
    """The dimension of a layer's input or output along which its channels lie."""
    return value.ndim - 1 - (len(module.kernel_size) if hasattr(module, "kernel_size") else 0)
