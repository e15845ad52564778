"""What is drawn of a front."""

from __future__ import annotations

import pandas as pd
import pytest

from autocompress.metrics import resolve_metric
from autocompress.report.plots import _worth_showing

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
