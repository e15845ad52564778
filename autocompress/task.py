"""What the user brings: a trained model, its data, its loss and metric, and how long to fine-tune."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.data import Split
from autocompress.errors import TaskError
from autocompress.metrics import Direction, Metric, resolve_metric

COUNTS = "object_name_uids"
"""Under which Keras keeps its numbers of layers without a name."""


@dataclass(repr=False, eq=False)
class Task:
    """A trained model and everything needed to fine-tune and score a smaller one.

    Args:
        model: a trained `torch.nn.Module` or `keras.Model`. It is never changed.
        train: data for fine-tuning and, unless `calibration` is given, for calibrating INT8 ranges. A DataLoader or
            `tf.data.Dataset` (anything that can be iterated again and again) that yields `(inputs, targets)` or dicts; a Keras
            `PyDataset`; or a pair `(inputs, targets)` of tensors or arrays. `inputs` is one array, a tuple or a dict of arrays.
        valid: data on which the search scores candidates.
        test: data on which the final front is scored once. Without it the reported accuracies are optimistic.
        loss: function of (outputs, targets). Default: cross entropy for integer targets, else mean squared error. For a Keras
            model whatever `compile` takes, and the default is the loss that it was compiled with, with its optimizer.
        metric: "accuracy", "mse", "mae", or a function of NumPy (predictions, targets) that returns a number. Several outputs
            arrive as a tuple in the model's order.
        direction: "maximize" or "minimize", for a metric function.
        calibration: data for calibrating INT8 ranges, in the form of `train`; its targets are not used.
        preprocessing: what the deployed model expects to have been done to its inputs, as plain data (for example
            `{"scale": 1 / 255, "layout": "NCHW"}`). It becomes part of the exported bundle's contract.
        optimizer: function of the parameters that returns an optimizer. Default: SGD with momentum for models with batch
            norm, AdamW for others; or one like that which a Keras model was compiled with.
        scheduler: function of (optimizer, steps) that returns a learning-rate scheduler; its `step()` is called after each of so
            many steps. For a Keras model it returns a function from a step to its rate. Default: a cosine with warm-up.
        callbacks: for a Keras model, a function that returns callbacks for the `fit` of one candidate.
        learning_rate: the highest rate of the schedule. Default: the optimizer's own.
        epochs: passes over `train` for each candidate.
        distillation: weight of the original model's outputs in the loss, in [0, 1].
        batch_size: samples per batch where the data are arrays.
        target_key: the key of the targets where batches are dicts.
        fine_tune: your own training loop, `fine_tune(model, teacher=…, epochs=…)`. It trains `model` in place, and decides
            itself what to learn from the teacher, the original model.
        name: for reports.

    Raises:
        TaskError: one of these cannot be used.
    """

    model: Any
    train: Any
    valid: Any
    test: Any = None
    loss: Any = None
    metric: str | Callable[[Any, Any], float] = "accuracy"
    direction: Direction | None = None
    calibration: Any = None
    preprocessing: dict[str, Any] | None = None
    optimizer: Callable[[Any], Any] | None = None
    scheduler: Callable[[Any, int], Any] | None = None
    callbacks: Callable[[], list[Any]] | None = None
    learning_rate: float | None = None
    epochs: int = 3
    distillation: float = 0.7
    batch_size: int = 64
    target_key: str = "labels"
    fine_tune: Callable[..., None] | None = None
    name: str = "task"

    def __post_init__(self) -> None:
        self.origin: str | None = None
        """The file that it is from, as `load_task` takes it: another process can load it again."""
        if self.epochs < 1:
            raise TaskError("epochs is at least 1", self.epochs)
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise TaskError("learning_rate is positive", self.learning_rate)
        if not 0 <= self.distillation <= 1:
            raise TaskError("distillation lies in [0, 1]", self.distillation)
        if self.batch_size < 1:
            raise TaskError("batch_size is at least 1", self.batch_size)
        try:
            json.dumps(self.preprocessing)
        except TypeError as error:
            raise TaskError(
                "preprocessing is plain data that JSON can hold", str(error), "Use lists instead of arrays."
            ) from error
        self.scorer: Metric = resolve_metric(self.metric, self.direction)
        self.splits: dict[str, Split] = {
            name: Split(name, source, self.batch_size, self.target_key)
            for name in ("train", "valid", "test", "calibration")
            if (source := getattr(self, name)) is not None
        }
        missing = {"train", "valid"} - set(self.splits)
        if missing:
            raise TaskError("A task has train and valid data", f"no {' and no '.join(sorted(missing))}")

    @property
    def calibration_split(self) -> Split:
        """The data for calibrating INT8 ranges."""
        return self.splits.get("calibration", self.splits["train"])


def load_task(reference: str | Path) -> Task:
    """The task of a Python file, written `path/to/task.py` or `path/to/task.py:name`.

    The name (default: `task`, else `make_task`) is a Task, or a function without arguments that returns one.

    Raises:
        TaskError: the file is missing, does not import, or has no task.
    """
    path_text, _, name = str(reference).partition(":")
    path = Path(path_text)
    if not path.is_file():
        raise TaskError("A task is a Python file that exists", path_text, "Write PATH.py or PATH.py:NAME.")
    origin = absolute_reference(str(reference))  # the file may change the working directory
    with _layers_counted_anew():
        task = _task_of(path, name)
    task.origin = origin
    return task


def _task_of(path: Path, name: str) -> Task:
    module = _import_file(path)
    names = [name] if name else ["task", "make_task"]
    found = next((getattr(module, candidate) for candidate in names if hasattr(module, candidate)), None)
    if found is None:
        raise TaskError(
            f"A task file defines {' or '.join(names)}",
            f"{path} without it",
            "Let it be a Task, or a function that returns one.",
        )
    try:
        task = found() if callable(found) and not isinstance(found, Task) else found
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(
            f"{path} makes a task", f"{type(error).__name__}: {error}", "Run the file by itself to see where."
        ) from error
    if not isinstance(task, Task):
        raise TaskError(f"{path} defines an autocompress.Task", f"a {type(task).__name__}")
    return task


@contextmanager
def _layers_counted_anew() -> Iterator[None]:
    """Keras numbers the layers without a name of a whole process; within this, those of a file have the same names each time."""
    if "keras" not in sys.modules:  # the count begins with the file
        yield
        return
    state = importlib.import_module("keras.src.backend.common.global_state")
    before: dict[str, int] = state.get_global_attribute(COUNTS, default={})
    state.set_global_attribute(COUNTS, defaultdict(int))
    try:
        yield
    finally:
        after: dict[str, int] = state.get_global_attribute(COUNTS, default={})
        highest = {key: max(before.get(key, 0), after.get(key, 0)) for key in {*before, *after}}
        state.set_global_attribute(COUNTS, defaultdict(int, highest))


def absolute_reference(reference: str) -> str:
    """A task's reference that holds from any working directory."""
    path, colon, name = reference.partition(":")
    return f"{Path(path).resolve()}{colon}{name}"


def _import_file(path: Path) -> Any:
    """Import a file under a name of its own, with its folder importable, as `python FILE` would."""
    spec = importlib.util.spec_from_file_location(f"autocompress_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TaskError("A task is a Python file", str(path), "Its name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        raise TaskError(f"{path} imports", f"{type(error).__name__}: {error}", "Run the file by itself to see where.") from error
    return module
