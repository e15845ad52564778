"""The original as a teacher: OpenVINO computes it where it says the same, PyTorch elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import autocompress as ac
from autocompress.frameworks.torch.teacher import Teacher

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

    def forward(self, *, image: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Logits and their doubles."""
        logits = super().forward(image)
        return {"logits": logits, "doubles": 2 * logits}


def teacher_of(model: nn.Module) -> Teacher:
    task = ac.Task(model, train=(IMAGES, torch.zeros(8)), valid=(IMAGES, torch.zeros(8)))
    return Teacher(task, copy.deepcopy(model).eval(), quick=True)


def trained(model: Convolutions) -> Convolutions:
    with torch.no_grad():
        model(IMAGES)  # moves the statistics
    return model.eval()


def test_openvino_says_what_pytorch_says_and_is_asked_from_the_first_batch_on() -> None:
    model = trained(Convolutions())
    teacher = teacher_of(model)
    for images in (IMAGES, 2 * IMAGES, IMAGES.contiguous(memory_format=torch.channels_last)):
        (found,) = teacher((images,))
        assert torch.allclose(found, model(images), atol=1e-5)
    calls = teacher.model.calls
    teacher((IMAGES,))
    assert teacher.model.calls == calls


def test_a_batch_of_another_size_is_left_to_pytorch() -> None:
    model = trained(Convolutions())
    teacher = teacher_of(model)
    teacher((IMAGES,))
    calls = teacher.model.calls
    (found,) = teacher((IMAGES[:3],))
    assert teacher.model.calls == calls + 1
    assert torch.equal(found, model(IMAGES[:3]))


def test_what_openvino_does_not_reproduce_is_left_to_pytorch() -> None:
    teacher = teacher_of(NeverTheSame().eval())
    (first,), (second,) = teacher((IMAGES,)), teacher((IMAGES,))
    assert not torch.equal(first, second)


def test_an_original_that_was_trained_since_is_converted_anew() -> None:
    model = trained(Convolutions())
    task = ac.Task(model, train=(IMAGES, torch.zeros(8)), valid=(IMAGES, torch.zeros(8)))
    Teacher(task, copy.deepcopy(model), quick=True)((IMAGES,))
    with torch.no_grad():
        model.fc.weight.mul_(3)
    (found,) = Teacher(task, copy.deepcopy(model), quick=True)((IMAGES,))
    assert torch.allclose(found, model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("quick", [True, False])
def test_names_and_several_outputs(quick: bool) -> None:
    model = Named().eval()
    sample: Any = {"image": IMAGES}
    task = ac.Task(model, train=[(sample, torch.zeros(8))], valid=[(sample, torch.zeros(8))])
    logits, doubles = Teacher(task, copy.deepcopy(model), quick=quick)(sample)
    assert torch.allclose(logits, model(image=IMAGES)["logits"], atol=1e-5)
    assert torch.allclose(doubles, 2 * logits, atol=1e-5)
