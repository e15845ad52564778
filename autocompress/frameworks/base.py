"""The protocol behind which PyTorch and Keras stand. Everything above speaks to a model only through it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.data import Inputs
from autocompress.errors import TaskError
from autocompress.policy import Policy
from autocompress.structure import Structure

if TYPE_CHECKING:  # openvino is not needed to name a framework
    from autocompress.target.precision import Converted
    from autocompress.task import Task

Arithmetic = Literal["f32", "fastest"]
PruningSchedule = Literal["one_shot", "linear", "exponential"]
Binarization = Literal["xnor", "dorefa"]
Progress = Callable[[float], None]
"""Called with the finished fraction of a fine-tuning."""
GRADIENT_NORM, SHARED_GRADIENT_NORM = 5.0, 1.0
"""To which the gradients of a step are scaled down: of one candidate, and of a shared training, in which small policies would
speak loudest."""
FEATURES_ARE_WHOLE = "features are compared at the sizes of the whole model"


@dataclass(frozen=True)
class TuneSettings:
    """How long and how hard a candidate is fine-tuned; see `Task` and `FineTuning` for the meaning of the fields.

    `gradient_norm` is the norm to which the gradients of a step are scaled down, but for those of a user's Keras optimizer.
    `deadline` is the `time.monotonic()` for which a training is shortened, where its rates are not the user's.
    """

    epochs: int
    learning_rate: float | None
    distillation: float
    seed: int = 0
    feature_distillation: float = 0.0
    binarization: Binarization = "xnor"
    arithmetic: Arithmetic = "f32"
    stop_hopeless: bool = False
    pruning_schedule: PruningSchedule = "one_shot"
    gradient_norm: float = GRADIENT_NORM
    deadline: float | None = None


@dataclass
class Candidate:
    """A physically pruned copy of the model in which low bits and zeros are simulated.

    Attributes:
        model: the framework's model.
        policy: what was done to it.
        macs: multiply-accumulates of its layers for one sample, by layer name.
        removed: group name → the channels of the original that were removed, ascending.
    """

    model: Any
    policy: Policy
    macs: dict[str, int]
    removed: Mapping[str, Sequence[int]] = field(default_factory=dict)


class SharedTraining(Protocol):
    """The elastic model: one set of weights, trained in cycles under a policy that changes with every step.

    Attributes:
        masked_because: why no step can leave out the channels that go; None where some can. Known once it has begun.
    """

    masked_because: str | None

    def begin(self, epochs: int) -> None:
        """Start a cycle of some epochs: the weights stay, the learning rate rises and falls anew."""
        ...

    def epoch(self, policies: Iterator[Policy], progress: Progress) -> None:
        """One pass over the training data, a policy for each step.

        Raises:
            DivergedError: the loss is not a number.
        """
        ...

    def candidate(self, policy: Policy, removed: Mapping[str, Sequence[int]] | None = None) -> Candidate:
        """The model under a policy, pruned physically, with the weights of now. Its statistics are still to be taken."""
        ...

    def save(self, path: Path) -> None:
        """Write all that the present cycle needs to go on, whole or not at all."""
        ...

    def load(self, path: Path) -> None:
        """Read what `save` wrote, after `begin` with the same number of epochs.

        Raises:
            ModelError: the file is damaged or of another model.
        """
        ...


class Framework(Protocol):
    """What a framework does for a task's model. The task's own model is never changed.

    Attributes:
        name: of the framework.
    """

    name: str

    def isolated(self, task: Task, say: Callable[[str], None]) -> Framework:
        """The framework for the trials of a task, which may do its work in a process of its own.

        Args:
            task: of the trials.
            say: told why they run in this process, where they better would not.
        """
        ...

    def close(self) -> None:
        """End that process. What is called afterwards may fail."""
        ...

    def digest(self, task: Task) -> str:
        """A hash of the model's architecture and weights."""
        ...

    def architecture(self, task: Task) -> dict[str, str]:
        """Every part of the model by name, in words: models whose words are equal take each other's weights."""
        ...

    def inspect(self, task: Task) -> Structure:
        """Layers and proven dependency groups."""
        ...

    def importance(self, task: Task, criterion: str) -> dict[str, NDArray[np.float64]]:
        """Group name → importance of each of its channels, in the original's order.

        Numbers of two groups have no common scale. Removing channels by a ratio removes those of the smallest importance.
        """
        ...

    def compress(
        self, task: Task, policy: Policy, criterion: str, removed: Mapping[str, Sequence[int]] | None = None
    ) -> Candidate:
        """Prune physically, then simulate the policy's bits and zeros.

        Args:
            task: with the original model.
            policy: what is done to it.
            criterion: how channels are ranked.
            removed: the channels to remove, from an earlier candidate of the same policy; they are then not ranked again.
        """
        ...

    def fine_tune(
        self,
        task: Task,
        candidate: Candidate,
        settings: TuneSettings,
        progress: Progress,
        heir_of: SharedTraining | None = None,
    ) -> int:
        """Train the candidate in place and re-estimate its normalization statistics.

        Args:
            task: with data and loss.
            candidate: of the task's model.
            settings: how long and how hard.
            progress: told the finished fraction.
            heir_of: the training whose weights the candidate still has as it inherited them; its training may start from there,
                and has less to make up for.

        Returns:
            How many epochs it was trained for: those of the settings, or fewer for their deadline.

        Raises:
            DivergedError: the loss is not a number.
            HopelessError: the settings ask for an early end, and the first epoch was in vain.
        """
        ...

    def share(self, task: Task, criterion: str, settings: TuneSettings) -> SharedTraining:
        """A training whose weights every policy can inherit; channels are ranked by the criterion, of the original."""
        ...

    def reestimate(self, task: Task, candidate: Candidate) -> None:
        """Take normalization statistics and input ranges anew from training and calibration data, in place; no weight is trained.

        Ranges that were learned stay as they are.
        """
        ...

    def predict(self, task: Task, candidate: Candidate, batches: Iterable[Inputs]) -> Any:
        """The simulation's outputs for batches of inputs: one NumPy array, or a tuple of arrays in the model's order.

        They have the form of `target.evaluate.predict`, which runs the deployed model, so the task's metric takes either.
        """
        ...

    def save(self, candidate: Candidate, path: Path) -> None:
        """Write the candidate's weights, without pickle."""
        ...

    def load(self, candidate: Candidate, path: Path) -> None:
        """Read what `save` wrote into a candidate of the same policy.

        Raises:
            ModelError: the file is damaged or of another model.
        """
        ...

    def to_openvino(self, task: Task, candidate: Candidate, batch: int) -> Converted:
        """Convert a copy with its weights on their grids, heavy nodes named after the layers.

        Raises:
            ConversionError: OpenVINO cannot convert the model.
        """
        ...


def framework_of(model: Any) -> Framework:
    """The framework of a model, imported only if the model is one of its own.

    Raises:
        TaskError: no framework knows the model.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        from autocompress.frameworks.torch.framework import TorchFramework

        return TorchFramework()
    keras = sys.modules.get("keras")
    if keras is not None and isinstance(model, keras.Model):
        from autocompress.frameworks.keras.framework import KerasFramework

        return KerasFramework()
    kind = f"{type(model).__module__}.{type(model).__name__}"
    raise TaskError("A task's model is a torch.nn.Module or a keras.Model", kind)
