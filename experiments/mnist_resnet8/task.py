"""A ResNet-8, trained once on 5,000 distorted MNIST images and kept in a cache."""

from __future__ import annotations

import sys
from pathlib import Path

import resnet
import torch
from torch import nn
from torch.nn import functional

import autocompress as ac

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share
import distorted_mnist
from originals import trained_once

WIDTH = 32
EPOCHS, LEARNING_RATE = 10, 0.1


def original(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """The trained ResNet-8."""
    torch.manual_seed(0)
    model = resnet.ResNet8(WIDTH)
    batches = distorted_mnist.DistortedBatches(images, labels, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    return trained_once("mnist_resnet8", model, batches, optimizer, EPOCHS, resnet, distorted_mnist)


def make_task() -> ac.Task:
    """The task of this experiment."""
    parts = distorted_mnist.splits()
    return ac.Task(
        original(*parts["train"]),
        train=distorted_mnist.DistortedBatches(*parts["train"], seed=2),
        valid=distorted_mnist.fixed_distortions(*parts["valid"], seed=3),
        test=distorted_mnist.fixed_distortions(*parts["test"], seed=4),
        loss=functional.cross_entropy,
        metric="accuracy",
        preprocessing=distorted_mnist.PREPROCESSING,
        epochs=3,
        name="ResNet-8 on distorted MNIST",
    )
