"""One training of the elastic model: in every step another policy is in force."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocompress.errors import ModelError
from autocompress.frameworks.base import FEATURES_ARE_WHOLE, SHARED_GRADIENT_NORM, Candidate, Progress, TuneSettings
from autocompress.frameworks.torch.elastic import Elastic
from autocompress.frameworks.torch.finetune import Trainer
from autocompress.frameworks.torch.optimize import highest_shared_rate
from autocompress.frameworks.torch.pruning import Pruning
from autocompress.frameworks.weights_file import write_whole
from autocompress.policy import Policy
from autocompress.task import Task


class ElasticTraining:
    """Cycles of training, each of some epochs with a rate that rises and falls.

    Attributes:
        elastic: what is trained.
        masked_because: why no step can leave out the channels that go; None where some can.
        epochs: finished ones of the present cycle.
    """

    def __init__(self, task: Task, pruning: Pruning, example: Any, criterion: str, settings: TuneSettings) -> None:
        self.task, self.settings = task, settings
        self.elastic = Elastic(task.model, example, pruning, criterion)
        self.teacher = copy.deepcopy(task.model).eval()
        self.masked_because = FEATURES_ARE_WHOLE if settings.feature_distillation else None
        self.epochs = 0

    def begin(self, epochs: int) -> None:
        """Start a cycle."""
        rate = highest_shared_rate(self.task, self.elastic.model, self.settings.learning_rate)
        settings = replace(self.settings, epochs=epochs, learning_rate=rate, gradient_norm=SHARED_GRADIENT_NORM)
        self.trainer = Trainer(self.task, self.elastic.model, settings, self.teacher)
        self.epochs = 0

    def epoch(self, policies: Iterator[Policy], progress: Progress) -> None:
        """One pass over the training data, a policy for each step.

        Raises:
            DivergedError: the loss is not a number.
        """
        trainer = self.trainer
        seed = self.settings.seed, trainer.settings.epochs, self.epochs
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        trainer.generator = np.random.default_rng(seed)  # so that an epoch that is repeated is the same
        trainer.to_training_mode()
        for batch in trainer.batches():
            self._obey(next(policies))
            trainer.step(batch)
            progress(min(trainer.done / trainer.steps, 1.0))
        self.epochs += 1

    def _obey(self, policy: Policy) -> None:
        """Let the next step train a policy. Features are compared layer by layer, which only the whole model has."""
        if self.trainer.objective.features is None:
            thin = self.trainer.objective.model = self.elastic.thin(policy)
            self.trainer.arithmetic.arrange_computed(thin)
        else:
            self.elastic.obey(policy)

    def candidate(self, policy: Policy, removed: Mapping[str, Sequence[int]] | None = None) -> Candidate:
        """The model under a policy, pruned physically, with the weights of now. Its statistics are still to be taken."""
        return self.elastic.candidate(policy, removed)

    def save(self, path: Path) -> None:
        """Write all that the present cycle needs to go on, whole or not at all."""
        trainer = self.trainer
        state = {
            "model": self.elastic.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "schedule": trainer.schedule.state_dict(),
            "done": trainer.done,
            "epochs": self.epochs,
        }
        write_whole(path, lambda place: torch.save(state, place))

    def load(self, path: Path) -> None:
        """Read what `save` wrote in a cycle of the same length.

        Raises:
            ModelError: the file is damaged or of another model.
        """
        try:
            state = torch.load(path, weights_only=True)
            self.elastic.model.load_state_dict(state["model"])
            self.trainer.optimizer.load_state_dict(state["optimizer"])
            self.trainer.schedule.load_state_dict(state["schedule"])
        except Exception as error:  # a damaged file fails in any way
            remedy = "Remove it; the shared training then begins anew."
            raise ModelError("A shared training goes on from a complete checkpoint", f"{path}: {error}", remedy) from error
        self.trainer.done, self.epochs = state["done"], state["epochs"]
