"""What the experiments share: an original is trained once, from scratch, and kept in a cache."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterable, Sized
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

CACHE = Path(os.environ.get("AUTOCOMPRESS_CACHE", Path(__file__).resolve().parents[1] / ".cache"))


class Batches(Sized, Iterable[tuple[torch.Tensor, torch.Tensor]], Protocol):
    """Anything that knows how many batches of (inputs, classes) it yields."""


def trained_once(
    name: str, model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, epochs: int, *code: ModuleType
) -> nn.Module:
    """`model`, trained by this very code now or before.

    Args:
        name: of the cached file.
        model: freshly initialised.
        batches: training data.
        optimizer: of the model's parameters, at the highest rate of the one-cycle schedule.
        epochs: passes over the data.
        *code: the modules that define model and data; if their text changes, the model is trained anew.
    """
    text = "".join(inspect.getsource(part) for part in (*code, train))
    key = hashlib.sha256(f"{text}{optimizer}{epochs}{len(batches)}".encode()).hexdigest()[:16]
    path = CACHE / f"{name}-{key}.pt"
    if not path.is_file():
        print(f"Training the original once ({epochs} epochs); it is kept in {CACHE.name}/", flush=True)
        train(model, batches, optimizer, epochs)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), partial)
        partial.replace(path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def train(model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    """Plain training with one cycle."""
    rate = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(batches) + 1)
    model.train()
    for _ in range(epochs):
        for inputs, classes in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), classes).backward()
            optimizer.step()
            schedule.step()
