"""Where the original looks: its attention maps, compared with a candidate's.

Zagoruyko & Komodakis, Paying More Attention to Attention (2017), section 3.1: the squares of a layer's outputs, summed over the
channels and normalized. Channels may therefore be pruned, and the maps still have one shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autocompress.frameworks.torch.prune import HEAVY


class FeaturePairs:
    """The outputs of equal layers of a model and its teacher, kept while both are called on one batch.

    Compared are the convolutions, and the linear layers that see more than one position; of those with one shape of map the last.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        theirs = dict(teacher.named_modules())
        self.maps: dict[str, list[torch.Tensor]] = {}
        self.hooks = []
        for name, module in model.named_modules():
            if isinstance(module, HEAVY) and isinstance(theirs.get(name), HEAVY):
                for one in (module, theirs[name]):
                    self.hooks.append(one.register_forward_hook(self._keep(name)))

    def distance(self) -> torch.Tensor:
        """The squared distance of the maps of both calls, averaged over samples and summed over layers."""
        both = [maps for maps in self.maps.values() if len(maps) == 2 and maps[0].shape == maps[1].shape]
        last = {maps[0].shape: maps for maps in both}
        self.maps.clear()
        distances = [(mine - theirs).square().sum(1).mean() for mine, theirs in last.values()]
        return torch.stack(distances).sum() if distances else torch.zeros(())

    def close(self) -> None:
        """Look no more."""
        for hook in self.hooks:
            hook.remove()

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: torch.Tensor) -> None:
            channels = -1 if isinstance(module, nn.Linear) else 1
            if output.ndim > 2:
                squares = output.square().sum(channels).flatten(1)
                self.maps.setdefault(name, []).append(functional.normalize(squares, dim=1))

        return hook
