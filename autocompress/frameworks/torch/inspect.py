"""The proof of a module's channel groups."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.proof import Outputs, Proof, Prover, Removed
from autocompress.frameworks.torch.calls import call, outputs_of
from autocompress.frameworks.torch.layers import quiet
from autocompress.frameworks.torch.prune import remove_channels, silenced


def prove(model: nn.Module, example: Any, groups: Mapping[str, ChannelGroup]) -> Proof:
    """Which groups can be removed."""
    wide = [name for name, group in groups.items() if any(m.role == "writes" and m.width > 1 for m in group.members)]
    return _TorchProver(perturbed(model), example, groups).prove(wide)


class _TorchProver(Prover):
    """Prunes, silences and runs modules."""

    def __init__(self, model: nn.Module, example: Any, groups: Mapping[str, ChannelGroup]) -> None:
        super().__init__(groups)
        self._model, self._example = model, example

    def pruned_outputs(self, removed: Removed, follow: Iterable[str]) -> Outputs:
        """Of a pruned copy."""
        pruned = copy.deepcopy(self._model)
        remove_channels(pruned, self.groups, removed, follow)
        return _outputs(pruned.eval(), self._example)

    def silenced_outputs(self, removed: Removed, elsewhere: bool = False) -> Outputs:
        """Of a silenced copy."""
        example = _another(self._example) if elsewhere else self._example
        return _outputs(silenced(self._model, self.groups, removed).eval(), example)


def _outputs(model: nn.Module, example: Any) -> Outputs:
    with torch.no_grad(), quiet():
        return [tensor.cpu().numpy() for tensor in outputs_of(call(model, example))]


def perturbed(model: nn.Module) -> nn.Module:
    """A copy in which every block matters: a zero-initialised norm or a tiny layer scale would hide a wrong mapping."""
    changed = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim <= 1:
                noise = torch.rand(parameter.shape, generator=generator) + 0.5
            else:
                noise = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
            parameter.copy_(noise)
        for name, buffer in changed.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return changed


def _another(example: Any) -> Any:
    """Another input of the same kind: reversed along every dimension but the batch's, and floats turned around zero."""

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        reversed_ = tensor.flip([*range(1, tensor.ndim)]) if tensor.ndim > 1 else tensor
        return -0.7 * reversed_ if tensor.is_floating_point() else reversed_

    if isinstance(example, dict):
        return {name: turned(tensor) for name, tensor in example.items()}
    return tuple(map(turned, example))
