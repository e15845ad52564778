"""What changes in the course of a training: the learning rate, the zeros, the layers of one bit."""

from __future__ import annotations

import math
from typing import Any

import torch

MASK_GROWS_UNTIL = 0.5
"""Fraction of a training after which the zeros stay where they are."""
BINARY_WEIGHTS_FROM = 1 / 3
"""Fraction of a training after which weights of one bit are binary; their activations are from the first step on."""
WARM_UP = 0.1
"""Fraction of a training in which the learning rate rises."""


def sparsity_at(fraction: float) -> float:
    """How much of the final sparsity is reached: 1 - (1 - t)³ (Zhu & Gupta, To Prune or Not to Prune, 2017, equation 1)."""
    return 1 - (1 - min(fraction / MASK_GROWS_UNTIL, 1.0)) ** 3


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """A scheduler: up in a straight line, then down along half a cosine (Loshchilov & Hutter 2017, equation 5)."""
    rising = max(1, round(WARM_UP * steps))

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
