"""Networks of the benchmarks: two known ones, untrained, and small graphs of a wanted latency."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops
from torch import nn

from autocompress.device import Target
from autocompress.target.meter import reference_latency_ms
from autocompress.target.runtime import compile_model

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
from mobilenet import FULL, MobileNet

F32 = Target(precision="f32")


def convolutions(channels: int, side: int, layers: int, outputs: int | None = None) -> ov.Model:
    """3×3 convolutions with ReLU, in FP32; the last one has `outputs` channels."""
    generator = np.random.default_rng(0)
    parameter = ops.parameter([1, channels, side, side], np.float32)
    node = parameter
    for index in range(layers):
        last = outputs if outputs and index == layers - 1 else channels
        weight = generator.standard_normal((last, channels, 3, 3)).astype(np.float32) / 17
        node = ops.relu(ops.convolution(node, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1]))
    return ov.Model([node], [parameter])


def of_latency(wanted_ms: float, channels: int, side: int) -> ov.Model:
    """Of as many layers as it takes to come near a latency, on this machine."""
    counts = range(1, 40)
    for layers in counts:
        model = convolutions(channels, side, layers)
        found = reference_latency_ms(compile_model(model, F32), 0.2)
        if found >= 0.9 * wanted_ms:
            return model
    raise SystemExit(f"{counts[-1]} layers take less than {wanted_ms} ms here; take larger ones")


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the paper."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet20(nn.Module):
    """The CIFAR ResNet of He et al. (2015), table 6: 16, 32 and 64 channels, three blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        strides = [1, 1, 1, 2, 1, 1, 2, 1, 1]
        self.blocks = nn.Sequential(*(Residual(a, b, s) for a, b, s in zip(widths, widths[1:], strides, strict=False)))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the paper."""
        return self.fc(self.blocks(torch.relu(self.bn(self.stem(x)))).mean((2, 3)))


MobileNetV2 = partial(MobileNet, FULL, head=1280, inputs=3, classes=1000)
"""Layer for layer `torchvision.models.mobilenet_v2()`, which need not be installed."""
