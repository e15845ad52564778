"""How much each channel of a module's groups matters."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from autocompress.frameworks.channels import Member
from autocompress.frameworks.criteria import Gradients, Importance
from autocompress.frameworks.torch.gradients import mean_gradients
from autocompress.task import Task


class TorchImportance(Importance):
    """Scores of a task's original."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def weight(self, tensor: str) -> NDArray[Any]:
        """A parameter."""
        return _array(self._task.model.get_parameter(tensor))

    def is_batch_norm_scale(self, member: Member) -> bool:
        """True for the scale of a batch normalization."""
        owner, _, attribute = member.tensor.rpartition(".")
        return attribute == "weight" and not member.layer and hasattr(self._task.model.get_submodule(owner), "running_var")

    def gradients(self, squared: bool) -> Gradients:
        """Of the task's loss."""
        return {name: _array(gradient) for name, gradient in mean_gradients(self._task, squared).items()}


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().cpu().double().numpy()
    return array
