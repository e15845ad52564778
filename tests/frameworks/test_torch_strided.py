"""No strided convolution of one pixel is differentiated with channels last: PyTorch's kernel writes where it must not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_contract import TorchCases
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import autocompress as ac
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.gradients import mean_gradients
from autocompress.frameworks.torch.strided import Subsampling, has_strided_pixels

SETTINGS = TuneSettings(1, 1e-2, 0.5)
HALF = ac.Policy({"block1.conv1": 0.5})


class Strides(TorchFunctionMode):
    """Records the kernels, strides and inputs of the convolutions whose weights learn."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], int, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and torch.is_grad_enabled() and args[1].requires_grad:
            stride = args[3] if isinstance(args[3], int) else max(args[3])
            self.seen.append((tuple(args[1].shape[2:]), stride, args[0]))
        return func(*args, **(kwargs or {}))

    @property
    def pixels(self) -> set[int]:
        """The strides of those of one pixel, with channels last."""
        last = torch.channels_last
        return {stride for kernel, stride, value in self.seen if kernel == (1, 1) and value.is_contiguous(memory_format=last)}


def fine_tuned(task: ac.Task) -> None:
    framework = TorchFramework()
    framework.fine_tune(task, framework.compress(task, HALF, "l2"), SETTINGS, lambda _: None)


def shared(task: ac.Task) -> None:
    training = TorchFramework().share(task, "l2", SETTINGS)
    training.begin(1)
    training.epoch(iter([HALF] * 9), lambda _: None)


@pytest.mark.parametrize(
    ("train", "expected"), [(fine_tuned, {1}), (shared, {1}), (lambda task: mean_gradients(task, squared=True), set())]
)
def test_a_training_has_none(train: Callable[[ac.Task], Any], expected: set[int]) -> None:
    task = TorchCases().task("resnet")
    task.model.to(memory_format=torch.channels_last)
    with Strides() as strides:
        train(task)
    assert strides.pixels == expected
    assert {stride for _, stride, _ in strides.seen} == {1, 2}  # of three pixels


@pytest.mark.parametrize(
    "convolved",
    [
        lambda value, weight: functional.conv2d(value, weight, stride=2),
        lambda value, weight: torch.conv2d(value, weight, torch.ones(len(weight)), (2, 1), "valid"),
        lambda value, weight: functional.conv2d(value, weight, None, (1, 3), (0, 0), 1),
        lambda value, weight: functional.conv2d(value, weight[:, :3], groups=2, stride=(2, 2)),
        lambda value, weight: functional.conv2d(value[0], weight, stride=2),
        lambda value, weight: functional.conv2d(value, weight, stride=np.int64(2)),
        lambda value, weight: functional.conv2d(value + 0j, weight + 0j, stride=2).real,
        lambda value, weight: functional.conv2d(value, weight, stride=2, padding=1),
        lambda value, weight: functional.conv2d(value, weight),
        lambda value, weight: functional.conv2d(value, weight.expand(-1, -1, 3, 3), stride=2, padding=1),
    ],
)
def test_outputs_and_gradients_are_the_same(convolved: Callable[..., torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    value, weight = (torch.randn(shape, generator=generator) for shape in ((2, 6, 7, 8), (4, 6, 1, 1)))
    found = []
    for mode in (nullcontext(), Subsampling()):
        tensors = [tensor.clone().requires_grad_() for tensor in (value, weight)]
        with mode:
            output = convolved(*tensors)
        output.square().sum().backward()
        found.append([output, *(tensor.grad for tensor in tensors)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 3, 1, 1))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (models.resnet, True),
        (lambda: models.build("separable"), False),
        (lambda: nn.Conv2d(3, 4, 1, (1, 2)), True),
        (lambda: nn.Conv2d(3, 4, 3, 2), False),
        (OwnParameter, True),
        (lambda: nn.Linear(3, 4), False),
    ],
)
def test_where_there_is_none_nothing_is_looked_at(make: Callable[[], nn.Module], expected: bool) -> None:
    assert has_strided_pixels(make()) == expected


def test_a_pruned_shortcut_of_large_images_trains() -> None:
    """Without the mode the process dies on CPUs with AVX-512."""
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    generator = np.random.default_rng(0)
    data = [(generator.normal(size=(4, 3, 64, 64)).astype("float32"), np.array([0, 3, 5, 9]))] * 4
    task = ac.Task(model, train=data, valid=data, metric="accuracy")
    candidate = TorchFramework().compress(task, ac.Policy({"0": 0.25}), "l2")
    TorchFramework().fine_tune(task, candidate, TuneSettings(3, 1e-2, 0.5), lambda _: None)
    assert candidate.model[1].weight.shape == (16, 9, 1, 1)
    assert all(torch.isfinite(parameter).all() for parameter in candidate.model.parameters())
