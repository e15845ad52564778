"""The Keras side of the protocol in `frameworks/base.py`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
from numpy.typing import NDArray

from autocompress.data import Inputs, as_prediction
from autocompress.errors import TaskError
from autocompress.frameworks.base import Candidate, Framework, Progress, SharedTraining, TuneSettings
from autocompress.frameworks.keras.backends import converted
from autocompress.frameworks.keras.calls import example_inputs, require_fitting
from autocompress.frameworks.keras.finetune import fine_tune
from autocompress.frameworks.keras.gradual import prune_gradually
from autocompress.frameworks.keras.graph import functional, require_float32
from autocompress.frameworks.keras.isolated import isolated
from autocompress.frameworks.keras.layers import layers_of
from autocompress.frameworks.keras.losses import require_loss
from autocompress.frameworks.keras.one_dimensional import as_images
from autocompress.frameworks.keras.optimize import pruned_rate
from autocompress.frameworks.keras.prune import remove_channels
from autocompress.frameworks.keras.pruning import Pruning
from autocompress.frameworks.keras.reestimate import reestimate, reestimate_as_trained
from autocompress.frameworks.keras.resting import predicted
from autocompress.frameworks.keras.shared import ElasticTraining
from autocompress.frameworks.keras.simulate import input_ranges, settle, simulate
from autocompress.frameworks.keras.state import architecture, load_weights, save_weights
from autocompress.frameworks.schedule import gradual_epochs, has_lost_much, part
from autocompress.policy import Policy
from autocompress.structure import Layer, Structure
from autocompress.target.precision import Converted
from autocompress.task import Task

BACKENDS = ("tensorflow", "torch", "jax")


class KerasFramework:
    """Keras 3, on any backend that can train."""

    name = "keras"

    def __init__(self) -> None:
        if keras.backend.backend() not in BACKENDS:
            remedy = "Set KERAS_BACKEND before Keras is imported."
            raise TaskError(f"Keras models run on one of {', '.join(BACKENDS)}", keras.backend.backend(), remedy)
        self._graphs: WeakKeyDictionary[Task, keras.Model] = WeakKeyDictionary()
        self._examples: WeakKeyDictionary[Task, dict[int, Inputs]] = WeakKeyDictionary()
        self._prunings: WeakKeyDictionary[Task, Pruning] = WeakKeyDictionary()

    def isolated(self, task: Task, say: Callable[[str], None]) -> Framework:
        """The framework with a worker process, in which candidates are made: a process grows with every model."""
        return isolated(self, task, say)

    def close(self) -> None:
        """There is no process to end."""

    def digest(self, task: Task) -> str:
        """A hash of the architecture and of every weight."""
        graph = self._graph(task)
        found = hashlib.sha256(json.dumps(architecture(graph), sort_keys=True).encode())
        for weight in graph.get_weights():
            found.update(np.ascontiguousarray(weight).tobytes())
        return found.hexdigest()[:16]

    def architecture(self, task: Task) -> dict[str, str]:
        """Every layer and weight of the model in words."""
        return architecture(self._graph(task))

    def _graph(self, task: Task) -> keras.Model:
        """The task's model as a graph, which shares its layers and weights."""
        if task not in self._graphs:
            example = self._example(task, 1)
            graph = functional(task.model, example)
            require_float32(graph)
            require_fitting(graph, example)
            self._graphs[task] = graph
        return self._graphs[task]

    def _example(self, task: Task, batch: int) -> Inputs:
        """Example inputs, read once: every candidate of a run is converted at the same shapes."""
        known = self._examples.setdefault(task, {})
        if batch not in known:
            known[batch] = example_inputs(task, batch)
        return known[batch]

    def _pruning(self, task: Task) -> Pruning:
        """What can be removed from the task's model, found once."""
        if task not in self._prunings:
            self._prunings[task] = Pruning(task, self._graph(task), self._example(task, 1), self.digest(task))
        return self._prunings[task]

    def inspect(self, task: Task) -> Structure:
        """Layers and proven dependency groups."""
        if task.fine_tune is None:
            require_loss(task, self._graph(task))
        return self.structure(task)

    def structure(self, task: Task) -> Structure:
        """The same for a model that need not be trainable here."""
        self._graph(task)
        return self._pruning(task).structure

    def layers(self, task: Task) -> tuple[Layer, ...]:
        """The layers alone."""
        return layers_of(self._graph(task), self._example(task, 1))

    def importance(self, task: Task, criterion: str) -> dict[str, NDArray[np.float64]]:
        """Group name → importance of each of its channels, also of groups that are not proven."""
        return self._pruning(task).scores(criterion)

    def rank_as(self, task: Task, criterion: str, scores: Mapping[str, Sequence[float]]) -> None:
        """Take another process's scores for this criterion."""
        self._pruning(task).rank_as(criterion, {name: np.array(of_group, float) for name, of_group in scores.items()})

    def removed(self, task: Task, policy: Policy, criterion: str) -> dict[str, list[int]]:
        """Group → its channels that a policy removes."""
        return self._pruning(task).least_important(policy.pruning, criterion) if policy.pruning else {}

    def compress(
        self, task: Task, policy: Policy, criterion: str, removed: Mapping[str, Sequence[int]] | None = None
    ) -> Candidate:
        """Prune physically, then simulate the policy's bits and zeros."""
        model = self._graph(task)
        if policy.pruning:
            removed = self.removed(task, policy, criterion) if removed is None else removed
            model = remove_channels(model, self._pruning(task).groups, removed)
        macs = {layer.name: layer.macs for layer in layers_of(model, self._example(task, 1))}
        return Candidate(simulate(model, policy, owned=bool(policy.pruning)), policy, macs, removed or {})

    def fine_tune(
        self,
        task: Task,
        candidate: Candidate,
        settings: TuneSettings,
        progress: Progress,
        heir_of: SharedTraining | None = None,
    ) -> int:
        """Train the candidate in place and re-estimate its batch-norm statistics.

        An heir has a rate of its own, and needs no compiled step of its own.
        """
        original = self._graph(task)
        if has_lost_much(candidate, heir_of is not None) and not settings.learning_rate:
            settings = replace(settings, learning_rate=pruned_rate(task, candidate.model))
        if isinstance(heir_of, ElasticTraining) and heir_of.can_tune(candidate, settings):
            epochs = heir_of.tune(candidate, settings, progress)
            reestimate_as_trained(candidate.model, task)
            return epochs
        gradual = gradual_epochs(settings) if candidate.removed and task.fine_tune is None else 0
        share = gradual / settings.epochs
        if gradual:
            first = part(progress, 0, share)
            pruned = prune_gradually(task, original, self._pruning(task), candidate.removed, settings, first)
            candidate.model = simulate(pruned, candidate.policy)
        rest = replace(settings, epochs=settings.epochs - gradual)
        return gradual + fine_tune(task, candidate.model, original, rest, part(progress, share, 1))

    def share(self, task: Task, criterion: str, settings: TuneSettings) -> SharedTraining:
        """A training whose weights every policy can inherit."""
        return ElasticTraining(task, self._graph(task), self._pruning(task), self._example(task, 1), criterion, settings)

    def reestimate(self, task: Task, candidate: Candidate) -> None:
        """Take batch-norm statistics and input ranges anew."""
        reestimate(candidate.model, task)

    def predict(self, task: Task, candidate: Candidate, batches: Iterable[Inputs]) -> Any:
        """The simulation's outputs for batches of inputs."""
        return as_prediction(predicted(candidate.model, batches))

    def save(self, candidate: Candidate, path: Path) -> None:
        """Write the candidate's weights as safetensors."""
        save_weights(candidate.model, path)

    def load(self, candidate: Candidate, path: Path) -> None:
        """Read what `save` wrote."""
        load_weights(candidate.model, path)

    def to_openvino(self, task: Task, candidate: Candidate, batch: int) -> Converted:
        """Convert a plain copy whose kernels lie on their grids."""
        plain, codes = as_images(*settle(candidate.model))
        ranges = input_ranges(candidate.model)
        return Converted(converted(plain, self._example(task, batch)), codes, input_ranges=ranges)
