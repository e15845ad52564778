"""The original as a teacher: OpenVINO computes it where it says the same, PyTorch elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import autocompress as ac
from autocompress.frameworks.torch.teacher import CHECKED_EVERY, CHECKED_FIRST, Teacher

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Convolutions(nn.Module):
    """Two convolutions with batch norms that were used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, 4)."""
        self.calls += 1
        return self.fc(functional.relu(self.second(functional.relu(self.bn(self.first(x))))).mean((2, 3)))


class NeverTheSame(Convolutions):
    """Draws a random number in every call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits with noise."""
        return super().forward(x) + torch.rand(1)


class Named(Convolutions):
    """Takes its input by name and has two outputs."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Logits and their doubles."""
        logits = super().forward(image)
        return {"logits": logits, "doubles": 2 * logits}


class Deciding(Convolutions):
    """Does something else with large images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, ten times as large where the images are."""
        logits = super().forward(x)
        return 10 * logits if x.max() > 100 else logits


def task_of(model: nn.Module, sample: Any = IMAGES) -> ac.Task:
    data = [(sample, torch.zeros(8))]
    return ac.Task(model, train=data, valid=data)


def teacher_of(task: ac.Task, *, quick: bool = True) -> Any:
    """A teacher whose model counts its calls."""
    model: Any = copy.deepcopy(task.model).eval()
    model.calls = 0
    return Teacher(task, model, quick=quick)


def test_openvino_says_what_pytorch_says() -> None:
    model = Convolutions()
    model(IMAGES)  # moves the statistics
    teacher = teacher_of(task_of(model.eval()))
    batches = [factor * IMAGES for factor in (1.0, 2.0, 3.0)] + [IMAGES.contiguous(memory_format=torch.channels_last)]
    for images in batches:
        (found,) = teacher((images,))
        assert torch.allclose(found, model(images), atol=1e-5)
        assert not found.requires_grad
    assert teacher.model.calls == CHECKED_FIRST


def test_it_is_asked_again_now_and_then() -> None:
    teacher = teacher_of(task_of(Convolutions()))
    for _ in range(CHECKED_EVERY):
        teacher((IMAGES,))
    assert teacher.model.calls == CHECKED_FIRST + 1


def test_a_batch_of_another_size_is_left_to_pytorch() -> None:
    teacher = teacher_of(task_of(Convolutions()))
    for _ in range(CHECKED_FIRST):
        teacher((IMAGES,))
    (found,) = teacher((IMAGES[:3],))
    assert teacher.model.calls == CHECKED_FIRST + 1
    assert torch.equal(found, teacher.model(IMAGES[:3]))


@pytest.mark.parametrize("network", [NeverTheSame, Deciding])
def test_what_openvino_does_not_reproduce_is_left_to_pytorch(network: type[Convolutions]) -> None:
    task = task_of(network())
    teacher = teacher_of(task)
    teacher((IMAGES,))
    for count in range(2, 6):
        (found,) = teacher((1000 * IMAGES,))
        assert teacher.model.calls >= count
    if network is Deciding:
        assert torch.equal(found, teacher.model(1000 * IMAGES))
    again = teacher_of(task)
    again((IMAGES,))
    assert again.model.calls == 1  # it is known of the task: nothing is converted or checked


def test_an_original_that_was_trained_since_is_converted_anew() -> None:
    task = task_of(Convolutions().eval())
    teacher_of(task)((IMAGES,))
    with torch.no_grad():
        task.model.fc.weight.mul_(3)
    teacher = teacher_of(task)
    for _ in range(4):
        (found,) = teacher((IMAGES,))
    assert torch.allclose(found, task.model(IMAGES), atol=1e-5)
    assert teacher.model.calls == CHECKED_FIRST + 1  # the first batch was checked twice


@pytest.mark.parametrize("quick", [True, False])
def test_names_and_several_outputs(quick: bool) -> None:
    sample = {"image": IMAGES}
    teacher = teacher_of(task_of(Named().eval(), sample), quick=quick)
    for _ in range(4):
        logits, doubles = teacher(sample)
    assert torch.allclose(logits, teacher.model(image=IMAGES)["logits"], atol=1e-5)
    assert torch.allclose(doubles, 2 * logits, atol=1e-5)
    assert teacher.model.calls - 1 == (CHECKED_FIRST if quick else 4)


def test_inputs_that_need_gradients_teach_too() -> None:
    teacher = teacher_of(task_of(Convolutions()))
    (found,) = teacher((IMAGES.clone().requires_grad_(),))
    assert not found.requires_grad
