"""The picture of sensitivities: layers × choices, the darker the more a choice alone hurts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from autocompress.report.picture import Picture

if TYPE_CHECKING:
    from autocompress.analysis import Analysis

CELL_INCHES = (0.85, 0.3)
MARGIN_INCHES = (3.4, 1.6)
DARK = 0.55
"""Share of the colour scale from which on the writing is white."""


def plot_analysis(analysis: Analysis) -> Figure:
    """Loss of the metric for each choice alone, with the estimated latency that it saves written into the cell."""
    rows = list(dict.fromkeys(choice.subject for choice in analysis.choices))
    columns = list(dict.fromkeys(choice.choice for choice in analysis.choices))
    losses = np.full((len(rows), len(columns)), np.nan)
    for choice in analysis.choices:
        losses[rows.index(choice.subject), columns.index(choice.choice)] = max(choice.loss, 0.0)
    width, height = (cell * n + margin for cell, n, margin in zip(CELL_INCHES, losses.T.shape, MARGIN_INCHES, strict=True))
    figure = Picture(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(losses, aspect="auto", cmap="YlOrBr", vmin=0.0)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    most = float(np.nanmax(losses, initial=0.0))
    for choice in analysis.choices:
        place = rows.index(choice.subject), columns.index(choice.choice)
        color = "white" if losses[place] > DARK * most else "black"
        axes.text(place[1], place[0], f"{choice.latency_saved:+.0%}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axes, label=f"{analysis.metric} lost without fine-tuning", pad=0.01)
    axes.set_title(f"{analysis.name}: each choice alone; written: latency saved (estimated)", loc="left", fontsize=9)
    return figure
