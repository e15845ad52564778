"""An explanation for people: a table, lines of findings, and a picture of where the time goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autocompress.errors import ConfigError
from autocompress.report.picture import Picture

if TYPE_CHECKING:
    from autocompress.target.executed import Layer
    from autocompress.target.explain import Explanation, Finding

SHOWN_LAYERS, DRAWN_LAYERS = 20, 10
NAME_WIDTH = 27
SHORTEST_NAME = 16
"""Characters of a layer's name that stay on one line in a narrow terminal."""
INTEGER, BINARY, FLOAT, CONVERSION, OTHER, OVERHEAD = "#1b6ca8", "#2a9d4e", "#c8553d", "#e0a458", "#b8bec5", "#e3e6ea"
FAULT = "#a4161a"
COLORS = {"int8": INTEGER, "binary": BINARY, "float": FLOAT, "fused": OTHER, "absent": OTHER}
DPI = 150
INSIDE_SHARE = 0.15
"""A part of the bar that is narrower has its label above it."""
LETTER_WIDTH = 0.0105
"""Of a label, as a fraction of the picture's width."""


def explanation_table(explanation: Explanation, every_layer: bool = False) -> Group:
    """The layers, the findings and the summary; fits into 100 columns.

    Args:
        explanation: what to show.
        every_layer: all layers; otherwise the 20 most expensive ones and every one that a fault names, in the graph's order.
    """
    numbers = {id(finding): number for number, finding in enumerate(explanation.findings, 1)}
    shown = explanation.layers if every_layer else _important(explanation)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("layer", overflow="fold", min_width=SHORTEST_NAME)
    for column in ("bits / levels", "ran", "kernel"):
        table.add_column(column, no_wrap=column in ("bits / levels", "ran"))  # in a narrow terminal the others give way
    for column in ("time", "conv.", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for layer in shown:
        marks = " ".join(_mark(finding, numbers[id(finding)]) for finding in explanation.findings_of(layer.name))
        table.add_row(*_cells(layer), marks)
    hidden = [layer for layer in explanation.layers if layer not in shown]
    if hidden:
        share, served = sum(layer.share for layer in hidden), sum(layer.conversions for layer in hidden)
        name = f"[dim]{len(hidden)} more layer{'s' * (len(hidden) > 1)} (--all)[/]"
        table.add_row(name, "", "", "", _percent(share), _percent(served, ""), "")
    table.add_section()
    unserved = sum(conversion.share for conversion in explanation.conversions if not conversion.layers)
    if unserved:
        table.add_row("[dim]other conversions[/]", "", "", "", "", _percent(unserved), "")
    table.add_row("[dim]other operations[/]", "", "", "", _percent(explanation.other), "", "")
    table.add_row("[dim]overhead of the call[/]", "", "", "", _percent(explanation.overhead), "", "")
    return Group(table, *_lines(explanation), _summary(explanation))


def plot_explanation(explanation: Explanation, path: Path, title: str) -> None:
    """Draw where the time goes: one bar for the whole request, and one for each of the ten most expensive layers.

    Raises:
        ConfigError: the file cannot be written, or its suffix names no kind of picture.
    """
    try:
        figure_of(explanation, title).savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError("A picture is written to a .png or .svg file in an existing folder", f"{path}: {error}") from error


def figure_of(explanation: Explanation, title: str) -> Picture:
    """The same as a figure."""
    layers = sorted((one for one in explanation.layers if one.share), key=lambda one: -one.share - one.conversions)[:DRAWN_LAYERS]
    heights = [0.95, 0.35 + 0.33 * max(1, len(layers))]
    figure = Picture(figsize=(8.0, 0.75 + sum(heights)), dpi=DPI, layout="constrained")
    whole, single = figure.subplots(2, 1, height_ratios=heights)
    _draw_whole(whole, explanation)
    _draw_layers(single, layers, explanation)
    figure.suptitle(f"{title}: {explanation.latency_ms:.3g} ms a request", x=0.01, ha="left", fontsize=11)
    return figure


# The table


def _important(explanation: Explanation) -> list[Layer]:
    dearest = sorted(explanation.layers, key=lambda layer: -(layer.share + layer.conversions))[:SHOWN_LAYERS]
    named = {name for finding in explanation.faults for name in finding.layers}
    return [layer for layer in explanation.layers if layer in dearest or layer.name in named]


def _cells(layer: Layer) -> tuple[Text | str, ...]:
    color = {"int8": "cyan", "binary": "green", "float": "red" if layer.lost_integer else ""}.get(layer.precision, "dim")
    kernel = layer.kernel.primitive if layer.kernel else "–"
    shares = _percent(layer.share), _percent(layer.conversions, "")
    return _cell(_short(layer.name)), escape(_asked(layer)), Text(layer.ran, color), _cell(kernel), *shares


def _cell(words: str) -> Text:
    """One line, cut off where the column is narrower."""
    return Text(words, no_wrap=True, overflow="ellipsis")


def _asked(layer: Layer) -> str:
    """Bits of the weights and levels of the input, with the constant's type where it is packed or halved."""
    asked = layer.asked
    short = f" ({asked.storage})" if asked.storage not in ("f32", "i8", "u8") else ""
    return f"{asked.weights}{short}" + (f" / {asked.levels}" if asked.levels and asked.weights != "float" else "")


def _short(name: str) -> str:
    """Beginning and end of a long name."""
    end = NAME_WIDTH // 3
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - end - 1]}…{name[-end:]}"


def _percent(share: float, nothing: str = "0") -> str:
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%" if share else nothing


def _mark(finding: Finding, number: int) -> str:
    return f"[bold red]✗{number}[/]" if finding.severity == "fault" else f"[dim]·{number}[/]"


def _lines(explanation: Explanation) -> Iterator[Text]:
    for number, finding in enumerate(explanation.findings, 1):
        cost = f" ({finding.share:.0%} of the time)" if finding.share and finding.share >= 0.01 else ""
        mark = f"{_mark(finding, number)} [bold]{finding.reason}[/]{cost}: "
        yield Text.from_markup(f"{mark}{escape(finding.words)}. {escape(finding.remedy)}")


def _summary(explanation: Explanation) -> Text:
    color = "green" if explanation.healthy else "red"
    text = Text.from_markup(f"[{color}]{escape(explanation.summary)}[/]")
    return text.append(f" Times below the clock's 1 µs a node: up to {explanation.below_resolution:.1%}.", style="dim")


# The picture


def _parts(explanation: Explanation) -> list[tuple[str, float, str]]:
    """Name, share and colour of each part of a request."""
    served = sum(conversion.share for conversion in explanation.conversions)
    parts = [
        ("integer layers", explanation.share_of("int8"), INTEGER),
        ("binary layers", explanation.share_of("binary"), BINARY),
        ("float layers", explanation.share_of("float"), FLOAT),
        ("conversions", served, CONVERSION),
        ("other operations", explanation.other + explanation.share_of("fused"), OTHER),
        ("overhead of the call", explanation.overhead, OVERHEAD),
    ]
    return [part for part in parts if part[1] >= 0.001]


def _draw_whole(axes: Axes, explanation: Explanation) -> None:
    """Wide parts have their label inside, narrow ones above, moved apart so that none covers another."""
    left, narrow = 0.0, []
    for name, share, color in _parts(explanation):
        axes.barh(0, share, left=left, color=color, height=0.8, edgecolor="white", lw=1)
        middle, ink = left + share / 2, "#222222" if color in (CONVERSION, OTHER, OVERHEAD) else "white"
        if share >= INSIDE_SHARE:
            axes.text(middle, 0, f"{name}\n{share:.0%}", ha="center", va="center", fontsize=8, color=ink)
        else:
            narrow.append((f"{name} {share:.1%}", middle))
        left += share
    for (label, middle), place in zip(narrow, _apart(narrow), strict=True):
        line = {"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(label, (middle, 0.4), (place, 0.68), ha="center", fontsize=8, color="#444444", arrowprops=line)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.42, 1.0)
    axes.axis("off")


def _apart(labels: list[tuple[str, float]]) -> list[float]:
    """Where the labels' middles lie: as near as possible to what they label, in order, without touching, within the axes."""
    halves = [LETTER_WIDTH * len(label) / 2 for label, _ in labels]
    places = [middle for _, middle in labels]
    edge = 0.0
    for index, half in enumerate(halves):
        places[index] = max(places[index], edge + half)
        edge = places[index] + half
    edge = 1.0
    for index, half in reversed(list(enumerate(halves))):
        places[index] = min(places[index], edge - half)
        edge = places[index] - half
    return places


def _draw_layers(axes: Axes, layers: list[Layer], explanation: Explanation) -> None:
    """The most expensive on top, with their conversions behind them."""
    rows = range(len(layers))
    axes.barh(rows, [one.share for one in layers], color=[COLORS[one.precision] for one in layers], height=0.72)
    served = [one.conversions for one in layers]
    axes.barh(rows, served, left=[one.share for one in layers], color=CONVERSION, height=0.72)
    for row, layer in zip(rows, layers, strict=True):
        label = f" {layer.share:.1%}"
        label += f" + {layer.conversions:.1%} conversions" if layer.conversions >= 0.001 else ""
        label += f"   {_asked(layer)} → {layer.ran}" if _asked(layer) != layer.ran else f"   {layer.ran}"
        text = axes.text(layer.share + layer.conversions, row, label, va="center", fontsize=7.5, color="#444444")
        if fault := next((f.reason for f in explanation.findings_of(layer.name) if f.severity == "fault"), ""):
            axes.annotate(f"  {fault}", (1, 0), xycoords=text, va="bottom", fontsize=7.5, color=FAULT, fontweight="bold")
    axes.set_yticks(rows, [_short(layer.name) for layer in layers], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 2.3 * max((one.share + one.conversions for one in layers), default=1.0))
    axes.xaxis.set_visible(False)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    title = "the most expensive layers: share of the time, asked bits / levels → ran"
    axes.set_title(title, loc="left", fontsize=9, color="#444444", pad=8)
