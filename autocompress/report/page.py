"""One self-contained HTML page about a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader

from autocompress.errors import RunFolderError
from autocompress.report.plots import plot_front

if TYPE_CHECKING:
    from autocompress.result import Result


def write_report(result: Result) -> Path:
    """Write pareto.png, pareto.svg and report.html into the run folder."""
    figure = plot_front(result)
    svg = io.StringIO()
    with result.folder.disk_guard():
        figure.savefig(result.folder.file("pareto.png"))
        figure.savefig(svg, format="svg")
    result.folder.write_text("pareto.svg", svg.getvalue())
    environment = Environment(loader=PackageLoader("autocompress.report", "."), autoescape=True)
    page = environment.get_template("page.html.j2").render(**_content(result, svg.getvalue()))
    result.folder.write_text("report.html", page)
    return result.folder.file("report.html")


def _content(result: Result, svg: str) -> dict[str, Any]:
    recorded = result.config.recorded
    trials = result.trials
    try:
        best = result.best().record.number
    except RunFolderError:  # nothing keeps the budget yet
        best = None
    return {
        "name": result.run["name"],
        "svg": svg[svg.index("<svg") :],
        "metric": result.metric.name,
        "budget_ms": result.budget_ms,
        "has_test": result.run["has_test"],
        "front": result.front.to_dict("records"),
        "best": next((row for row in trials.to_dict("records") if row["trial"] == best), None),
        "states": trials["state"].value_counts().to_dict(),
        "failures": trials[trials["state"] == "FAILED"][["trial", "stage", "error"]].to_dict("records"),
        "trials": trials.to_dict("records"),
        "notes": result.run["notes"],
        "fingerprint": recorded.fingerprint if recorded else None,
        "versions": recorded.versions if recorded else {},
        "config": result.config.model_copy(update={"recorded": None}).to_yaml(),
    }
