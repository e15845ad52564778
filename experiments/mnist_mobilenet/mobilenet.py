"""A small MobileNetV2 (Sandler et al., 2018) for 28×28 images."""

from __future__ import annotations

import torch
from torch import nn

EXPANSION = 4
BLOCKS = [(32, 1), (48, 2), (48, 1), (80, 2), (80, 1)]
"""Output channels and stride of each inverted residual."""
STEM, HEAD = 32, 128


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm."""
    return [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = EXPANSION * inputs
        self.expand = nn.Sequential(*convolution(inputs, inner, 1), nn.ReLU6())
        self.filter = nn.Sequential(*convolution(inner, inner, 3, stride, groups=inner), nn.ReLU6())
        self.project = nn.Sequential(*convolution(inner, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to (N, inputs, H, W)."""
        inner = self.project(self.filter(self.expand(x)))
        return x + inner if self.residual else inner


class MobileNet(nn.Module):
    """Stem at half resolution, five inverted residuals, a 1×1 convolution, global average, ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(1, STEM, 3, 2), nn.ReLU6())
        widths = [STEM, *(outputs for outputs, _ in BLOCKS)]
        self.blocks = nn.Sequential(
            *(InvertedResidual(inputs, outputs, stride) for inputs, (outputs, stride) in zip(widths, BLOCKS, strict=False))
        )
        self.head = nn.Sequential(*convolution(widths[-1], HEAD, 1), nn.ReLU6())
        self.classifier = nn.Linear(HEAD, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))
