"""What is wrong with a Keras task is one clear line and exit code 2, before anything is trained or written."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import pytest
import searches

HEAD = """
import keras
import numpy as np
from keras import layers

import autocompress as ac
import keras_models

images, classes = keras_models.digits()["valid"]
smaller, one_hot = (images[:, :7], classes), (images, np.eye(10, dtype="float32")[classes])


def digits(model=None, **options):
    return keras_models.small_task(model or keras_models.build("conv"), **options)


def classifier(*stack):
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(10)])

"""
CASES = {
    "not compiled": ("digits(loss=None)", r"has a loss; got functional\w*, which is not compiled\. Call model\.compile"),
    "of unknown rank": ("digits(classifier(keras.Input(shape=None)))", r"imports; got ValueError: You must pass a `shape`"),
    "smaller images": (
        "digits(train=smaller)",
        r"train data fit the model's inputs, \{'image': \(8, 8, 1\)\}; got \[\(7, 8, 1\)\]",
    ),
    "a sample each": ("digits(train=(images[..., 0], classes))", r"fit the model's inputs, .*; got \[\(8, 8\)\]"),
    "two inputs": ("digits(train=((images, images), classes))", r"fit the model's inputs, \{'image': \(8, 8, 1\)\}; got"),
    "other valid data": (
        "digits(valid=smaller)",
        r"valid data have the shapes of the train data, .*\(8, 8, 1\).*; got .*\(7, 8, 1\)",
    ),
    "other test data": ("digits(test=smaller)", r"test data have the shapes of the train data"),
    "other calibration data": ("digits(calibration=smaller)", r"calibration data have the shapes of the train data"),
    "one-hot targets": (
        "digits(train=one_hot)",
        r"loss takes the model's outputs and the targets of the train data; got ValueError",
    ),
    "unknown classes": (
        "digits(train=(images, classes + 90))",
        r"loss takes .*; got InvalidArgumentError: Received a label value",
    ),
    "half precision": (
        "digits(classifier(keras.Input((8, 8, 1)), layers.Conv2D(4, 3, dtype='mixed_float16', name='half')))",
        r"compute in float32; got half in mixed_float16\. Build it under",
    ),
    "targets of another size": ("digits(train=(images, images), loss='mse')", r"targets of the train data; got .*\(10,\)"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_task_that_cannot_be_searched_is_refused_in_a_line(case: str, tmp_path: Path) -> None:
    task, message = CASES[case]
    file = searches.write_task(tmp_path / "task.py", f"{HEAD}\ntask = {task}")
    refused(file, tmp_path / "run", message)


def test_a_backend_that_cannot_train_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = searches.write_task(tmp_path / "task.py", f"{HEAD}\ntask = digits()")
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    refused(file, tmp_path / "run", r"run on one of tensorflow, torch, jax; got openvino\. Set KERAS_BACKEND")


def test_data_of_a_torch_task_have_one_shape_too(tmp_path: Path) -> None:
    other = "tuple(a[..., :7] if a.ndim == 4 else a for a in models.digits()['valid'])"
    file = searches.write_task(tmp_path / "task.py", f"task = models.small_task(models.build('conv'), valid={other})")
    refused(file, tmp_path / "run", r"valid data have the shapes of the train data, .*\(1, 8, 8\).*; got .*\(1, 8, 7\)")


def refused(task: Path, out: Path, message: str) -> None:
    outcome = searches.cli("search", task, "--trials", "1", "--out", out)
    assert outcome.code == 2, outcome
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not (out / "run.json").exists()
