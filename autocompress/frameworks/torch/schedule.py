"""The learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch

from autocompress.frameworks.schedule import cosine_share


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """A scheduler: up in a straight line, then down along half a cosine."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine_share(step, steps))
