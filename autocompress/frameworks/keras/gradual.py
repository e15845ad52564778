"""Pruning little by little: channels fall silent one after the other while the whole model trains, and are removed then.

Zeroing the weights that read a channel equals removing it, so the model that trains is at every step a pruned one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import keras

from autocompress.frameworks.base import Progress, TuneSettings
from autocompress.frameworks.gradual import FallingSilent
from autocompress.frameworks.keras.finetune import Trainer, make_repeatable, teacher_of
from autocompress.frameworks.keras.graph import rebuild
from autocompress.frameworks.keras.prune import remove_channels, silence
from autocompress.frameworks.keras.pruning import Pruning
from autocompress.frameworks.schedule import gradual_epochs
from autocompress.task import Task


def prune_gradually(
    task: Task,
    original: keras.Model,
    pruning: Pruning,
    removed: Mapping[str, Sequence[int]],
    settings: TuneSettings,
    progress: Progress,
) -> keras.Model:
    """The pruned model, trained while its channels went.

    Args:
        task: with data and loss.
        original: the task's model as a graph.
        pruning: its groups and rankings.
        removed: group → its channels that go.
        settings: whose epochs and schedule say how long and how fast.
        progress: told the finished fraction.

    Raises:
        DivergedError: the loss is not a number.
    """
    model = rebuild(original, lambda name, layer: None)
    make_repeatable(model, settings.seed)
    trainer = Trainer(task, model, replace(settings, epochs=gradual_epochs(settings), deadline=None), teacher_of(original))
    silent = FallingSilent(pruning, removed, settings.pruning_schedule)

    def fall_silent() -> None:
        silence(model, pruning.groups, silent.at(min(trainer.done / trainer.steps, 1.0)))

    trainer.run(progress, fall_silent)
    return remove_channels(model, pruning.groups, removed)
