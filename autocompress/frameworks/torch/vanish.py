"""What is left where all channels of a group are removed: nothing is computed, and a constant takes the place of what was read.

A residual branch vanishes when its inner channels do: the layer that read them yields its bias everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.torch.layers import HEAVY, TRANSPOSED


class Vanished(nn.Module):
    """Stands for a layer that is not computed.

    Its output has the shape that the layer's would have, and every channel of it is the layer's bias.
    """

    bias: torch.Tensor | None

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.geometry = _geometry(layer)
        self.channels = int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
        self.register_parameter("bias", None)
        self._parameters["bias"] = layer.bias if self.channels else None  # which is no parameter in a thin model
        self.register_buffer("zero", torch.zeros((), dtype=layer.weight.dtype, device=layer.weight.device), persistent=False)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The bias, or zeros, in the shape of the layer's output."""
        if not self.geometry:
            shape = [*value.shape[:-1], self.channels]
            bias = self.bias
        else:
            dimensions = len(self.geometry)
            sizes = [_size(size, one) for size, one in zip(value.shape[-dimensions:], self.geometry, strict=True)]
            shape = [*value.shape[: -dimensions - 1], self.channels, *sizes]
            bias = None if self.bias is None else self.bias.reshape(-1, *[1] * dimensions)
        constant = value.new_zeros(shape)
        return constant if bias is None else constant + bias

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.channels} channels"


def vanish(model: nn.Module, groups: Mapping[str, ChannelGroup], removed: Mapping[str, Sequence[int]]) -> None:
    """Replace, in place, the layers that have lost all inputs or outputs, and the norms between them."""
    for name, channels in removed.items():
        if len(channels) < groups[name].channels:
            continue
        for member in groups[name].members:
            owner = member.layer or member.tensor.rpartition(".")[0]
            module = model.get_submodule(owner)
            if isinstance(module, HEAVY) and not all(module.weight.shape):
                _put(model, owner, Vanished(module))
            elif not member.layer and _is_empty_norm(module):
                _put(model, owner, nn.Identity())


def _is_empty_norm(module: Any) -> bool:
    """True for a module other than a layer that is left without channels."""
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return not isinstance(module, (*HEAVY, Vanished)) and any(t is not None and t.ndim and not t.numel() for t in tensors)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _geometry(layer: Any) -> list[tuple[int, int, bool]]:
    """(offset, stride, transposed) of each spatial dimension; none of a linear layer."""
    if isinstance(layer, nn.Linear):
        return []
    transposed = isinstance(layer, TRANSPOSED)
    found = []
    for axis, kernel in enumerate(layer.kernel_size):
        reach = layer.dilation[axis] * (kernel - 1)
        padding = {"same": reach, "valid": 0}[layer.padding] if isinstance(layer.padding, str) else 2 * layer.padding[axis]
        offset = reach - padding + (layer.output_padding[axis] + 1 if transposed else 1)
        found.append((offset, layer.stride[axis], transposed))
    return found


def _size(size: int, geometry: tuple[int, int, bool]) -> int:
    """Of the output along one dimension; see the formulas in the documentation of Conv2d and ConvTranspose2d."""
    offset, stride, transposed = geometry
    return (size - 1) * stride + offset if transposed else (size - offset) // stride + 1
