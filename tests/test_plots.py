"""What is drawn of a front."""

from __future__ import annotations

from itertools import combinations

import pandas as pd
import pytest

from autocompress.metrics import resolve_metric
from autocompress.report.picture import Picture
from autocompress.report.plots import _name_baselines, _worth_showing

SCORES = {"baseline:original": 0.96, "baseline:uniform-75": 0.93, "seed": 0.85, "sampler": 0.23}


def trials(scores: dict[str, float]) -> pd.DataFrame:
    """Complete trials, one of each source."""
    return pd.DataFrame({"source": list(scores), "accuracy_valid": list(scores.values())})


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("mse", -1)])
def test_a_ruined_model_is_left_out_and_counted(metric: str, sign: int) -> None:
    shown, left_out = _worth_showing(
        trials({source: sign * score for source, score in SCORES.items()}), resolve_metric(metric, None)
    )
    assert (list(shown["source"]), left_out) == (["baseline:original", "baseline:uniform-75", "seed"], 1)


def test_without_baselines_to_compare_with_all_is_shown() -> None:
    scores = {source: score for source, score in SCORES.items() if source != "baseline:uniform-75"}
    assert _worth_showing(trials(scores), resolve_metric("accuracy", None))[1] == 0


@pytest.mark.parametrize("gap", [0.0, 0.002, 0.02])
def test_names_of_neighbours_do_not_cover_each_other(gap: float) -> None:
    figure = Picture(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0.9, 1))
    places = {"latency_ms": [0.5, 0.5 + gap, 0.5 + 2 * gap], "accuracy_valid": [0.95, 0.95 + gap / 5, 0.95 + gap / 10]}
    _name_baselines(
        figure, axes, trials(dict.fromkeys(["baseline:int8", "baseline:uniform-25", "baseline:f32"], 0.0)).assign(**places)
    )
    names = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert names.keys() == {"int8", "uniform-25", "f32"}
    assert not any(one.overlaps(other) for one, other in combinations(names.values(), 2))
