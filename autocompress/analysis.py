"""What each choice of a space costs in accuracy when it is made alone, beside the latency that it buys."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.config import SearchConfig
from autocompress.decision import Decision
from autocompress.foresight import Foresight
from autocompress.policy import Policy
from autocompress.setup import open_space
from autocompress.space import SearchSpace
from autocompress.strategy.sensitivity import alone
from autocompress.task import Task
from autocompress.watch import Watcher


@dataclass(frozen=True)
class Choice:
    """One choice, made alone.

    Attributes:
        decision: "prune", "bits" or "sparsity".
        subject: the group or layer.
        choice: in words.
        score: the task's metric without fine-tuning, on training samples; NaN where the candidate cannot be built.
        loss: how much worse that is than the original's score on the same samples.
        latency_saved: estimated, relative to the original.
        bytes_saved: of the weights.
    """

    decision: str
    subject: str
    choice: str
    score: float
    loss: float
    latency_saved: float
    bytes_saved: int


@dataclass(frozen=True)
class Analysis:
    """All choices of a space.

    Attributes:
        name: of the task.
        metric: its metric.
        original: score of the original on the same training samples.
        choices: in the order of the model.
    """

    name: str
    metric: str
    original: float
    choices: tuple[Choice, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "choices": [vars(choice) for choice in self.choices]}

    def plot(self, out: str | Path) -> None:
        """Write the heat map of layers × choices."""
        from autocompress.report.heat_map import plot_analysis

        plot_analysis(self).savefig(out)


def analyze(task: Task, config: SearchConfig, watcher: Watcher | None = None) -> Analysis:
    """Score every choice of the configuration's space alone; scores and layer times are remembered.

    Raises:
        SpaceError: the space does not fit the model.
        TaskError: the model does not run.
        TargetError: the device does not exist or cannot time the layers.
    """
    watcher = watcher or Watcher()
    bench, space, fingerprint = open_space(task, config, watcher)
    with closing(bench.framework):
        return _analyzed(task, space, Foresight(bench, space, fingerprint, watcher))


def _analyzed(task: Task, space: SearchSpace, foresight: Foresight) -> Analysis:
    probed = foresight.sensitivities()
    whole = foresight.predictor.estimate(Policy())
    found = []
    for decision in space.decisions:
        for i, score in enumerate(probed.scores[decision.name]):
            policy = alone(decision, i)
            if not policy.is_identity:
                estimate = foresight.predictor.estimate(policy)
                loss = task.scorer.gain(probed.original) - task.scorer.gain(score)
                saved = 1 - estimate.latency_ratio / whole.latency_ratio
                found.append(
                    Choice(
                        decision.kind,
                        decision.subject,
                        in_words(decision, i),
                        score,
                        loss,
                        saved,
                        whole.size_bytes - estimate.size_bytes,
                    )
                )
    return Analysis(task.name, task.scorer.name, probed.original, tuple(found))


def in_words(decision: Decision, choice: int) -> str:
    """A choice for people: "-50%", "whole", "4/8 bits", "2:4 zeros"."""
    value = decision.choices[choice]
    if decision.kind == "prune":
        return "whole" if value == 1 else f"-{value:.0%}"
    if decision.kind == "bits":
        return f"{value[0]}/{value[1]} bits"
    return f"{value if isinstance(value, str) else f'{value:.0%}'} zeros"
