"""One training of the elastic model: in every step another policy is in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import load_file, save

from autocompress.errors import ModelError
from autocompress.frameworks.base import SHARED_GRADIENT_NORM, Candidate, Progress, TuneSettings
from autocompress.frameworks.keras.elastic import Elastic
from autocompress.frameworks.keras.finetune import Trainer, make_epoch_repeatable, teacher_of
from autocompress.frameworks.keras.optimize import highest_shared_rate
from autocompress.frameworks.keras.pruning import Pruning
from autocompress.frameworks.weights_file import write_whole
from autocompress.policy import Policy
from autocompress.task import Task

DONE, EPOCHS = "done", "epochs"
MOST_STEPS_OF_HEIRS = 400
"""With so many at most, an heir is trained sooner in the elastic model, whose steps take up to a tenth more time, than by a step
of its own, which has to be traced first: 375 steps of a small transformer take 10.5 s and 12.0 s, and give .828 both."""


class ElasticTraining:
    """Cycles of training, each of some epochs with a rate that rises and falls.

    Attributes:
        elastic: what is trained.
        masked_because: why no step can leave out the channels that go; None where some can.
        epochs: finished ones of the present cycle.
    """

    def __init__(
        self, task: Task, graph: keras.Model, pruning: Pruning, example: Any, criterion: str, settings: TuneSettings
    ) -> None:
        self.task, self.settings = task, settings
        compares_features = settings.feature_distillation > 0  # at the sizes of the whole model
        self.elastic = Elastic(graph, example, pruning, criterion, may_be_thin=not compares_features)
        self.masked_because = self.elastic.masked_because
        self.teacher = teacher_of(graph)
        self.epochs = 0

    def begin(self, epochs: int) -> None:
        """Start a cycle."""
        rate = highest_shared_rate(self.task, self.elastic.model, self.settings.learning_rate)
        settings = replace(self.settings, epochs=epochs, learning_rate=rate, gradient_norm=SHARED_GRADIENT_NORM)
        keras.utils.set_random_seed(settings.seed)
        self.trainer = Trainer(self.task, self.elastic.model, settings, self.teacher)
        self.epochs = 0

    def epoch(self, policies: Iterator[Policy], progress: Progress) -> None:
        """One pass over the training data, a policy for each step.

        Raises:
            DivergedError: the loss is not a number.
        """
        seed = self.settings.seed, self.trainer.settings.epochs, self.epochs  # an epoch that is repeated is the same
        make_epoch_repeatable(self.elastic.model, int(np.random.SeedSequence(seed).generate_state(1)[0]) % 2**31)
        self.trainer.epoch(np.random.default_rng(seed), progress, lambda: self._obey(next(policies)))
        self.epochs += 1

    def _obey(self, policy: Policy) -> None:
        """Let the next step train a policy. Only a graph can be thin."""
        self.elastic.obey(policy, thin=not self.trainer.student.run_eagerly)

    def candidate(self, policy: Policy, removed: Mapping[str, Sequence[int]] | None = None) -> Candidate:
        """The model under a policy, pruned physically, with the weights of now. Its statistics are still to be taken."""
        return self.elastic.candidate(policy, removed)

    def can_tune(self, heir: Candidate, settings: TuneSettings) -> bool:
        """Can an heir be trained in the elastic model, and more quickly than by itself?"""
        is_thin = self.elastic.thin_groups and not self.trainer.student.run_eagerly
        is_able = self.elastic.trains_like_candidate(heir.policy) and self.trainer.can_be_renewed(settings)
        return bool(is_thin and is_able and settings.epochs * self.trainer.epoch_steps <= MOST_STEPS_OF_HEIRS)

    def tune(self, heir: Candidate, settings: TuneSettings, progress: Progress) -> int:
        """Train an heir in the elastic model. Its statistics are still to be taken.

        Unlike a training by itself it goes on with the optimizer of the shared training, and clips gradients like that.

        Returns:
            How many epochs it was trained for.

        Raises:
            DivergedError: the loss is not a number.
        """
        with self._untouched():
            make_epoch_repeatable(self.elastic.model, settings.seed)
            self.elastic.obey(heir.policy, heir.removed, thin=True)
            epochs = self.trainer.renewed(settings).run(progress)
            self.elastic.hand_over(heir)
        return epochs

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Afterwards the weights and the optimizer are what they were."""
        before = [(variable, keras.ops.convert_to_numpy(variable)) for variable in self._variables().values()]
        try:
            yield
        finally:
            for variable, value in before:
                variable.assign(value)
            self.elastic.refresh()

    def save(self, path: Path) -> None:
        """Write all that the present cycle needs to go on, whole or not at all."""
        tensors = {name: keras.ops.convert_to_numpy(variable) for name, variable in self._variables().items()}
        counts = {DONE: np.array(self.trainer.done), EPOCHS: np.array(self.epochs)}
        stored = save(tensors | counts)
        write_whole(path, lambda place: place.write_bytes(stored))

    def load(self, path: Path) -> None:
        """Read what `save` wrote in a cycle of the same length.

        Raises:
            ModelError: the file is damaged or of another model.
        """
        try:
            stored = load_file(path)
            for name, variable in self._variables().items():
                variable.assign(stored[name])
            self.elastic.refresh()
            self.trainer.done, self.epochs = int(stored[DONE]), int(stored[EPOCHS])
        except Exception as error:  # a damaged file fails in any way
            remedy = "Remove it; the shared training then begins anew."
            raise ModelError("A shared training goes on from a complete checkpoint", f"{path}: {error}", remedy) from error

    def _variables(self) -> dict[str, Any]:
        """Of the elastic model and of its optimizer, by place: names are not unique."""
        held = {"model": self.elastic.model.variables, "optimizer": self.trainer.student.optimizer.variables}
        return {f"{owner}.{index}": variable for owner, variables in held.items() for index, variable in enumerate(variables)}
