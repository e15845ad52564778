"""MobileNetV2 on distorted MNIST images of 64×64, trained once and kept in a cache."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import autocompress as ac

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share
import distorted_mnist
import mobilenet
from originals import trained_once

SIZE = 64
EPOCHS, LEARNING_RATE = 15, 0.1


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """The undistorted images at the size that the network takes."""
    return functional.interpolate(images, size=SIZE, mode="bilinear")


def original(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """The trained MobileNetV2."""
    torch.manual_seed(0)
    model = mobilenet.MobileNet(mobilenet.FULL, head=1280)
    batches = distorted_mnist.DistortedBatches(images, labels, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    return trained_once(f"mnist{SIZE}_mobilenet", model, batches, optimizer, EPOCHS, mobilenet, distorted_mnist)


def make_task() -> ac.Task:
    """The task of this experiment."""
    parts = {split: (enlarged(images), labels) for split, (images, labels) in distorted_mnist.splits().items()}
    return ac.Task(
        original(*parts["train"]),
        train=distorted_mnist.DistortedBatches(*parts["train"], seed=2),
        valid=distorted_mnist.fixed_distortions(*parts["valid"], seed=3),
        test=distorted_mnist.fixed_distortions(*parts["test"], seed=4),
        loss=functional.cross_entropy,
        metric="accuracy",
        preprocessing={**distorted_mnist.PREPROCESSING, "shape": [1, SIZE, SIZE]},
        epochs=2,
        name="MobileNetV2 on distorted MNIST, 64×64",
    )
