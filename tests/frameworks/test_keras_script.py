"""Keras models in a user's own script, the data that they come with, and what is wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

keras = pytest.importorskip("keras")
keras_models = pytest.importorskip("keras_models")

import autocompress as ac  # noqa: E402
from autocompress.errors import BundleError, ConfigError, TaskError  # noqa: E402
from autocompress.frameworks.base import TuneSettings  # noqa: E402
from autocompress.frameworks.keras.framework import KerasFramework  # noqa: E402
from autocompress.frameworks.keras.resting import predicted  # noqa: E402

POLICY = {"pruning": {"conv1": 0.5}, "layers": {"conv2": {"weights": 4, "activations": 8, "sparsity": 0.5}}}


def images(count: int = 64) -> tuple[Any, Any]:
    inputs, classes = keras_models.digits()["train"]
    return inputs[:count], classes[:count]


def test_a_model_is_prepared_trained_by_fit_exported_and_loaded_again(tmp_path: Path) -> None:
    original = keras_models.build("conv")
    before = [weight.copy() for weight in original.get_weights()]
    model = ac.keras.prepare(original, POLICY, images()[0])
    model.compile("adam", keras_models.cross_entropy(), jit_compile=False, run_eagerly=True)
    model.fit(*images(), 32, callbacks=[ac.keras.schedule(model, 2)], verbose=0)
    ac.keras.export(model, tmp_path / "bundle")
    again = ac.load(tmp_path / "bundle", keras_models.build("conv"))
    inputs = keras_models.digits()["valid"][0][:8]
    np.testing.assert_allclose(predicted(again, [(inputs,)])[0], predicted(model, [(inputs,)])[0], rtol=1e-5, atol=1e-6)
    assert all((a == b).all() for a, b in zip(before, original.get_weights(), strict=True))
    assert not list((tmp_path / "bundle").glob("*.pkl"))
    with pytest.raises(BundleError, match=r"conv1.*"):
        ac.load(tmp_path / "bundle", keras_models.build("flatten"))


def test_only_prepared_models_are_exported_and_steps_are_positive(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"prepare\(\) or load\(\).*Functional"):
        ac.keras.export(keras_models.build("conv"), tmp_path / "bundle")
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        ac.keras.schedule(keras_models.build("conv"), 0)


class Indexed(keras.utils.PyDataset):
    """Batches by index."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return tuple(array[32 * index : 32 * index + 32] for array in images())


def sources() -> dict[str, Any]:
    import tensorflow as tf

    tensors = [torch.tensor(array) for array in images()]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), batch_size=32)
    weighted = tf.data.Dataset.from_tensor_slices((*images(), np.ones(64, np.float32))).batch(32)
    return {"arrays": images(), "tf.data": weighted, "PyDataset": Indexed(), "DataLoader": loader}


@pytest.mark.parametrize("kind", ["arrays", "tf.data", "PyDataset", "DataLoader"])
def test_a_compiled_model_is_trained_on_any_data_by_its_own_loss_and_optimizer(kind: str) -> None:
    model, data = keras_models.build("conv"), sources()[kind]
    model.compile(keras.optimizers.Adam(1e-2), keras_models.cross_entropy(), metrics=["accuracy"])
    losses: list[float] = []
    seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]))
    task = ac.Task(model, train=data, valid=images(), batch_size=32, callbacks=lambda: [seen])
    framework = KerasFramework()
    candidate = framework.compress(task, ac.Policy({}, {"fc": ac.LayerPolicy(8, 8)}), "l2")
    framework.fine_tune(task, candidate, TuneSettings(4, None, 0.0), lambda fraction: None)
    assert len(losses) == 4
    assert losses[-1] < losses[0]


def test_a_model_without_a_loss_is_refused() -> None:
    task = keras_models.small_task(keras_models.build("conv"), loss=None)
    with pytest.raises(TaskError, match=r"has a loss; got functional.*not compiled.*compile\(loss"):
        KerasFramework().inspect(task)


@pytest.mark.parametrize("shape", [(64, 8, 8), (64, 8, 8, 3), (64, 1, 8, 8)])
def test_data_that_do_not_fit_the_model_are_refused(shape: tuple[int, ...]) -> None:
    data = np.zeros(shape, np.float32), np.zeros(64, np.int64)
    task = ac.Task(keras_models.build("conv"), train=data, valid=data, loss="sparse_categorical_crossentropy")
    with pytest.raises(TaskError, match=r"train data fit the model's inputs, .*image.*; got"):
        KerasFramework().inspect(task)


@pytest.mark.parametrize("backend", ["openvino"])
def test_an_unsupported_backend_is_refused(backend: str) -> None:
    code = (
        "from autocompress.errors import TaskError\n"
        "from autocompress.frameworks.keras.framework import KerasFramework\n"
        "try: KerasFramework()\n"
        "except TaskError as error: print(error)"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout
    assert "tensorflow, torch, jax; got openvino" in found


def test_models_of_the_torch_backend_are_trained_and_converted() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import keras_models as models, numpy as np, openvino as ov, autocompress as ac\n"
        "from autocompress.frameworks.base import TuneSettings\n"
        "from autocompress.frameworks.keras.resting import predicted, resting\n"
        "from autocompress.frameworks.keras.framework import KerasFramework\n"
        "task, framework = models.small_task(models.build('conv')), KerasFramework()\n"
        "policy = ac.Policy({}, {name: ac.LayerPolicy(4, sparsity=0.5) for name in ('conv1', 'conv2')})\n"
        "candidate = framework.compress(task, policy, 'l2')\n"
        "framework.fine_tune(task, candidate, TuneSettings(2, 1e-2, 0.5), lambda fraction: None)\n"
        "images = task.valid[0][:1]\n"
        "found = ov.Core().compile_model(framework.to_openvino(task, candidate, 1).model, 'CPU')(images)[0]\n"
        "assert np.abs(found - predicted(candidate.model, [(images,)])[0]).max() < 0.05\n"
        "with resting(candidate.model): assert not candidate.model(images).requires_grad\n"
        "elastic = framework.share(task, 'l2', TuneSettings(1, 1e-2, 0.5)).elastic.model\n"
        "for model in (candidate.model, elastic):  # what a step of the backend would not reset, it would sum up for ever\n"
        "    reached = {id(parameter) for parameter in model.parameters()}\n"
        "    print(len([v for v in model.trainable_variables if id(v.value) not in reached]))"
    )
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert ended.stdout.split() == ["0", "0"], ended.stderr[-2000:]
