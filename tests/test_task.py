import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.task import load_task

DATA = (np.zeros((6, 2), np.float32), np.zeros(6, np.int64))
PRELUDE = """
import numpy as np
import autocompress as ac
data = (np.zeros((6, 2), np.float32), np.zeros(6, np.int64))
def build(name="mine"):
    return ac.Task(object(), train=data, valid=data, name=name)
"""


@pytest.fixture(autouse=True)
def _own_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a task makes its folder importable for good."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def write(folder: Path, code: str, name: str = "task.py") -> Path:
    path = folder / name
    path.write_text(PRELUDE + code)
    return path


def make(**changes: Any) -> ac.Task:
    return ac.Task(**{"model": object(), "train": DATA, "valid": DATA, **changes})


def test_a_task_of_a_file(tmp_path: Path) -> None:
    assert load_task(write(tmp_path, "task = build()")).name == "mine"


def test_a_torch_model_comes_through_unchanged(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    code = "import torch\ntorch.manual_seed(0)\ntask = ac.Task(torch.nn.Linear(2, 3), train=data, valid=data)"
    task = load_task(write(tmp_path, code))
    torch.manual_seed(0)
    assert torch.equal(task.model.weight, torch.nn.Linear(2, 3).weight)


def test_a_factory_is_called(tmp_path: Path) -> None:
    assert load_task(str(write(tmp_path, "def make_task():\n    return build('made')"))).name == "made"


def test_a_task_goes_before_a_factory(tmp_path: Path) -> None:
    assert load_task(write(tmp_path, "task = build()\ndef make_task():\n    return build('made')")).name == "mine"


@pytest.mark.parametrize("name", ["small", "make_small"])
def test_a_name_after_the_colon(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, "task = build()\nsmall = build('small')\ndef make_small():\n    return small")
    assert load_task(f"{path}:{name}").name == "small"


def test_a_name_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="task file defines smal;"):
        load_task(f"{write(tmp_path, 'small = build()')}:smal")


def test_a_file_beside_the_task_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_the_task.py").write_text("NAME = 'beside'")
    assert load_task(write(tmp_path, "import beside_the_task\ntask = build(beside_the_task.NAME)")).name == "beside"


@pytest.mark.parametrize("path", ["nowhere.py", "", ".", "nowhere/task.py:task"])
def test_a_missing_file_is_refused_with_the_form_to_write(path: str) -> None:
    with pytest.raises(TaskError, match=r"a Python file that exists.*Write PATH.py or PATH.py:NAME"):
        load_task(path)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"ends in \.py"):
        load_task(write(tmp_path, "", "task.txt"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("task = 1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_file_that_does_not_import_is_refused_with_the_reason(tmp_path: Path, code: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason) as caught:
        load_task(write(tmp_path, code))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("code", ["raise OSError('no images')", "raise SystemExit('no images')"])
def test_a_factory_that_fails_is_refused_with_the_reason(tmp_path: Path, code: str) -> None:
    with pytest.raises(TaskError, match="no images"):
        load_task(write(tmp_path, f"def make_task():\n    {code}"))


def test_what_the_task_itself_complains_of_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"^epochs is at least 1; got 0\.$"):
        load_task(write(tmp_path, "task = ac.Task(object(), train=data, valid=data, epochs=0)"))


def test_a_file_without_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="defines task or make_task"):
        load_task(write(tmp_path, "tasks = [build()]"))


@pytest.mark.parametrize(("code", "kind"), [("task = 3", "int"), ("def make_task(): return None", "NoneType")])
def test_what_is_not_a_task_is_refused(tmp_path: Path, code: str, kind: str) -> None:
    with pytest.raises(TaskError, match=f"autocompress.Task; got a {kind}"):
        load_task(write(tmp_path, code))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0),
        ("learning_rate", -1e-3),
        ("distillation", 1.1),
        ("distillation", -0.1),
        ("batch_size", 0),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(TaskError, match=f"^{field} .*got {value}"):
        make(**{field: value})


@pytest.mark.parametrize("split", ["train", "valid"])
def test_training_and_validation_data_are_needed(split: str) -> None:
    with pytest.raises(TaskError, match=f"train and valid data; got no {split}"):
        make(**{split: None})


@pytest.mark.parametrize("split", ["train", "valid", "test", "calibration"])
def test_unusable_data_are_refused_by_their_split(split: str) -> None:
    with pytest.raises(TaskError, match=f"^The {split} data is"):
        make(**{split: 3})


def test_calibration_falls_back_to_the_training_data() -> None:
    other = (DATA[0] + 1, DATA[1])
    assert make().calibration_split.name == "train"
    assert make(calibration=other).calibration_split.source is other


def test_the_keys_of_dict_batches_reach_every_split() -> None:
    batches = [{"x": DATA[0], "y": DATA[1]}] * 3
    task = make(train=batches, valid=batches, test=batches, target_key="y")
    assert all(next(split.batches()).targets is DATA[1] for split in task.splits.values())


def test_a_metric_function_is_resolved_with_its_direction() -> None:
    assert make(metric=lambda predictions, targets: 0.0, direction="minimize").scorer.direction == "minimize"
    with pytest.raises(TaskError, match="needs a direction"):
        make(metric=lambda predictions, targets: 0.0)
