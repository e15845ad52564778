"""The modules that are compressed, and how often each is used."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from autocompress.errors import TaskError
from autocompress.frameworks.torch.calls import call
from autocompress.structure import Layer

HEAVY = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def quiet() -> Iterator[None]:
    """Tracing warns about what is no concern of the user's: Python branches on shapes, unused buffers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def heavy_modules(model: nn.Module) -> dict[nn.Module, str]:
    """Convolutions and linear layers whose weights are plain parameters, with their names."""
    return {m: name for name, m in model.named_modules() if isinstance(m, HEAVY) and not parametrize.is_parametrized(m)}


def layers_of(model: nn.Module, example: Any) -> tuple[Layer, ...]:
    """Every convolution and linear layer that runs, with its multiply-accumulates for one sample.

    Raises:
        TaskError: a layer is called with its input by name.
    """
    layers: dict[str, Layer] = {}
    hooks = []

    def count(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not inputs:
                raise TaskError("A layer's input is its first argument, without a name", f"{name} called with input=…")
            weight = module.weight
            macs = _positions(module, inputs[0], output) * weight.numel() + (layers[name].macs if name in layers else 0)
            layers[name] = Layer(name, type(module).__name__, tuple(weight.shape), macs, getattr(module, "groups", 1))

        return hook

    model.eval()
    for name, module in model.named_modules():
        if isinstance(module, HEAVY):
            hooks.append(module.register_forward_hook(count(name)))
    try:
        with torch.no_grad(), quiet():
            call(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(layers[name] for name, _ in model.named_modules() if name in layers)


def _positions(module: Any, value: torch.Tensor, output: torch.Tensor) -> int:
    """How often the whole weight is applied to the one sample of the example."""
    if isinstance(module, TRANSPOSED):
        return value.numel() // int(module.in_channels)
    return output.numel() // int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)
