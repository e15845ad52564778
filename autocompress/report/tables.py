"""trials.csv and front.csv, derived from the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from autocompress import baselines
from autocompress.config import Objective
from autocompress.front import front_of, within_budget
from autocompress.metrics import Metric
from autocompress.record import Stage, TrialRecord
from autocompress.run_folder import RunFolder


def front_table(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], metric: Metric, budget_ms: float | None
) -> pd.DataFrame:
    """One row per non-dominated model, the fastest first. `speedup` is against the original at the target's default precision."""
    f32 = float32_ratio(records)
    return pd.DataFrame(
        [_measured(record, budget_ms, f32) for record in front_of(records, objectives, metric)], columns=_FRONT_COLUMNS
    )


def trials_table(records: Sequence[TrialRecord], budget_ms: float | None) -> pd.DataFrame:
    """One row per trial, every state, with the seconds of each stage."""
    f32 = float32_ratio(records)
    rows = [_measured(record, budget_ms, f32) | _history(record) for record in records]
    return pd.DataFrame(rows, columns=[*_FRONT_COLUMNS, *_HISTORY_COLUMNS])


def float32_ratio(records: Sequence[TrialRecord]) -> float | None:
    """The FP32 original's latency relative to the reference."""
    by_source = {record.source: record for record in records}
    record = by_source.get(baselines.FLOAT32) or by_source.get(baselines.ORIGINAL)
    return record.latency.ratio if record and record.latency else None


def write_tables(
    folder: RunFolder,
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    metric: Metric,
    budget_ms: float | None,
) -> None:
    """Write both files; only models that are on disk can stand in the front."""
    kept = [record for record in records if folder.has_model(record.number)]
    folder.write_text("front.csv", front_table(kept, objectives, metric, budget_ms).to_csv(index=False))
    folder.write_text("trials.csv", trials_table(records, budget_ms).to_csv(index=False))


def _measured(record: TrialRecord, budget_ms: float | None, float32: float | None) -> dict[str, Any]:
    latency = record.latency
    return {
        "trial": record.number,
        "source": record.source,
        "within_budget": within_budget(record, budget_ms) if latency else None,
        "accuracy_valid": record.accuracy_valid,
        "accuracy_test": record.accuracy_test,
        "latency_ms": latency.ms if latency else None,
        "latency_low_ms": latency.low_ms if latency else None,
        "latency_high_ms": latency.high_ms if latency else None,
        "requests_per_second": 1000 / latency.ms if latency else None,
        "speedup": 1 / latency.ratio if latency else None,
        "speedup_f32": float32 / latency.ratio if latency and float32 else None,
        "size_bytes": record.size_bytes,
        "compressed_bytes": record.compressed_bytes,
        "macs": record.macs,
        "int8_share": record.int8_share,
        "int8_macs_share": record.int8_macs_share,
        "policy": record.policy.to_json(),
    }


def _history(record: TrialRecord) -> dict[str, Any]:
    return {
        "state": str(record.state),
        "stage": str(record.stage or ""),
        "error": record.error,
        "accuracy_simulated": record.accuracy_simulated,
        **{f"{stage}_seconds": record.seconds.get(stage) for stage in Stage if stage != Stage.FINE_TUNE},
        "tune_seconds": record.seconds.get(Stage.FINE_TUNE),
        "overhead_seconds": round(record.overhead_seconds, 3),
        "total_seconds": round(record.total_seconds, 3),
        "notes": "; ".join(record.notes),
    }


_EMPTY = TrialRecord.model_validate({"number": 0, "plan": {"policy": {}}, "source": ""})
_FRONT_COLUMNS = list(_measured(_EMPTY, None, None))
_HISTORY_COLUMNS = list(_history(_EMPTY))
