"""The notebooks run from the first cell to the last, on a tiny budget, and say what they promise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from searches import HURRIED

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TINY = """ORIGINAL_EPOCHS = 1
EPOCHS = 1
BITS = {bits}
TRAIN_IMAGES, VALID_IMAGES = 300, 60
SEARCH = {{"space": "mixed-precision", "sampler": "mutation", "max_trials": 1}}
SEARCH |= {{"fine_tuning": {{"epochs": 1}}, "calibration_samples": 20}}
OUT = {out!r}
"""
BITS = {"mnist_resnet8": [8, 2], "mnist_keras_resnet8": [2]}
"""In Keras every width takes seconds to prepare."""


@dataclass
class Executed:
    """A notebook after a run with other parameters."""

    path: Path
    notebook: nbformat.NotebookNode
    out: Path


@pytest.fixture(scope="module", params=list(BITS))
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """Of each framework."""
    path, out = EXPERIMENTS / request.param / "qat.ipynb", tmp_path_factory.mktemp("notebook") / "out"
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = HURRIED + TINY.format(out=str(out), bits=BITS[request.param])
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    return Executed(path, notebook, out)


def text_of(notebook: nbformat.NotebookNode) -> str:
    """All that it printed."""
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_every_cell_of_the_notebook_runs(executed: Executed) -> None:
    name = executed.path.parent.name
    its_own = {"mnist_resnet8": {"search", "front.png", "deploy"}, "mnist_keras_resnet8": {"smaller"}}
    expected = its_own[name] | {f"{how}-{bits}" for how in ("untrained", "trained") for bits in BITS[name]}
    assert {path.name for path in executed.out.iterdir()} >= expected
    assert "2 bits trained: 0." in text_of(executed.notebook)


def test_a_front_is_drawn_where_there_is_a_search(executed: Executed) -> None:
    pictures = [o for cell in executed.notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == (executed.out / "search").exists()


def test_the_committed_outputs_are_of_this_notebook(executed: Executed) -> None:
    notebook = nbformat.read(executed.path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "bits trained: 0.9" in text_of(notebook)
    assert str(Path.home()) not in nbformat.writes(notebook)
