"""What a search shows in a terminal: the stage, the best so far, what is left; plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from autocompress.record import Stage, State, TrialRecord
from autocompress.watch import Watcher

STAGE_WORDS = {
    Stage.COMPRESS: "compressing",
    Stage.EXPORT_UNTRAINED: "exporting untrained",
    Stage.MEASURE_UNTRAINED: "measuring untrained",
    Stage.INHERIT: "inheriting",
    Stage.FINE_TUNE: "fine-tuning",
    Stage.EXPORT: "exporting",
    Stage.MEASURE: "measuring",
    Stage.EVALUATE: "scoring",
}
STATE_COLORS = {State.COMPLETE: "green", State.OVER_BUDGET: "yellow", State.FAILED: "red", State.RUNNING: "white"}


class ConsoleWatcher(Watcher):
    """Shows a search on a rich console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[best]}"),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the bar while the search runs."""
        with self._progress:
            self._task = self._progress.add_task("starting", total=1.0, best="", left="")
            yield

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stage(self, record: TrialRecord, stage: Stage) -> None:
        """Show which trial does what."""
        self._update(description=f"trial {record.number} ({record.source}): {STAGE_WORDS[stage]}", completed=0.0)

    def progress(self, fraction: float) -> None:
        """Move the bar."""
        self._update(completed=fraction)

    def trial(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Print how a trial ended."""
        self.console.print(_line(record), highlight=False, soft_wrap=True)
        if best and best.latency and best.accuracy_valid is not None:
            self._update(best=f"best {best.accuracy_valid:.4f} at {best.latency.ms:.4g} ms")

    def left(self, trials: int | None, seconds: float | None) -> None:
        """Show what is left."""
        words = [
            f"{trials} trials left" if trials is not None else "",
            f"{_minutes(seconds)} left" if seconds is not None else "",
        ]
        self._update(left=", ".join(filter(None, words)))

    def final(self, records: Sequence[TrialRecord]) -> None:
        """Say that the front is measured again."""
        self._update(description=f"measuring {len(records)} models again, side by side", completed=0.0)

    def _update(self, **fields: object) -> None:
        if self._task is not None:
            self._progress.update(self._task, **fields)  # type: ignore[arg-type]


@contextmanager
def printing() -> Iterator[Watcher]:
    """A watcher that shows a search on standard output."""
    watcher = ConsoleWatcher(Console())
    with watcher.live():
        yield watcher


@contextmanager
def probing(console: Console) -> Iterator[Callable[[float, str], None]]:
    """A bar while the target is being probed."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda part, words: progress.update(task, completed=part, description=f"Probing the target, once: {words}")


def front_table(front: pd.DataFrame, metric: str, has_test: bool) -> Table:
    """The front as a table for people; fits into 80 columns."""
    table = Table(
        title="The measured front", title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False, collapse_padding=True
    )
    for column in ("trial", "source", metric, *(("test",) if has_test else ()), "ms", "±", "speed-up", "vs f32", "kB", "budget"):
        table.add_column(column, justify="left" if column == "source" else "right", no_wrap=True)
    for row in front.to_dict("records"):
        half_interval = (row["latency_high_ms"] - row["latency_low_ms"]) / 2
        table.add_row(
            str(row["trial"]),
            row["source"].removeprefix("baseline:").removeprefix("workflow:"),
            f"{row['accuracy_valid']:.4f}",
            *((f"{row['accuracy_test']:.4f}",) if has_test else ()),
            f"{row['latency_ms']:.4g}",
            f"{half_interval / row['latency_ms']:.1%}",
            f"{row['speedup']:.2f}×",
            f"{row['speedup_f32']:.2f}×",
            f"{row['size_bytes'] / 1000:.0f}",
            "within" if row["within_budget"] else "over",
        )
    return table


def _line(record: TrialRecord) -> str:
    latency = f"{record.latency.ms:.4f} ms, {1 / record.latency.ratio:.2f}×" if record.latency else ""
    score = f"{record.accuracy_valid:.4f}" if record.accuracy_valid is not None else ""
    state = f"[{STATE_COLORS[record.state]}]{record.state:<11}[/]"
    what = escape(record.error or "") if record.state == State.FAILED else f"{score:<7} {latency}"
    where = f" in {record.stage}" if record.state == State.FAILED else ""
    return f"trial {record.number:>3}  {record.source:<20} {state}{where} {what}  [dim]{record.total_seconds:.1f} s[/]"


def _minutes(seconds: float) -> str:
    return f"{max(0, int(seconds)) // 60}:{max(0, int(seconds)) % 60:02d}"
