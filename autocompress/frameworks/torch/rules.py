"""What PyTorch's operations do to the labels of their inputs (`labels.py`).

Operations that only move values are run on the labels themselves. Element by element, the inputs' labels can only go together.
What is mixed along a dimension (a softmax, a normalization, a product) can only go as a whole. What is not known has to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from autocompress.frameworks.classes import Classes
from autocompress.frameworks.labels import combined
from autocompress.frameworks.torch.labels import compressed, united, varies

Labelled = list[tuple[torch.Tensor, torch.Tensor | None]]
"""The tensors of an operation, each with its label."""

MOVES = frozenset(
    {
        *("_unsafe_view", "_reshape_alias", "_reshape_copy", "alias", "cat", "channel_shuffle", "clone", "constant_pad_nd"),
        *("contiguous", "detach", "diagonal", "expand", "flip", "gather", "im2col", "index", "index_select", "lift_fresh"),
        *("movedim", "narrow", "native_channel_shuffle", "permute", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d"),
        *("reflection_pad2d", "repeat", "replication_pad1d", "replication_pad2d", "reshape", "roll", "select", "slice"),
        *("split", "split_with_sizes", "squeeze", "stack", "t", "transpose", "unbind", "unfold", "unsafe_split", "unsqueeze"),
        "view",
    }
)
COPIES = frozenset(["_to_copy", "to", "copy"])
MIXES = frozenset(
    {
        *("_log_softmax", "_safe_softmax", "_softmax", "all", "amax", "amin", "any", "argmax", "argmin", "cummax", "cumsum"),
        *("linalg_vector_norm", "logsumexp", "max", "mean", "min", "norm", "prod", "std", "sum", "var", "var_mean"),
    }
)
KEEP_SHAPE = frozenset(["_log_softmax", "_safe_softmax", "_softmax", "cumsum"])
POOLS = frozenset(
    {
        *("_adaptive_avg_pool2d", "adaptive_avg_pool1d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d_with_indices"),
        *("max_pool3d_with_indices", "adaptive_max_pool2d", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d"),
        *("upsample_nearest1d", "upsample_nearest2d"),
    }
)
POINTWISE = frozenset(
    {
        *("_prelu_kernel", "celu", "dropout", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh"),
        *("leaky_relu", "log_sigmoid_forward", "mish", "native_dropout", "prelu", "relu", "relu6", "selu", "silu"),
        *("softplus", "softshrink"),
    }
)
"""Those that PyTorch does not tag as such, among others."""
FACTORIES = (
    "_like",
    "new_",
    "empty",
    "zeros",
    "ones",
    "full",
    "arange",
    "scalar_tensor",
    "bernoulli",
    "rand",
    "_local_scalar",
    "sym_",
    "embedding",
)
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Name → place of the first factor among the arguments."""
VIEW_MESSAGE = "its channels are changed in place through a view"

Result = list[torch.Tensor | None]


class Rules:
    """Applies the rules to one model's operations."""

    def __init__(self, classes: Classes, label_of: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
        self.classes = classes
        self.label_of = label_of

    def apply(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[torch.Tensor]) -> Result:
        """The labels of the outputs of an operation."""
        name = str(func._schema.name).split("::")[-1]
        plain = name.rstrip("_") if not name.startswith("__") else name
        tensors = [(tensor, self.label_of(tensor)) for tensor in tensors_of((args, kwargs))]
        nothing: Result = [None] * len(outputs)
        if all(label is None for _, label in tensors) or any(part in plain for part in FACTORIES):
            return nothing
        target, known = tensors[0]
        if (name != plain or plain == "copy") and target._is_view() and (known is None or plain == "copy"):
            self._freeze(tensors, VIEW_MESSAGE)
            return nothing
        rule = self._rule(func, plain)
        if rule is None:
            self._freeze(tensors, f"what the operation {plain} does to its channels is not known")
            return nothing
        try:
            found = rule(plain, func, args, kwargs, tensors, outputs)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError):  # a form of it that the rule does not know
            self._freeze(tensors, f"what the operation {plain} does to its channels could not be followed")
            return nothing
        return found if len(found) == len(outputs) else [*found, *nothing][: len(outputs)]

    def freeze_values(self, tensors: Sequence[torch.Tensor], reason: str) -> None:
        """All channels of these tensors have to stay."""
        self._freeze([(tensor, self.label_of(tensor)) for tensor in tensors], reason)

    def _rule(self, func: Any, name: str) -> Callable[..., Result] | None:
        if name in MOVES:
            return self._move
        if name in COPIES:
            return self._copy
        if "scaled_dot_product" in name:
            return self._attention
        if "batch_norm" in name:
            return self._batch_norm
        named: dict[str, Callable[..., Result]] = {
            "native_layer_norm": self._layer_norm,
            "_fused_rms_norm": self._layer_norm,
            "native_group_norm": self._group_norm,
            "glu": self._gate,
        }
        if name in named:
            return named[name]
        if name in PRODUCTS:
            return self._product
        if name in MIXES:
            return self._mix
        if name in POOLS:
            return self._pool
        if torch.Tag.pointwise in func.tags or name in POINTWISE:
            return self._pointwise
        return None

    def _freeze(self, tensors: Labelled, reason: str) -> None:
        for _, label in tensors:
            if label is not None:
                self.classes.freeze(label, reason)

    def _move(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        """Run the operation on the labels. A view becomes a reshape, which does not ask for strides."""
        moved = _replaced(args, self._whole)
        if name in ("view", "_unsafe_view", "_reshape_alias", "reshape", "_reshape_copy"):
            return [compressed(moved[0].reshape(outputs[0].shape))]
        if name in ("index", "gather", "index_select"):  # by indices that have no labels
            moved = (moved[0], *args[1:])
        found = func(*moved, **kwargs)
        return [compressed(label) for label in (found if isinstance(found, list | tuple) else [found])]

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        label = self.label_of(tensor)
        return torch.zeros(tensor.shape, dtype=torch.float64) if label is None else label.expand(tensor.shape).clone()

    def _copy(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        label = tensors[1 if name == "copy" else 0][1]
        return [label]

    def _pointwise(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        if "prelu" in name:
            tensors = [tensors[0], self._at_axis(tensors[1], tensors[0][0].ndim, 1)]
        result = self._combined(tensors, outputs[0].ndim)
        return [result]

    def _combined(self, tensors: Labelled, ndim: int) -> torch.Tensor | None:
        """Element by element, labels can only go together."""
        operands = ((None if label is None else label.numpy(), tensor.shape) for tensor, label in tensors)
        result = combined(self.classes, operands, ndim)
        return None if result is None else torch.from_numpy(result.copy())

    def _mix(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        label = tensors[0][1]
        if label is None:
            return [None]
        axes = _axes(func, args, kwargs, label.ndim)
        mixed = united(self.classes, label, axes)
        if name in KEEP_SHAPE or not outputs or outputs[0].ndim == label.ndim:
            return [mixed] * len(outputs)
        kept = [mixed.shape[axis] for axis in range(label.ndim) if axis not in axes]
        return [mixed.reshape(kept)] * len(outputs)

    def _pool(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        label = tensors[0][1]
        if label is None:
            return [None]
        spatial = range(label.ndim - (1 if "1d" in name else 3 if "3d" in name else 2), label.ndim)
        return [united(self.classes, label, spatial)]

    def _batch_norm(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        value = tensors[0]
        own = [self._at_axis(pair, value[0].ndim, 1) for pair in tensors[1:] if pair[0].ndim == 1]
        return [self._combined([value, *own], value[0].ndim)]

    def _layer_norm(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        value, label = tensors[0]
        if label is not None:
            united(self.classes, label, range(value.ndim - len(args[1]), value.ndim))
        return [self._combined(tensors, value.ndim)]

    def _group_norm(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        value, label = tensors[0]
        groups = int(args[6])
        if label is not None:
            whole = label.expand(value.shape)
            united(self.classes, compressed(whole.reshape(value.shape[0], groups, -1)), [2])
        own = [self._at_axis(pair, value.ndim, 1) for pair in tensors[1:]]
        return [self._combined([tensors[0], *own], value.ndim)]

    def _gate(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        value, label = tensors[0]
        assert label is not None
        axis = int(args[1]) if len(args) > 1 else -1
        halves = label.expand(value.shape).chunk(2, axis)
        self.classes.join(*halves)
        return [compressed(halves[0])]

    def _product(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        """A matrix product of activations: what is summed over can only go as a whole."""
        place = PRODUCTS[name]
        (left, a), (right, b) = tensors[place], tensors[place + 1]
        result = self._contracted((left, a), (right, b))
        if place and result is not None:
            result = self._combined([(outputs[0], result), tensors[0]], outputs[0].ndim)
        elif place and tensors[0][1] is not None:
            self._freeze(tensors[:1], "its channels meet values that do not follow them")
        return [result]

    def _contracted(self, left: tuple[torch.Tensor, Any], right: tuple[torch.Tensor, Any]) -> torch.Tensor | None:
        mixed = []
        for (_, label), axis in ((left, -1), (right, -2)):
            if label is not None and varies(label, axis) and (left[1] is None or right[1] is None):
                self.classes.freeze(label, "its channels are multiplied with values that do not follow them")
            mixed.append(None if label is None else united(self.classes, label, [axis]))
        a, b = mixed
        if a is None or b is None:
            return a if b is None else b
        self.classes.join(a, b)
        a, b = torch.broadcast_tensors(a, b)
        return compressed(torch.where(b > 0, b, a))

    def _attention(self, name: str, func: Any, args: Any, kwargs: Any, tensors: Labelled, outputs: Any) -> Result:
        """softmax(q kᵀ) v, element by element of heads."""
        (query, q), (key, k), (value, v), *mask = tensors
        weights = self._contracted((query, q), (key.mT, None if k is None else k.mT))
        if weights is not None:
            shape = torch.Size([*query.shape[:-1], key.shape[-2]])
            for tensor, label in mask:
                if tensor.is_floating_point():
                    weights = self._combined([(torch.empty(shape, device="meta"), weights), (tensor, label)], len(shape))
            assert weights is not None
            weights = united(self.classes, weights, [-1])
        return [self._contracted((query, weights), (value, v))]

    def _at_axis(self, pair: tuple[torch.Tensor, Any], ndim: int, axis: int) -> tuple[torch.Tensor, Any]:
        """A vector laid along one axis of a tensor of `ndim` dimensions."""
        tensor, label = pair
        shape = [1] * ndim
        shape[axis] = -1
        return tensor.reshape(shape), None if label is None else label.reshape(shape)


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors among nested arguments or outputs, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def _replaced(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(item, function) for item in value)
    return value


def _axes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ndim: int) -> list[int]:
    """The dimensions along which an operation mixes; all of them where it names none."""
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("dim") if "dim" in names else None
    given = None if place is None else args[place] if place < len(args) else kwargs.get("dim")
    if given is None or (isinstance(given, list | tuple) and not given):
        return list(range(ndim))
    return [axis % ndim for axis in (given if isinstance(given, list | tuple) else [given])]
