"""What a pruned module must compute, found from its weights alone.

Which channels a layer lost is read off the weights: all weights of a perturbed layer differ from each other, so each one that is
left says where it stood. Whoever pruned the module is not asked. The original must then give the same outputs as the pruned one
if the lost input channels of each convolution and linear layer are zeroed on their way in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Convolution = nn.modules.conv._ConvNd
Channels = dict[str, torch.Tensor]
"""Layer name → channel numbers of the original."""


def perturbed(model: nn.Module, seed: int = 1) -> nn.Module:
    """A copy in which every block matters and all weights of a layer differ: no zero-initialised norm, no layer scale of 1e-6."""
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: torch.Size) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(_distinct(parameter.shape, generator))
            else:
                parameter.copy_(uniform(parameter.shape) + (-0.5 if name.endswith("bias") else 0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(uniform(buffer.shape) - 0.5)
            elif name.endswith("running_var"):
                buffer.copy_(uniform(buffer.shape) + 0.5)
    return model


def _distinct(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Evenly spaced values in random order, with the variance of 1 / fan-in. Up to 2^24 of them differ in float32."""
    count = shape.numel()
    values = (torch.randperm(count, generator=generator).double() + 0.5) / count * 2 - 1
    return (values * (3 * shape[0] / count) ** 0.5).float().reshape(shape)


def lost_channels(original: nn.Module, pruned: nn.Module) -> tuple[Channels, Channels]:
    """The input and the output channels that each convolution and linear layer lost; layers that lost none are left out.

    Raises:
        ValueError: a weight of the pruned module is none of the original's.
    """
    inputs, outputs = {}, {}
    for name, module in original.named_modules():
        if not isinstance(module, Convolution | nn.Linear):
            continue
        before, after = module.weight, pruned.get_submodule(name).weight
        if before.shape == after.shape:
            continue
        kept_inputs, kept_outputs = _kept(name, module, after)
        inputs[name] = _others(_in_channels(module), kept_inputs)
        outputs[name] = _others(_out_channels(module), kept_outputs)
    return ({name: lost for name, lost in found.items() if len(lost)} for found in (inputs, outputs))  # type: ignore[return-value]


def _kept(name: str, module: nn.Module, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output channels that are left in a weight. Axes of a weight: output, input within its group, kernel."""
    before, groups = module.weight.detach(), getattr(module, "groups", 1)
    places = torch.arange(before.numel()).reshape(before.shape)
    if getattr(module, "transposed", False):
        if groups > 1:
            raise ValueError(f"{name} is a grouped transposed convolution, which this check does not know")
        before, after, places = before.transpose(0, 1), after.transpose(0, 1), places.transpose(0, 1)
    before, after, places = (tensor.reshape(*tensor.shape[:2], -1)[:, :, 0] for tensor in (before, after.detach(), places))
    values, order = before.reshape(-1).sort()
    found = torch.searchsorted(values, after.reshape(-1)).clamp(max=len(values) - 1)
    if not torch.equal(values[found], after.reshape(-1)):
        raise ValueError(f"{name} has weights that are not the original's")
    place = order[found]
    output, column = place // before.shape[1], place % before.shape[1]
    group = output // (before.shape[0] // groups)
    return (group * before.shape[1] + column).unique(), output.unique()


def _others(count: int, kept: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(count, dtype=torch.bool)
    mask[kept] = False
    return mask.nonzero().flatten()


def _in_channels(module: Any) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)


def _out_channels(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def passes_on(module: Any) -> bool:
    """True for a depthwise convolution: what it makes of a channel is read by others, who are the ones to be silenced."""
    return _in_channels(module) == getattr(module, "groups", 1) > 1


def other_channels(model: nn.Module, lost: Channels, seed: int = 2) -> Channels:
    """For each layer as many channels as it lost, from those that it kept."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for name, channels in lost.items():
        kept = _others(_in_channels(model.get_submodule(name)), channels)
        chosen[name] = kept[torch.randperm(len(kept), generator=generator)[: len(channels)]]
    return chosen


@contextmanager
def silenced(model: nn.Module, lost: Mapping[str, torch.Tensor]) -> Iterator[nn.Module]:
    """The module with these input channels of its layers zeroed on their way in."""
    hooks = []
    for name, channels in lost.items():
        module: Any = model.get_submodule(name)
        if not passes_on(module):
            axis = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)
            hooks.append(module.register_forward_pre_hook(_zeroing(channels, axis)))
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


def _zeroing(channels: torch.Tensor, axis: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].index_fill(axis, channels, 0), *inputs[1:])

    return hook


def difference(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference of outputs, relative to each one's range; infinite if shapes differ, NaN if a value is."""
    if [tensor.shape for tensor in actual] != [tensor.shape for tensor in expected]:
        return float("inf")
    found = [_relative(a.double(), e.double()) for a, e in zip(actual, expected, strict=True)]
    return float(torch.tensor(found).max())  # keeps a NaN


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    span = float(expected.max() - expected.min())
    return float((actual - expected).abs().max()) / max(span, 1e-12)
