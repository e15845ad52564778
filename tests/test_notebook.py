"""The notebook runs from its first cell to its last, on a tiny budget, and says what it promises."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "experiments/mnist_resnet8/qat.ipynb"
TINY = """ORIGINAL_EPOCHS = 1
EPOCHS = 1
BITS = [8, 2]
TRAIN_IMAGES, VALID_IMAGES = 300, 60
SEARCH = {{"space": "mixed-precision", "sampler": "mutation", "max_trials": 1}}
SEARCH |= {{"fine_tuning": {{"epochs": 1}}, "calibration_samples": 20}}
OUT = {out!r}
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[nbformat.NotebookNode, Path]:
    """The notebook after a run with other parameters, and its folder."""
    notebook, out = nbformat.read(NOTEBOOK, as_version=4), tmp_path_factory.mktemp("notebook") / "out"
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = TINY.format(out=str(out))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return notebook, out


def text_of(notebook: nbformat.NotebookNode) -> str:
    """All that it printed."""
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_every_cell_of_the_notebook_runs(executed: tuple[nbformat.NotebookNode, Path]) -> None:
    notebook, out = executed
    assert {path.name for path in out.iterdir()} >= {"untrained-8", "trained-2", "search", "front.png", "deploy"}
    assert "2 bits trained: 0." in text_of(notebook)


def test_the_front_is_drawn_in_the_notebook(executed: tuple[nbformat.NotebookNode, Path]) -> None:
    pictures = [
        output for cell in executed[0].cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1


def test_the_committed_outputs_are_of_this_notebook() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "bits trained: 0.9" in text_of(notebook)
    assert str(Path.home()) not in nbformat.writes(notebook)
