"""What a candidate is trained for: the task's own loss, and the outputs and features of the original."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from autocompress.data import Batch
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.torch.calls import call, outputs_of
from autocompress.frameworks.torch.features import FeaturePairs
from autocompress.frameworks.torch.teacher import Teacher
from autocompress.task import Task

TEMPERATURE = 3.0
"""Of distillation; Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2."""


class Objective:
    """What is minimized: a model's own loss on a batch, mixed with its distance from the teacher."""

    def __init__(self, task: Task, model: nn.Module, teacher: Teacher, settings: TuneSettings) -> None:
        self.model, self.teacher = model, teacher
        self.own_loss = task.loss or default_loss
        self.share, self.feature_weight = settings.distillation, settings.feature_distillation
        self.features = FeaturePairs(model, teacher.model) if self.feature_weight else None

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The loss, a scalar."""
        outputs = call(self.model, batch.inputs)
        own = torch.as_tensor(self.own_loss(outputs, batch.targets))
        if self.share == 0 and self.features is None:
            return own
        taught = self.teacher(batch.inputs)
        total = (1 - self.share) * own + self.share * distillation(outputs, taught, batch.targets) if self.share else own
        return total if self.features is None else total + self.feature_weight * self.features.distance()

    def close(self) -> None:
        """Take everything off the model that was attached to it."""
        if self.features is not None:
            self.features.close()


def default_loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy for classes, else mean squared error; one column of integer targets is a logit of two classes."""
    (output,) = outputs_of(outputs)
    if targets.is_floating_point():
        return functional.mse_loss(output.reshape(targets.shape), targets.to(output.dtype))
    axis = _class_axis(output, targets)
    if axis is None:
        return functional.binary_cross_entropy_with_logits(output.reshape(targets.shape), targets.to(output.dtype))
    return functional.cross_entropy(output.movedim(axis, 1), targets.long())


def distillation(outputs: Any, theirs: list[torch.Tensor], targets: Any) -> torch.Tensor:
    """Kullback-Leibler divergence of softened classes where the targets are classes, else mean squared difference.

    Outputs that a model has only while it trains come after the others, and are not taught.
    """
    pairs = list(zip(outputs_of(outputs)[: len(theirs)], theirs, strict=True))
    axis = _class_axis(pairs[0][0], targets) if len(pairs) == 1 else None
    if axis is None:
        return torch.stack([functional.mse_loss(mine, original) for mine, original in pairs]).sum()
    mine, original = (functional.log_softmax(logits / TEMPERATURE, axis) for logits in pairs[0])
    divergence = functional.kl_div(mine, original, reduction="none", log_target=True).sum(axis).mean()
    return divergence * TEMPERATURE**2


def _class_axis(output: torch.Tensor, targets: Any) -> int | None:
    """The axis of the classes: the last for one target per token, else the second; None where the targets are no classes."""
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or output.ndim < 2:
        return None
    axis = output.ndim - 1 if targets.shape == output.shape[:-1] else 1
    return axis if output.shape[axis] > 1 else None
