"""Shared fixtures."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import probed
import pytest
import searches
from filelock import FileLock
from hypothesis import settings

from autocompress import baselines
from autocompress.device import Target

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Tiny models gain nothing from more threads, and on a busy machine waiting for a second one costs a hundredfold."""
os.environ.setdefault("MPLBACKEND", "agg")

ALL_RATIOS = baselines.UNIFORM_RATIOS
"""Of a user's searches; most in tests have one."""

settings.register_profile("autocompress", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("autocompress")
"""A loaded machine does not fail a property, and what fails once fails again."""


@pytest.fixture(scope="session", autouse=True)
def _short_searches() -> Iterator[None]:
    """Searches in tests measure a model for at most a quarter of a second; a user's for two. Layers are timed twice.

    Candidates are compared with a single uniform baseline.
    """
    from autocompress.target import layer_table, meter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "MAX_SECONDS", 0.25)
        patch.setattr(meter, "ROUND_SECONDS", 1e-3)
        patch.setattr(layer_table, "ROUNDS", 2)
        patch.setattr(layer_table, "MOST_GRAPHS", 12)
        patch.setattr(baselines, "UNIFORM_RATIOS", searches.UNIFORM_RATIOS)
        yield


@pytest.fixture(scope="session", autouse=True)
def _probed_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Searches in tests find a probed target; the probe itself has tests of its own."""
    from autocompress.target import probe

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(probe, "probe", lambda target, found, progress: probed.capabilities(found))
        probe.capabilities(Target())  # for subprocesses, which share the cache
        yield


@pytest.fixture
def steady_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies without noise, for tests in which a budget has to separate two models."""
    searches.steady_meter(monkeypatch)


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def task_file(of_all_workers: Path) -> Path:
    """A task file: the trained residual net on 200 digits of each split."""
    path = of_all_workers / "digits_task.py"
    with FileLock(path.with_suffix(".lock")):
        return path if path.exists() else searches.write_task(path, "task = models.search_task()")


@pytest.fixture(scope="session")
def finished(task_file: Path, of_all_workers: Path) -> Path:
    """The folder of a finished search, made once with the command line and measured on this machine. Copy it to change it."""
    out, done = of_all_workers / "finished", of_all_workers / "finished.done"
    with FileLock(of_all_workers / "finished.lock"):
        if not done.exists():
            config = searches.write_config(of_all_workers / "config.yaml", calibration_samples=20)
            options = ("--config", config, "--budget", "3x", "--trials", "2", "--max-accuracy-drop", "0.5", "--keep", "all")
            with mock.patch.object(baselines, "UNIFORM_RATIOS", ALL_RATIOS):
                outcome = searches.cli("search", task_file, "--out", out, *options)
            assert outcome.code == 0, outcome.err
            done.touch()
    return out


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished search, to resume or to damage."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"
