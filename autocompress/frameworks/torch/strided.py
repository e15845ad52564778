"""Strided convolutions of one pixel, computed on the pixels that they look at.

oneDNN 3 (uxlfoundation/oneDNN, issue 6035) writes past its workspace in the gradient of such a convolution's weight where images
are channels last and have fewer channels than its block, 16 with AVX-512. The shortcut of a pruned ResNet is that: at 64 × 64 the
process dies. Without the stride there is no such workspace, and the outputs are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Subsampling(TorchFunctionMode):
    """Within it a strided convolution of one pixel takes its pixels first."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_conv2d if func is torch.conv2d else func)(*args, **(kwargs or {}))


def has_strided_pixels(model: nn.Module) -> bool:
    """Whether a model may hold such a convolution: within the mode every operation takes a little longer."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    of_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
    others = (parameter for parameter in model.parameters() if id(parameter) not in of_layers)
    is_strided = any(layer.kernel_size == (1, 1) and max(layer.stride) > 1 for layer in layers)
    return is_strided or any(map(_is_pixel, others))


def _is_pixel(weight: torch.Tensor) -> bool:
    return weight.ndim == 4 and weight.shape[2:] == (1, 1)


def _conv2d(
    input: torch.Tensor,  # named as PyTorch names it
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    down, right = (stride[0], stride[-1]) if isinstance(stride, Sequence) else (stride, stride)
    is_unpadded = padding in (0, (0, 0), [0, 0], (0,), [0], "valid")
    if _is_pixel(weight) and max(down, right) > 1 and is_unpadded and input.is_floating_point():
        looked_at = functional.avg_pool2d(input, 1, (down, right))  # of one pixel each; its gradient takes less than a slice's
        return torch.conv2d(looked_at, weight, bias, 1, 0, 1, groups)
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
