"""Running searches in tests: task files, the command line in this process, a meter without noise, pictures of folders."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import openvino as ov
import pytest
import yaml

from autocompress.record import Latency, TrialRecord
from autocompress.run_folder import RunFolder
from autocompress.target import layer_table
from autocompress.target.layer_graphs import Signature

TESTS = Path(__file__).parent
UNIFORM_RATIOS = (0.75,)
"""Of the baselines where it does not matter what is compared."""
HURRIED = f"""from autocompress import baselines
from autocompress.target import layer_table, meter
meter.MAX_SECONDS, meter.ROUND_SECONDS = 0.1, 5e-4
layer_table.ROUNDS, layer_table.MOST_GRAPHS = 2, 12
baselines.UNIFORM_RATIOS = {UNIFORM_RATIOS}
"""
"""Measures for a tenth of a second: for subprocesses, where nothing can be patched."""
TELLING = "import os, sys; os.register_at_fork(before=lambda: print('this process was forked', file=sys.stderr, flush=True))\n"
"""A fork of a process with threads may wait for a lock forever: NNCF's telemetry forks one to reach its server."""
WAITING = HURRIED + "import nncf, autocompress.outer_loop, autocompress.frameworks.torch.framework; input()\n"
"""Imports what takes seconds and then waits for a line."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def write_task(path: Path, body: str) -> Path:
    """A task file that can import `models`."""
    path.write_text(f"import sys\n\nsys.path.insert(0, {str(TESTS)!r})\nimport models\n\n{body}\n")
    return path


def write_config(path: Path, **settings: Any) -> Path:
    """A configuration file."""
    path.write_text(yaml.safe_dump(settings))
    return path


def cli(*arguments: object) -> Outcome:
    """`autocompress ARGUMENTS` in this process, through the same function as the command."""
    from autocompress.cli import main

    out, err = io.StringIO(), io.StringIO()
    argv = ["autocompress", *map(str, arguments)]
    code: Any = 0
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return Outcome(code or 0, out.getvalue(), err.getvalue())


def start_cli(*arguments: object, waiting: bool = False) -> subprocess.Popen[str]:
    """The same in a process of its own, which may have to be told to go."""
    code = TELLING + (WAITING if waiting else HURRIED) + "from autocompress.cli import main; main()"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def picture(folder: Path) -> dict[str, str]:
    """The content of every file of a folder, as a hash, and where every link leads; the lock apart."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and path.name != ".lock":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def records(folder: Path | str) -> list[TrialRecord]:
    """The records as they lie on disk."""
    return RunFolder(folder).records()


def candidates(folder: Path | str) -> list[TrialRecord]:
    """The records of what the search proposed."""
    return [record for record in records(folder) if not record.is_baseline]


def run_json(folder: Path | str) -> dict[str, Any]:
    """What belongs to the whole run."""
    return dict(json.loads((Path(folder) / "run.json").read_text()))


def steady_meter(patch: pytest.MonkeyPatch) -> None:
    """Measure with `fake_measure`, and layers with `fake_times`, which are not kept."""
    patch.setattr(layer_table, "_timed", fake_times)
    patch.setattr(layer_table, "_cached", lambda path: {})
    patch.setattr(layer_table, "write_json", lambda path, content: None)
    for module in ("trial", "setup"):
        patch.setattr(f"autocompress.{module}.measure", fake_measure)
    patch.setattr("autocompress.trial.reference_latency_ms", lambda compiled: 1.0)


def fake_measure(
    candidates: Sequence[ov.CompiledModel],
    reference: ov.CompiledModel,
    reference_ms: float,
    half_width: float = 0.01,
    max_seconds: float | None = None,
) -> list[Latency]:
    """A meter without noise: a model takes as long as it has weights, and INT8 ones take half."""
    ratios = [_weight(compiled) / _weight(reference) for compiled in candidates]
    return [
        Latency(ratio=r, ratio_low=0.99 * r, ratio_high=1.01 * r, reference_ms=reference_ms, samples=(r,) * 30) for r in ratios
    ]


def fake_times(layers: Sequence[Signature], *_: Any) -> tuple[dict[Signature, float], float]:
    """A layer takes as long as it has work, and one in INT8 half as long."""
    return {layer: layer.work * (0.5 if layer.integer else 1.0) for layer in layers}, 0.0


def _weight(compiled: ov.CompiledModel) -> float:
    total = 0.0
    for node in compiled.get_runtime_model().get_ops():
        if str(node.get_rt_info()["layerType"].value) == "Const":
            shape, kind = tuple(node.output(0).shape), node.output(0).element_type.get_type_name()
            total += math.prod(shape) * (0.5 if kind in ("i8", "u8") else 1.0)
    return total
