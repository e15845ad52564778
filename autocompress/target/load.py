"""Any model that OpenVINO reads: an IR, an ONNX file, or a bundle; ready to be compiled for a target."""

from __future__ import annotations

from pathlib import Path

import openvino as ov

from autocompress.device import Target
from autocompress.errors import ModelError
from autocompress.target.runtime import core

SUFFIXES = (".xml", ".onnx", ".tflite", ".pb", ".pdmodel")


def load_model(path: str | Path, target: Target) -> ov.Model:
    """Read a model and give its inputs the target's shapes and batch.

    Args:
        path: a model file, or the folder of a bundle.
        target: where it will run; its `shapes` are for dynamic inputs.

    Raises:
        ModelError: the file is missing or unreadable, an input's shape stays unknown, or a shape does not fit.
    """
    file = model_file(Path(path))
    try:
        model = core().read_model(file)
    except RuntimeError as error:
        raise ModelError("A model is an IR, an ONNX file or a bundle", f"{path}: {_last_line(error)}") from error
    shapes = request_shapes(model, target, str(path))
    if not target.dynamic:
        try:
            model.reshape(dict(enumerate(shapes)))
        except RuntimeError as error:
            raise ModelError("A model can take the shapes that are given", f"{shapes} for {path}: {_last_line(error)}") from error
    return model


def model_file(path: Path) -> Path:
    """The file to read.

    Raises:
        ModelError: there is none.
    """
    file = path / "model.xml" if path.is_dir() else path
    if not file.is_file():
        remedy = "Give the path of an .xml or .onnx file, or of a bundle's folder."
        raise ModelError("A model file exists", str(path) if not path.is_dir() else f"{path} without model.xml", remedy)
    if file.suffix == ".xml" and not file.with_suffix(".bin").is_file():
        raise ModelError("An IR is an .xml file with its .bin beside it", f"{file} alone")
    return file


def request_shapes(model: ov.Model, target: Target, name: str = "the model") -> list[list[int]]:
    """The shape of each input in a request: the model's own, or the target's where the model's is dynamic.

    Raises:
        ModelError: a dynamic input without a shape, or a shape for an input that the model does not have.
    """
    given = {key: list(shape) for key, shape in target.shapes.items()}
    shapes = []
    for index, port in enumerate(model.inputs):
        keys = {str(index), *port.get_names()} & given.keys()
        shape = given.pop(keys.pop()) if keys else _with_batch(port.partial_shape, target.batch)
        if shape is None:
            what = f"input {_label(index, port)} of {name} with shape {port.partial_shape}"
            raise ModelError(
                "A model with dynamic shapes is called at a given shape", what, "Add --shape, for example 1,3,224,224."
            )
        shapes.append(shape)
    if given:
        inputs = ", ".join(_label(index, port) for index, port in enumerate(model.inputs))
        raise ModelError("A shape is given for an input of the model", f"{', '.join(given)} for {name}", f"Its inputs: {inputs}.")
    return shapes


def _with_batch(shape: ov.PartialShape, batch: int) -> list[int] | None:
    """An input's own shape with the target's batch in front; None if another dimension is unknown."""
    dimensions = [None if d.is_dynamic else d.get_length() for d in shape] if shape.rank.is_static else [None]
    if not dimensions:
        return []
    first = batch if dimensions[0] is None or (batch > 1 and dimensions[0] == 1) else dimensions[0]
    known = [first, *dimensions[1:]]
    return None if shape.rank.is_dynamic or any(d is None for d in known) else [int(d) for d in known if d is not None]


def _label(index: int, port: ov.Output) -> str:
    names = sorted(port.get_names())
    return names[0] if names else str(index)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
