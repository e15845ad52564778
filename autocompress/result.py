"""A finished (or interrupted) run, read from its folder. Neither torch, tensorflow nor openvino is needed to look at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress import baselines
from autocompress.budget import Drop
from autocompress.config import Objective, SearchConfig, load_config
from autocompress.errors import ConfigError, RunFolderError
from autocompress.front import eligible, fastest, most_accurate
from autocompress.metrics import Metric
from autocompress.record import State, TrialRecord
from autocompress.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Choice:
    """One model of a run."""

    record: TrialRecord
    folder: RunFolder

    def export(self, out: str | Path) -> Path:
        """Write the model as a bundle.

        Raises:
            BundleError: `out` is not empty, or the model is not on disk any more.
        """
        from autocompress.bundle import write_bundle  # needs openvino

        write_bundle(self.folder, self.record, Path(out))
        return Path(out)


class Result:
    """A run.

    Args:
        path: the run folder.

    Raises:
        RunFolderError: it holds no run.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder = RunFolder(path)
        if not self.folder.exists:
            raise RunFolderError("A run folder holds run.json", str(path), "Make one with: autocompress search TASK --out DIR.")
        self.run: dict[str, Any] = self.folder.read_json("run.json")
        self.config: SearchConfig = load_config(self.folder.file("config.yaml"), {})
        self.records = self.folder.records()
        self.objectives: list[Objective] = self.run["objectives"]
        self.budget_ms: float | None = self.run["budget_ms"]

    @cached_property
    def metric(self) -> Metric:
        """The metric's name and direction; it cannot be computed from a run folder alone."""
        if self.config.recorded is None:
            raise RunFolderError("A run's config.yaml records its metric", str(self.folder.path))
        direction: Any = self.config.recorded.direction
        return Metric(self.config.recorded.metric, direction, _not_here)

    @property
    def front(self) -> pd.DataFrame:
        """One row per non-dominated model, measured, the fastest first."""
        from autocompress.report.tables import front_table

        kept = [record for record in self.records if self.folder.has_model(record.number)]
        return front_table(kept, self.objectives, self.metric, self.budget_ms)

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial, every state."""
        from autocompress.report.tables import trials_table

        return trials_table(self.records, self.budget_ms)

    def plot(self, out: str | Path | None = None) -> Figure:
        """The front with its intervals, the budget and the baselines; saved where `out` is given."""
        from autocompress.report.plots import plot_front

        figure = plot_front(self)
        if out is not None:
            figure.savefig(out)
        return figure

    def best(self, max_accuracy_drop: str | float | None = None, prefer: str = "accuracy") -> Choice:
        """The most accurate (or `prefer="latency"`: the fastest) model within the budget and the allowed drop.

        Raises:
            RunFolderError: no model qualifies.
        """
        choose: dict[str, Callable[..., TrialRecord | None]] = {"accuracy": most_accurate, "latency": fastest}
        if prefer not in choose:
            raise ConfigError("prefer is accuracy or latency", repr(prefer))
        drop = self.config.accuracy_drop if max_accuracy_drop is None else Drop.parse(max_accuracy_drop)
        original = next((r.accuracy_valid for r in self.records if r.source == baselines.ORIGINAL), None)
        kept = [record for record in self.records if self.folder.has_model(record.number)]
        found = choose[prefer](eligible(kept, self.budget_ms, drop, original, self.metric, self.config.max_bytes), self.metric)
        if found is None:
            limits = [f"{self.budget_ms:.4g} ms" if self.budget_ms else "", f"a drop of {drop.value:g}" if drop else ""]
            limits += [f"{self.config.max_size}" if self.config.max_size else ""]
            raise RunFolderError(
                "A chosen model keeps the budget and the allowed drop",
                f"no model within {' and '.join(filter(None, limits)) or 'the run'}",
                "Search longer, or allow more.",
            )
        return Choice(found, self.folder)

    def trial(self, number: int) -> Choice:
        """A complete trial by its number.

        Raises:
            RunFolderError: there is none of that number.
        """
        for record in self.records:
            if record.number == number and record.state == State.COMPLETE:
                return Choice(record, self.folder)
        complete = ", ".join(str(record.number) for record in self.records if record.state == State.COMPLETE)
        raise RunFolderError("A trial to export is a complete one", str(number), f"Complete: {complete or 'none'}.")


def _not_here(predictions: Any, targets: Any) -> float:
    raise NotImplementedError("A run folder holds the metric's name, not its function.")
