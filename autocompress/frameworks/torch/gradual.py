"""Pruning little by little: channels fall silent one after the other while the whole model trains, and are removed then.

Zeroing the weights that read a channel equals removing it, so the model that trains is at every step a pruned one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from autocompress.frameworks.base import Progress, TuneSettings
from autocompress.frameworks.channels import removed_slices
from autocompress.frameworks.gradual import FallingSilent
from autocompress.frameworks.schedule import gradual_epochs
from autocompress.frameworks.torch.finetune import Trainer
from autocompress.frameworks.torch.prune import remove_channels
from autocompress.frameworks.torch.pruning import Pruning
from autocompress.task import Task


def prune_gradually(
    task: Task, pruning: Pruning, removed: Mapping[str, Sequence[int]], settings: TuneSettings, progress: Progress
) -> nn.Module:
    """The pruned model, trained while its channels went.

    Args:
        task: with the original model.
        pruning: its groups and rankings.
        removed: group → its channels that go.
        settings: whose epochs and schedule say how long and how fast.
        progress: told the finished fraction.

    Raises:
        DivergedError: the loss is not a number.
    """
    model: nn.Module = copy.deepcopy(task.model)
    teacher = copy.deepcopy(task.model).eval()
    trainer = Trainer(task, model, replace(settings, epochs=gradual_epochs(settings), deadline=None), teacher)
    silent = FallingSilent(pruning, removed, settings.pruning_schedule)

    def silence() -> None:
        gone = silent.at(min(trainer.done / trainer.steps, 1.0))
        with torch.no_grad():
            for (tensor, axis), indices in removed_slices(pruning.groups, gone, ("reads",)).items():
                weight = model.get_parameter(tensor)
                weight.index_fill_(axis, torch.from_numpy(indices).to(weight.device), 0)

    trainer.run(progress, silence)
    remove_channels(model, pruning.groups, removed, pruning.proof.follow)
    return model
