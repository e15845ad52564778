"""The picture of a front."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from autocompress.metrics import Metric
from autocompress.report.picture import Picture

if TYPE_CHECKING:
    from autocompress.result import Result

FRONT, BASELINE, OTHER, BUDGET = "#1b6ca8", "#c8553d", "#b8bec5", "#2a9d4e"
SIZE_COLUMNS = {"size": "size_bytes", "compressed_size": "compressed_bytes"}
SIZE_INCHES, DPI = (8.0, 5.0), 150
SQUARE_PIXELS = 14
PLACES = (((6, -12), "left"), ((6, 6), "left"), ((-6, 6), "right"), ((-6, -12), "right"))
"""Of a name beside its square, in points."""
OF_NO_USE = 4.0
"""What loses so many times as much as the worst baseline is not drawn."""


def plot_front(result: Result) -> Figure:
    """Accuracy over latency: the front with its 95 % intervals, the baselines, the budget, dominated trials faint."""
    trials, front = result.trials, result.front
    complete, left_out = _worth_showing(trials[trials["accuracy_valid"].notna()], result.metric)
    front = front[front["trial"].isin(complete["trial"])]
    others = complete[~complete["trial"].isin(front["trial"])]
    figure = Picture(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.scatter(others["latency_ms"], others["accuracy_valid"], s=18, color=OTHER, label="dominated trials", zorder=2)
    _draw_front(axes, front, joined=len(result.objectives) == 2)
    if len(result.objectives) > 2 and front["size_bytes"].nunique() > 1:
        _color_by_size(figure, axes, front, SIZE_COLUMNS[result.objectives[2]])
    baselines = complete[complete["source"].str.startswith("baseline:")]
    _draw_baselines(axes, baselines)
    _limit(axes, complete, result.budget_ms)
    if result.budget_ms is not None:
        _draw_budget(axes, result.budget_ms)
    target = result.config.target
    threads = f"{target.threads} thread{'s' * (target.threads > 1)}"
    time = "time per request at full load" if target.is_for_throughput else "latency of one request"
    axes.set_xlabel(f"{time} in ms (batch {target.batch}, {threads}; logarithmic)")
    axes.set_ylabel(f"{result.metric.name} on validation data, scored on the IR")
    title = f"{result.run['name']}: {len(result.front)} models on the front of {len(trials)} trials"
    axes.set_title(f"{title} ({left_out} ruined and left out)" if left_out else title, loc="left", fontsize=11)
    axes.grid(alpha=0.25, lw=0.6)
    axes.legend(loc="lower right" if result.metric.direction == "maximize" else "upper right", fontsize=8)
    _name_baselines(figure, axes, baselines)
    return figure


def show_front(result: Result) -> None:
    """Open the picture in a window and wait until it is closed."""
    from matplotlib import pyplot  # chooses a window system, which nothing else here needs

    manager = pyplot.new_figure_manager(1, FigureClass=lambda *_, **__: plot_front(result))
    manager.show()
    pyplot.show()


def _worth_showing(complete: pd.DataFrame, metric: Metric) -> tuple[pd.DataFrame, int]:
    """The trials that lose at most a few times what the worst baseline loses, and how many others there are.

    A ruined model can be on the front, as the fastest one; its score would squeeze all others into a corner of the picture.
    """
    loss = complete["accuracy_valid"].map(lambda score: -metric.gain(score))
    baselines = loss[complete["source"].str.startswith("baseline:")]
    if baselines.nunique() < 2:
        return complete, 0
    shown = loss <= baselines.min() + OF_NO_USE * (baselines.max() - baselines.min())
    return complete[shown], int((~shown).sum())


def _draw_front(axes: Axes, front: pd.DataFrame, joined: bool) -> None:
    """Points with intervals, joined by a line where accuracy and latency are the only objectives."""
    intervals = [front["latency_ms"] - front["latency_low_ms"], front["latency_high_ms"] - front["latency_ms"]]
    axes.errorbar(
        front["latency_ms"],
        front["accuracy_valid"],
        xerr=[interval.clip(lower=0) for interval in intervals],
        fmt="o-" if joined else "o",
        color=FRONT,
        markersize=5,
        lw=1.2,
        capsize=2.5,
        elinewidth=1,
        label="front, 95 % interval",
        zorder=3,
    )


def _color_by_size(figure: Figure, axes: Axes, front: pd.DataFrame, column: str) -> None:
    """The third objective, as the colour of the points."""
    kilobytes = front[column] / 1000
    points = axes.scatter(front["latency_ms"], front["accuracy_valid"], c=kilobytes, cmap="viridis", norm="log", s=42, zorder=3.5)
    label = f"{column.replace('_bytes', '')} in kB (logarithmic)"
    bar = figure.colorbar(points, ax=axes, label=label, format="{x:.0f}", pad=0.01)
    bar.ax.yaxis.set_minor_formatter("{x:.0f}")


def _draw_baselines(axes: Axes, baselines: pd.DataFrame) -> None:
    latency, accuracy = baselines["latency_ms"], baselines["accuracy_valid"]
    axes.scatter(latency, accuracy, marker="s", s=46, facecolors="none", edgecolors=BASELINE, lw=1.4, label="baselines", zorder=4)


def _name_baselines(figure: Figure, axes: Axes, baselines: pd.DataFrame) -> None:
    """Names beside the squares, each where it covers no square and no other name, as long as there is such a place."""
    figure.draw_without_rendering()  # until then nobody knows where anything is
    points = list(zip(baselines["latency_ms"], baselines["accuracy_valid"], strict=True))
    taken = [Bbox([place, place]).padded(SQUARE_PIXELS / 2) for place in map(axes.transData.transform, points)]
    for source, point in zip(baselines["source"], points, strict=True):
        label = source.removeprefix("baseline:")
        places = [
            axes.annotate(label, point, offset, textcoords="offset points", ha=side, fontsize=8, color=BASELINE)
            for offset, side in PLACES
        ]
        boxes = [place.get_window_extent() for place in places]
        best = next((i for i, box in enumerate(boxes) if not any(map(box.overlaps, taken))), 0)
        taken.append(boxes[best])
        for i, place in enumerate(places):
            if i != best:
                place.remove()


def _draw_budget(axes: Axes, budget_ms: float) -> None:
    low, high = axes.get_xlim()
    axes.axvline(budget_ms, color=BUDGET, lw=1.2, label=f"budget {budget_ms:.3g} ms")
    axes.axvspan(budget_ms, high, color=OTHER, alpha=0.13, lw=0, zorder=0)
    axes.set_xlim(low, high)


def _limit(axes: Axes, complete: pd.DataFrame, budget_ms: float | None) -> None:
    """All latencies and the budget, with room for labels."""
    if complete.empty:
        return
    latencies = [*complete["latency_ms"], *([budget_ms] if budget_ms else [])]
    axes.set_xlim(min(latencies) * 0.9, max(latencies) * 1.3)
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter("{x:.3g}")
    axes.xaxis.set_minor_formatter("{x:.2g}")
    axes.tick_params(axis="x", which="both", labelsize=8, length=3.5)
