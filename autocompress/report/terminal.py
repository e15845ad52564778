"""Tables for a terminal: what was probed, how models compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from autocompress.capabilities import FORMS, WRONG, Capabilities, KernelFact
from autocompress.target.compare import Compared

if TYPE_CHECKING:
    from autocompress.analysis import Analysis

FORM_WORDS: dict[str, str] = {"convolution": "conv 3×3", "pointwise": "conv 1×1"}


def capabilities_view(can: Capabilities) -> Group:
    """Everything that was probed, in 100 columns."""
    found = can.fingerprint
    head = f"{found.device_name}, OpenVINO {found.openvino}, {found.target.threads} thread(s), floats in {can.float_precision}"
    return Group(Text(head, style="bold"), _kernel_table(can), _step_table(can), _zeros_table(can), *map(Text, verdicts(can)))


def verdicts(can: Capabilities) -> list[str]:
    """What the figures mean for a compression."""
    numbers = can.numerics
    lines = [
        f"Default float precision: {can.float_precision}, {can.float_gain():.2f}× FP32 for 3×3 convolutions. "
        "It is what an uncompressed model runs in, so it is the baseline."
    ]
    lines += _weight_storage(can)
    if numbers.binary_zero_one is None:
        lines.append("Binary layers: no binary kernel.")
    else:
        sign = "right" if numbers.binary_plus_minus is not None and numbers.binary_plus_minus <= WRONG else "wrong"
        state = "pay" if can.binary_pays("convolution") else "do not pay"
        lines.append(
            f"Binary layers {state}: activations coded {{0, 1}} give errors of {numbers.binary_zero_one:.1%}, "
            f"coded {{-1, +1}} the numbers are {sign}."
        )
    lines.append(
        f"8-bit weights saturate (errors of {numbers.weights_8:.0%}): 7-bit grids are used."
        if can.saturates
        else "8-bit weights do not saturate."
    )
    lines.append("Zeros in weights pay." if any(fact.pays for fact in can.sparsity) else "Zeros in weights do not pay.")
    lines.append(
        f"Probed in {can.seconds:.0f} s. Every figure is a ratio measured side by side, with its 95 % interval in --json."
    )
    return lines


def _weight_storage(can: Capabilities) -> list[str]:
    """What it costs to store four bits in four bits."""
    facts = {fact.scheme: fact for fact in can.kernels if fact.form == "convolution"}
    plain, kept, lost = (facts.get(scheme) for scheme in ("i8", "i4 → i8 → f32", "i4 → f32"))
    if not (plain and kept and lost):
        return []
    return [
        f"4-bit storage: {kept.speedup / plain.speedup:.2f}× the speed of 8-bit with a conversion to i8 in between, "
        f"{lost.speedup / plain.speedup:.2f}× as converters write it."
    ]


def _kernel_table(can: Capabilities) -> Table:
    table = _table("Speed-up over FP32; green: an integer kernel ran")
    table.add_column("weights / activations", no_wrap=True)
    _form_columns(table)
    rows: dict[str, dict[str, KernelFact]] = {}
    for fact in can.kernels:
        rows.setdefault(f"{fact.weights}/{fact.activations} {fact.scheme}", {})[fact.form] = fact
    for name, facts in rows.items():
        table.add_row(name, *(_kernel_cell(facts.get(form)) for form in FORMS))
    return table


def _form_columns(table: Table) -> None:
    for form in FORMS:
        table.add_column(FORM_WORDS.get(form, form), justify="right", no_wrap=True)


def _kernel_cell(fact: KernelFact | None) -> Text:
    if fact is None:
        return Text("–", style="dim")
    return Text(f"{fact.speedup:.2f}×", style="green" if fact.integer else "")


def _step_table(can: Capabilities) -> Table:
    table = _table("Channel step: widths that are a multiple of it waste nothing (grouped: of one group)")
    table.add_column("precision")
    _form_columns(table)
    for precision in dict.fromkeys(fact.precision for fact in can.steps):
        table.add_row(precision, *(str(can.channel_step(form, precision)) for form in FORMS))
    return table


def _zeros_table(can: Capabilities) -> Table:
    table = _table("Speed-up of zeros in the weights")
    columns = dict.fromkeys((fact.pattern, fact.level) for fact in can.sparsity)
    table.add_column("layers")
    for pattern, level in columns:
        table.add_column(f"{level:.0%} zeros" if pattern == "unstructured" else pattern, justify="right")
    for form, precision in dict.fromkeys((fact.form, fact.precision) for fact in can.sparsity):
        facts = {(f.pattern, f.level): f for f in can.sparsity if (f.form, f.precision) == (form, precision)}
        table.add_row(f"{form} {precision}", *(_zeros_cell(facts[column].speedup, facts[column].pays) for column in columns))
    return table


def _zeros_cell(speedup: float, pays: bool) -> Text:
    return Text(f"{speedup:.2f}×", style="green" if pays else "")


def comparison_table(compared: Sequence[Compared], *, throughput: bool) -> Group:
    """Models side by side; ties share a rank."""
    table = _table("Time per request at full load" if throughput else "Latency")
    table.add_column("rank", justify="right")
    table.add_column("model", overflow="fold")
    for column in ("ms", "× the first", "95 % interval", "samples/s"):
        table.add_column(column, justify="right", no_wrap=True)
    ranks = [one.rank for one in compared]
    for one in compared:
        tie = "=" if ranks.count(one.rank) > 1 else " "
        interval = f"{one.latency.ratio_low:.3f} – {one.latency.ratio_high:.3f}"
        table.add_row(
            f"{one.rank}{tie}",
            one.name,
            f"{one.latency.ms:.4g}",
            f"{one.latency.ratio:.3f}",
            interval,
            f"{one.samples_per_second:.4g}",
        )
    return Group(table, *map(Text, _remarks(compared)))


def _remarks(compared: Sequence[Compared]) -> list[str]:
    remarks = []
    for rank in sorted({one.rank for one in compared}):
        tied = [one.name for one in compared if one.rank == rank]
        if len(tied) > 1:
            remarks.append(f"A tie: {', '.join(tied)} cannot be told apart.")
    first = compared[0].latency
    rounds, left_out = len(first.samples), first.rounds_left_out
    ending = "the interval is short enough" if all(one.latency.precise for one in compared) else "the time is up"
    remarks.append(f"{rounds} interleaved rounds, {left_out} more left out because of other load; stopped because {ending}.")
    return remarks


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def analysis_table(analysis: Analysis) -> Group:
    """Every choice alone: what it loses without fine-tuning, and what it buys."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("group or layer", "choice"):
        table.add_column(column)
    for column in (f"{analysis.metric} alone", "lost", "latency saved (est.)", "bytes saved"):
        table.add_column(column, justify="right")
    last = ""
    for one in analysis.choices:
        subject = "" if one.subject == last else one.subject
        last = one.subject
        figures = (f"{one.score:.4f}", f"{one.loss:+.4f}", f"{one.latency_saved:+.1%}", f"{one.bytes_saved:,}")
        table.add_row(subject, one.choice, *figures)
    head = f"{analysis.name}: each choice alone, not fine-tuned, on training samples; original {analysis.original:.4f}"
    return Group(Text(head, style="bold"), table)
