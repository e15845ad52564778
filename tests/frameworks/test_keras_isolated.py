"""Keras trials in a worker process: the same numbers, progress and errors as in this process, and no worker is left behind."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import searches

import autocompress as ac
from autocompress import errors
from autocompress.config import SearchConfig
from autocompress.errors import AutocompressError, DivergedError, ModelError, OutOfTimeError, StageError, WorkerError
from autocompress.frameworks.base import FEATURES_ARE_WHOLE, Candidate, TuneSettings, framework_of
from autocompress.frameworks.keras import isolated
from autocompress.frameworks.keras.isolated import IsolatedKeras
from autocompress.frameworks.keras.parcel import describe_error, error_of
from autocompress.frameworks.keras.process import WorkerProcess
from autocompress.setup import open_bench
from autocompress.task import load_task

SETTINGS = TuneSettings(epochs=2, learning_rate=1e-2, distillation=0.5)
TASK = """
import keras
import keras_models

class Talking(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print("epoch", epoch)

print("loaded")
task = keras_models.small_task(keras_models.build("conv"), callbacks=lambda: [Talking()])
"""
HOLDING = """
import pathlib
import sys

from autocompress.frameworks.keras.process import WorkerProcess

WorkerProcess(pathlib.Path(sys.argv[1]), "torch").call("open", reference=sys.argv[2])
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ac.Task:
    return load_task(searches.write_task(tmp_path_factory.mktemp("task") / "talking_task.py", TASK))


@pytest.fixture(scope="module")
def worker(task: ac.Task) -> Iterator[IsolatedKeras]:
    """A framework with a worker, which the tests below use in their order."""
    said: list[str] = []
    found = framework_of(task.model).isolated(task, said.append)
    assert said == []
    assert isinstance(found, IsolatedKeras)
    yield found
    found.close()


def policy_of(framework: Any, task: ac.Task) -> ac.Policy:
    structure = framework.inspect(task)
    layers = {layer.name: ac.LayerPolicy(4, 8) for layer in structure.layers}
    return ac.Policy({group.name: 0.5 for group in structure.groups}, layers)


def made(framework: Any, task: ac.Task) -> Candidate:
    candidate: Candidate = framework.compress(task, policy_of(framework, task), "l2")
    return candidate


def outputs(framework: Any, task: ac.Task, candidate: Candidate) -> Any:
    return framework.predict(task, candidate, (batch.inputs for batch in task.splits["valid"].numpy()))


def process_of(framework: IsolatedKeras) -> subprocess.Popen[bytes]:
    assert framework._worker is not None
    return framework._worker._process


class Counted:
    """Policies in turns, and how many were taken."""

    def __init__(self, policies: list[ac.Policy]) -> None:
        self.policies, self.count = policies, 0

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> ac.Policy:
        self.count += 1
        return self.policies[self.count % len(self.policies)]


def raising(error: BaseException) -> Callable[[float], None]:
    def progress(fraction: float) -> None:
        raise error

    return progress


def test_a_worker_computes_what_this_process_would(task: ac.Task, worker: IsolatedKeras, capsys: pytest.CaptureFixture) -> None:
    seen: list[list[float]] = []
    found = []
    for framework in (framework_of(task.model), worker):
        seen.append([])
        candidate = made(framework, task)
        framework.fine_tune(task, candidate, SETTINGS, seen[-1].append)
        assert capsys.readouterr().out == "epoch 0\nepoch 1\n"
        found.append((candidate, outputs(framework, task, candidate), framework.to_openvino(task, candidate, 1)))
    (here, outputs_here, graph_here), (there, outputs_there, graph_there) = found
    assert seen[0] == seen[1]
    assert (here.macs, here.removed, here.policy) == (there.macs, there.removed, there.policy)
    np.testing.assert_array_equal(outputs_here, outputs_there)
    assert graph_here.input_ranges == graph_there.input_ranges
    for name, grid in graph_here.grids.items():
        assert (grid.bits, grid.axis) == (graph_there.grids[name].bits, graph_there.grids[name].axis)
        np.testing.assert_array_equal(grid.codes, graph_there.grids[name].codes)
    nodes = [graph.model.get_ordered_ops() for graph in (graph_here, graph_there)]  # names hold counts of all models of a process
    types = [[node.get_type_name() for node in of_one] for of_one in nodes]
    assert types[0] == types[1]


def test_weights_go_through_files(task: ac.Task, worker: IsolatedKeras, tmp_path: Path) -> None:
    tuned, fresh = made(worker, task), made(worker, task)
    worker.reestimate(task, tuned)
    worker.save(tuned, tmp_path / "weights.safetensors")
    worker.load(fresh, tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(outputs(worker, task, fresh), outputs(worker, task, tuned))
    with pytest.raises(ModelError, match=r"missing\.safetensors"):
        worker.load(fresh, tmp_path / "missing.safetensors")


def test_what_progress_raises_stops_the_training_and_not_the_worker(task: ac.Task, worker: IsolatedKeras) -> None:
    process, error = process_of(worker), OutOfTimeError()
    candidate = made(worker, task)
    with pytest.raises(OutOfTimeError) as caught:
        worker.fine_tune(task, candidate, TuneSettings(1000, 1e-2, 0.5), raising(error))
    assert caught.value is error
    assert worker.fine_tune(task, made(worker, task), SETTINGS, lambda fraction: None) == SETTINGS.epochs
    assert process_of(worker) is process


def test_a_loss_that_is_not_a_number_is_told_with_its_step(task: ac.Task, worker: IsolatedKeras) -> None:
    with pytest.raises(DivergedError, match=r"The loss became nan after 1 of 3 steps; a smaller learning_rate may help\.$"):
        worker.fine_tune(task, made(worker, task), TuneSettings(3, 1e30, 0.0), lambda fraction: None)


def test_an_interrupt_ends_the_worker(task: ac.Task, worker: IsolatedKeras) -> None:
    process = process_of(worker)
    with pytest.raises(KeyboardInterrupt):
        worker.fine_tune(task, made(worker, task), TuneSettings(1000, 1e-2, 0.5), raising(KeyboardInterrupt()))
    assert process.poll() is not None


def test_a_worker_that_dies_fails_a_trial_and_the_next_goes_on(task: ac.Task, worker: IsolatedKeras) -> None:
    lost = made(worker, task)
    dies = process_of(worker)
    with pytest.raises(WorkerError, match=r"ended by SIGKILL during fine_tune; as when memory runs out"):
        worker.fine_tune(task, lost, SETTINGS, lambda fraction: dies.kill())
    with pytest.raises(WorkerError, match=r"that trained this candidate has died"):
        outputs(worker, task, lost)


def test_a_shared_training_takes_policies_from_here_and_all_survives_a_worker_that_has_grown(
    task: ac.Task, worker: IsolatedKeras, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = [policy_of(worker, task), ac.Policy()]
    found, taken, trainings = [], [], []
    for framework in (framework_of(task.model), worker):
        taken.append(Counted(policies))
        trainings.append(framework.share(task, "l2", SETTINGS))
        trainings[-1].begin(2)
        trainings[-1].epoch(taken[-1], lambda fraction: None)
        candidate = trainings[-1].candidate(policies[0])
        framework.reestimate(task, candidate)
        found.append(outputs(framework, task, candidate))
    np.testing.assert_array_equal(*found)
    assert taken[0].count == taken[1].count == task.splits["train"].batch_count
    process, others = process_of(worker), [candidate, made(worker, task)]
    before = [outputs(worker, task, other) for other in others]
    monkeypatch.setattr(isolated, "MOST_GROWN_BYTES", -1)
    heir = trainings[1].candidate(policies[0])
    assert process_of(worker) is not process
    assert process.poll() == 0
    worker.reestimate(task, heir)
    for other, expected in zip([heir, *others], [found[1], *before], strict=True):
        np.testing.assert_array_equal(outputs(worker, task, other), expected)


def test_the_worker_tells_why_a_shared_training_is_only_masked(task: ac.Task, worker: IsolatedKeras) -> None:
    training = worker.share(task, "l2", replace(SETTINGS, feature_distillation=1.0))
    training.begin(20)
    assert training.masked_because == FEATURES_ARE_WHOLE


QUIET = """
import keras_models

task = keras_models.small_task(keras_models.build("conv"))
"""


def test_an_heir_is_trained_in_the_worker_as_it_would_be_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = load_task(searches.write_task(tmp_path / "quiet_task.py", QUIET))
    here, trainings, found = framework_of(quiet.model), [], []
    there = here.isolated(quiet, lambda _: None)
    for framework in (here, there):
        trainings.append(framework.share(quiet, "l2", SETTINGS))
        trainings[-1].begin(20)
        for _ in range(2):  # the first leaves no trace in the second
            heir = trainings[-1].candidate(policy_of(framework, quiet))
            framework.fine_tune(quiet, heir, SETTINGS, lambda fraction: None, trainings[-1])
            found.append(outputs(framework, quiet, heir))
    assert trainings[0].can_tune(heir, SETTINGS)
    heir = trainings[1].candidate(policy_of(there, quiet))
    monkeypatch.setattr(isolated, "MOST_GROWN_BYTES", -1)
    made(there, quiet)  # in a new worker, which has no training yet
    monkeypatch.undo()
    there.fine_tune(quiet, heir, SETTINGS, lambda fraction: None, trainings[1])
    found.append(outputs(there, quiet, heir))
    there.close()
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


FORKING = """
import multiprocessing
import os
import pathlib
from concurrent.futures import ProcessPoolExecutor

import keras_models

folder = pathlib.Path(__file__).parent
if (folder / "forks").exists():
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    (folder / "pid").write_text(str(pool.submit(os.getpid).result()))
task = keras_models.small_task(keras_models.build("mlp"))
"""


def test_a_death_is_noticed_though_a_child_holds_the_pipe_and_the_child_ends_too(tmp_path: Path) -> None:
    file = searches.write_task(tmp_path / "forking_task.py", FORKING)
    (tmp_path / "forks").touch()
    process = WorkerProcess(tmp_path, "tensorflow")
    process.call("open", reference=str(file))
    child = int((tmp_path / "pid").read_text())
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="ended by SIGKILL during reestimate"):
        process.call("reestimate", number=0)
    wait_until(lambda: not is_running(child), 10)


def test_a_new_worker_with_another_task_is_refused(task: ac.Task, worker: IsolatedKeras, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker._worker is not None
    worker._worker.end()
    monkeypatch.setitem(worker._identity, "model", "as it was")
    with pytest.raises(WorkerError, match="the task has other model"):
        made(worker, task)
    monkeypatch.undo()
    assert made(worker, task).macs  # once the file is as it was


def test_a_tasks_folder_may_hold_a_module_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('not the standard library')")
    file = searches.write_task(tmp_path / "plain_task.py", FORKING)
    loaded = load_task(file)
    said: list[str] = []
    framework = framework_of(loaded.model).isolated(loaded, said.append)
    framework.close()
    assert said == []


UNNAMED = """
import keras
import keras_models
from keras import layers

stack = [keras.Input((8, 8, 1)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(10)]
task = keras_models.small_task(keras.Sequential(stack))
"""


def test_a_file_that_is_loaded_again_has_the_same_layers_and_counts_go_on(tmp_path: Path) -> None:
    file = searches.write_task(tmp_path / "unnamed_task.py", UNNAMED)
    names = [[layer.name for layer in load_task(file).model.layers] for _ in range(2)]
    assert names[0] == names[1]
    assert "conv2d" in names[0]
    assert keras.layers.Conv2D(4, 3).name not in names[0]


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    body = "import os, pathlib, time\npathlib.Path(__file__).with_name('pid').write_text(str(os.getpid()))\ntime.sleep(60)"
    file = searches.write_task(tmp_path / "slow_task.py", body)
    driver = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path), str(file)])
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "", 60)
    driver.kill()
    driver.wait()
    number = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(number), 10)


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(number: int) -> bool:
    """A zombie is not: in a container there may be nobody who takes note of its end."""
    status = Path(f"/proc/{number}/stat")
    return status.is_file() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def all_errors() -> list[type[AutocompressError]]:
    kinds = (getattr(errors, name) for name in vars(errors))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, AutocompressError)]


@pytest.mark.parametrize("kind", [*all_errors(), ValueError, KeyError, builtins.MemoryError])
def test_an_error_arrives_as_what_it_was(kind: type[Exception]) -> None:
    error = kind("the rule; got 3.")
    found = error_of(describe_error(error))
    assert type(found) is kind
    assert str(found) == str(error)


def test_an_error_of_a_foreign_class_is_named() -> None:
    class Foreign(Exception):
        pass

    found = error_of(describe_error(Foreign("what it says")))
    assert isinstance(found, StageError)
    assert str(found) == "Foreign: what it says"


@pytest.mark.parametrize("isolate", [True, False])
def test_a_task_that_is_not_from_a_file_runs_here_and_says_so(isolate: bool) -> None:
    import keras_models

    said: list[str] = []
    memory = keras_models.small_task(keras_models.build("mlp"))
    bench, *_ = open_bench(memory, SearchConfig(isolate=isolate), said.append)
    assert bench.framework.name == "keras"
    assert [line.partition(",")[0] for line in said] == ["Trials run in this process"] * isolate


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"model": "another"}, "has other model and other train data and other valid data"),
        (ValueError("no such file"), "raises ValueError: no such file"),
    ],
)
def test_a_task_that_is_another_when_it_is_loaded_again_runs_here(
    task: ac.Task, monkeypatch: pytest.MonkeyPatch, answer: Any, reason: str
) -> None:
    class Process:
        def __init__(self, folder: Path, backend: str) -> None:
            pass

        def call(self, name: str, **arguments: Any) -> Any:
            assert (name, arguments) == ("open", {"reference": task.origin})
            if isinstance(answer, Exception):
                raise answer
            return answer

        def end(self) -> None:
            pass

    said: list[str] = []
    monkeypatch.setattr(isolated, "WorkerProcess", Process)
    inner = framework_of(task.model)
    assert inner.isolated(task, said.append) is inner
    (line,) = said
    assert line.endswith(reason)
