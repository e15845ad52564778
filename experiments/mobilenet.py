"""MobileNetV2 (Sandler et al., 2018) in two sizes."""

from __future__ import annotations

import torch
from torch import nn

Block = tuple[int, int, int]
"""Expansion, output channels and stride of an inverted residual."""
SMALL: list[Block] = [(4, 32, 1), (4, 48, 2), (4, 48, 1), (4, 80, 2), (4, 80, 1)]
FULL: list[Block] = [
    (expansion, outputs, stride if i == 0 else 1)
    for expansion, outputs, count, stride in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    for i in range(count)
]
"""Table 2 of the paper."""


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its batch norm."""
    return [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; added to the input where the shapes agree."""

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        expansion, outputs, stride = block
        inner = expansion * inputs
        self.expand = nn.Sequential(*convolution(inputs, inner, 1), nn.ReLU6()) if expansion > 1 else nn.Sequential()
        self.filter = nn.Sequential(*convolution(inner, inner, 3, stride, groups=inner), nn.ReLU6())
        self.project = nn.Sequential(*convolution(inner, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to (N, inputs, H, W)."""
        inner = self.project(self.filter(self.expand(x)))
        return x + inner if self.residual else inner


class MobileNet(nn.Module):
    """Stem at half resolution, inverted residuals, a 1×1 convolution, global average, classes.

    Args:
        blocks: in their order.
        head: channels of the last convolution.
        inputs: channels of the images.
        classes: outputs.
    """

    def __init__(self, blocks: list[Block], head: int, inputs: int = 1, classes: int = 10) -> None:
        super().__init__()
        stem = 32
        self.stem = nn.Sequential(*convolution(inputs, stem, 3, 2), nn.ReLU6())
        widths = [stem, *(outputs for _, outputs, _ in blocks)]
        self.blocks = nn.Sequential(*(InvertedResidual(inputs, block) for inputs, block in zip(widths, blocks, strict=False)))
        self.head = nn.Sequential(*convolution(widths[-1], head, 1), nn.ReLU6())
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of images (N, inputs, H, W)."""
        return self.classifier(self.head(self.blocks(self.stem(x))).mean((2, 3)))
