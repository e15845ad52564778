"""Models of every backend to OpenVINO: its frontend reads TensorFlow's graphs alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
import openvino as ov

from autocompress.data import Inputs
from autocompress.errors import ConversionError
from autocompress.frameworks.keras.convert import convert

MODEL, EXAMPLE, CONVERTED = "model.keras", "example.npz", "model.xml"


def converted(model: keras.Model, example: Inputs) -> ov.Model:
    """A graph as an `ov.Model`; on another backend than TensorFlow by a process of its own.

    Raises:
        ConversionError: OpenVINO cannot convert the model.
    """
    if keras.backend.backend() == "tensorflow":
        return convert(model, example)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        model.save(path / MODEL)
        np.savez(path / EXAMPLE, **(example if isinstance(example, dict) else {str(i): a for i, a in enumerate(example)}))
        command = [sys.executable, "-m", __name__, folder]
        environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        if ended.returncode:
            reason = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConversionError(f"The model cannot be converted on the TensorFlow backend: {reason}")
        return ov.Core().read_model(path / CONVERTED)


def _convert_folder(path: Path) -> None:
    """What the process does: read a saved model, and write what it becomes."""
    with np.load(path / EXAMPLE) as stored:
        named = {name: stored[name] for name in stored}
    example = tuple(named.values()) if all(name.isdigit() for name in named) else named
    ov.save_model(
        convert(keras.saving.load_model(path / MODEL, compile=False), example), path / CONVERTED, compress_to_fp16=False
    )


if __name__ == "__main__":
    _convert_folder(Path(sys.argv[1]))
