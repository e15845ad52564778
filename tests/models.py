"""Tiny models and tasks. The data are real: scikit-learn's digits (8×8) and diabetes (10 measurements)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import nn
from torch.nn import functional

import autocompress as ac

Arrays = tuple[torch.Tensor, torch.Tensor]


@cache
def digits() -> dict[str, Arrays]:
    """Images (N, 1, 8, 8) in [0, 1] and classes: 800 to train on, 300 to validate, 297 to test."""
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    images = torch.from_numpy(bunch.images[order].astype(np.float32) / 16)[:, None]
    classes = torch.from_numpy(bunch.target[order]).long()
    ends = {"train": (0, 800), "valid": (800, 1100), "test": (1100, 1397)}
    return {name: (images[a:b], classes[a:b]) for name, (a, b) in ends.items()}


@cache
def diabetes() -> dict[str, Arrays]:
    """Ten measurements and a standardised progression of the disease, (N, 1)."""
    bunch = load_diabetes()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    inputs = torch.from_numpy(20 * bunch.data[order].astype(np.float32))
    targets = bunch.target[order].astype(np.float32)
    targets = torch.from_numpy((targets - targets.mean()) / targets.std())[:, None]
    ends = {"train": (0, 300), "valid": (300, 400), "test": (400, 442)}
    return {name: (inputs[a:b], targets[a:b]) for name, (a, b) in ends.items()}


class ConvNet(nn.Module):
    """Two convolutions with batch norm and a linear layer. Every second scale of a norm is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 10)
        disturb_norms(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.fc(functional.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """Two residual blocks of 16 and 32 channels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.block1, self.block2 = Block(width, width, 1), Block(width, 2 * width, 2)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        return self.fc(self.block2(self.block1(x)).mean((2, 3)))


class FlattenNet(nn.Module):
    """A convolution whose every position is read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(8 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


class SeparableNet(nn.Module):
    """Depthwise and pointwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.bn1 = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.pointwise, self.bn2 = nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 10)
        disturb_norms(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        x = torch.relu(self.bn1(self.depthwise(x)))
        return self.fc(torch.relu(self.bn2(self.pointwise(x))).mean((2, 3)))


class GroupedNet(nn.Module):
    """A convolution in four groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.grouped, self.bn1 = nn.Conv2d(16, 32, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)
        disturb_norms(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn0(self.stem(x)))
        return self.fc(torch.relu(self.bn1(self.grouped(x))).mean((2, 3)))


class TransposedNet(nn.Module):
    """A transposed convolution between two ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.bn = nn.Conv2d(1, 16, 3, 2, 1), nn.ConvTranspose2d(16, 8, 2, 2), nn.BatchNorm2d(8)
        self.last, self.fc = nn.Conv2d(8, 16, 3, 1, 1), nn.Linear(16, 10)
        disturb_norms(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.up(torch.relu(self.conv(x)))))
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


class Conv1dNet(nn.Module):
    """The eight rows of an image are channels of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(8, 24, 3, 1, 1), nn.BatchNorm1d(24)
        self.conv2, self.fc = nn.Conv1d(24, 32, 3, 2, 1), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x[:, 0])))
        return self.fc(torch.relu(self.conv2(x)).mean(2))


class SqueezeExciteNet(nn.Module):
    """Channels scaled by what two 1×1 convolutions make of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        scale = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc((x * scale).mean((2, 3)))


class SharedNet(nn.Module):
    """One linear layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        return self.last(torch.relu(self.shared(torch.relu(self.shared(x)))))


class TwoInputs(nn.Module):
    """The upper and the lower half of an image, as two inputs. Called with names or without."""

    def __init__(self) -> None:
        super().__init__()
        self.upper_conv, self.lower_conv = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(1, 16, 3, 1, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
        parts = [torch.relu(self.upper_conv(upper)).mean((2, 3)), torch.relu(self.lower_conv(lower)).amax((2, 3))]
        return self.fc(torch.cat(parts, 1))


class TwoOutputs(nn.Module):
    """Classes and brightness of an image: a tuple, or a dict."""

    def __init__(self, as_dict: bool = False) -> None:
        super().__init__()
        self.as_dict = as_dict
        self.conv, self.classes, self.brightness = nn.Conv2d(1, 16, 3, 2, 1), nn.Linear(16, 10), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.relu(self.conv(x)).mean((2, 3))
        classes, brightness = self.classes(x), self.brightness(x)
        return {"classes": classes, "brightness": brightness} if self.as_dict else (classes, brightness)


class Regressor(nn.Module):
    """Ten measurements to one number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(10, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class ShuffleNet(nn.Module):
    """A channel shuffle that remembers the width of its convolution: those channels cannot be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 24, 3, 1, 1), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = x.view(len(x), 2, 8, *x.shape[2:]).transpose(1, 2).reshape(len(x), 16, *x.shape[2:])
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


class SoftmaxNet(nn.Module):
    """A softmax over channels: without one of them the others change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 24, 3, 1, 1), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = 16 * self.conv1(x).softmax(1)
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def mlp() -> nn.Module:
    """A top-level Sequential of linear layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))


def sequential() -> nn.Module:
    """A top-level Sequential with a convolution, a norm and a Flatten."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 10))


def disturb_norms(model: nn.Module) -> None:
    """Scales from -1.5 to 1.5 and statistics as if trained; every second scale is negative."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            sign = torch.ones(module.num_features)
            sign[1::2] = -1
            with torch.no_grad():
                module.weight.copy_(sign * (0.5 + torch.rand(module.num_features, generator=generator)))
                module.bias.copy_(0.3 * torch.randn(module.num_features, generator=generator))
                module.running_mean.copy_(0.2 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))


CLASSIFIERS = {
    "conv": ConvNet,
    "resnet": ResNet,
    "flatten": FlattenNet,
    "mlp": mlp,
    "sequential": sequential,
    "separable": SeparableNet,
    "grouped": GroupedNet,
    "transposed": TransposedNet,
    "conv1d": Conv1dNet,
    "squeeze-excite": SqueezeExciteNet,
    "shared": SharedNet,
}
"""Models of images (N, 1, 8, 8) with one output (N, 10)."""


def build(name: str, seed: int = 0) -> nn.Module:
    """An untrained classifier, the same at every call."""
    torch.manual_seed(seed)
    return CLASSIFIERS[name]().eval()


def seeded(make: Any, *arguments: Any) -> nn.Module:
    """An untrained model of any class, the same at every call."""
    torch.manual_seed(0)
    return make(*arguments).eval()


def trained(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, epochs: int = 3) -> nn.Module:
    """The model, trained for a second or two."""
    torch.manual_seed(0)
    loss_of = functional.mse_loss if targets.is_floating_point() else functional.cross_entropy
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * -(-len(inputs) // 64) + 1)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            loss_of(model(inputs[index]), targets[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def digits_task(model: nn.Module, **options: Any) -> ac.Task:
    """A task on the digits; anything in `options` wins."""
    parts = digits()
    defaults: dict[str, Any] = {"epochs": 1, "name": "digits", **parts}
    return ac.Task(model, **{**defaults, **options})


def small_task(model: nn.Module, **options: Any) -> ac.Task:
    """The same with 64 samples to train on and 32 to validate, for tests that do not look at accuracy."""
    parts = digits()
    few = {"train": tuple(a[:64] for a in parts["train"]), "valid": tuple(a[:32] for a in parts["valid"]), "test": None}
    return digits_task(model, **{**few, **options})


def search_task(model: nn.Module | None = None, samples: int = 200, **options: Any) -> ac.Task:
    """A task for whole searches: the trained residual net, or another model, and few samples of each split."""
    parts = {name: tuple(array[:samples] for array in arrays) for name, arrays in digits().items()}
    return digits_task(resnet() if model is None else model, **{**parts, "learning_rate": 5e-3, **options})


def linear() -> nn.Module:
    """One layer, trained: the smallest model that can be searched. It has no group to prune."""
    return trained(seeded(_linear), *digits()["train"], epochs=2)


def _linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def regression_task(**options: Any) -> ac.Task:
    """Ten measurements to the progress of a disease; less error is better."""
    parts = diabetes()
    model = trained(seeded(Regressor), *parts["train"])
    return ac.Task(model, **{**parts, "metric": "mse", "epochs": 1, "name": "diabetes", **options})


def halves(arrays: Arrays, named: bool = False) -> tuple[Any, torch.Tensor]:
    """Images as two inputs, the upper and the lower half."""
    images, classes = arrays
    upper, lower = images[:, :, :4], images[:, :, 4:]
    return ({"upper": upper, "lower": lower} if named else (upper, lower)), classes


@cache
def resnet_weights() -> dict[str, torch.Tensor]:
    """Weights of the residual net at about 95 % of the digits; it is trained once."""
    return trained(seeded(ResNet), *digits()["train"]).state_dict()


def resnet() -> nn.Module:
    """A fresh copy of the trained residual net."""
    model = ResNet()
    model.load_state_dict(resnet_weights())
    return model.eval()
