"""The learning-rate schedule."""

from __future__ import annotations

import torch

from autocompress.frameworks.schedule import cosine_share


class Cosine(torch.optim.lr_scheduler.LRScheduler):
    """Up in a straight line, then down along half a cosine.

    Attributes:
        steps: of the whole training; it may change on the way.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self.steps = steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of each group for the next step."""
        return [rate * cosine_share(self.last_epoch, self.steps) for rate in self.base_lrs]
