"""A graph's weights on disk without pickle, and its parts in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
from safetensors.numpy import load_file, save

from autocompress.errors import ModelError
from autocompress.frameworks.keras.graph import layers_by_name
from autocompress.frameworks.keras.simulate import simulated_inputs
from autocompress.frameworks.weights_file import read_tensors, write_whole

UNSAID = ("name", "trainable", "dtype", "quantization_config", "seed")
"""Settings that do not change which weights a layer takes, and what it does with them."""
UNSAID_ENDS = ("_initializer", "_regularizer", "_constraint")


def save_weights(model: keras.Model, path: Path) -> None:
    """Write all variables of the layers as safetensors, whole or not at all."""
    stored = save({name: keras.ops.convert_to_numpy(variable) for name, variable in _variables(model).items()})
    write_whole(path, lambda place: place.write_bytes(stored))


def load_weights(model: keras.Model, path: Path) -> None:
    """Read what `save_weights` wrote.

    Raises:
        ModelError: the file is missing, damaged, or of another model.
    """
    stored = read_tensors(path, load_file)
    variables = _variables(model)
    wrong = [
        name
        for name in {**variables, **stored}
        if name not in stored or name not in variables or tuple(stored[name].shape) != tuple(variables[name].shape)
    ]
    if wrong:
        raise ModelError("The weights of a file are those of the model", f"{path}: other {', '.join(sorted(wrong)[:6])}")
    for name, variable in variables.items():
        variable.assign(stored[name])
    for quantizer in simulated_inputs(model).values():
        quantizer.refresh()


def architecture(model: keras.Model) -> dict[str, str]:
    """Every layer of a graph and every weight, by name, in words.

    Of two models with one architecture each takes the other's weights. How the layers are connected is not seen.
    """
    layers = {name: f"{type(layer).__name__}({_settings(layer)})" for name, layer in layers_by_name(model).items()}
    tensors = {
        f"{name}.{weight.name}": f"{weight.dtype} {list(weight.shape)}"
        for name, layer in layers_by_name(model).items()
        for weight in layer.weights
    }
    return layers | tensors


def _settings(layer: keras.layers.Layer) -> str:
    try:
        config = layer.get_config()
    except NotImplementedError:  # of a layer without weights
        return ""
    said = {key: value for key, value in config.items() if key not in UNSAID and not key.endswith(UNSAID_ENDS)}
    return ", ".join(f"{key}={json.dumps(value, sort_keys=True, default=str)}" for key, value in sorted(said.items()))


def _variables(model: keras.Model) -> dict[str, Any]:
    return {
        f"{name}.{index}.{weight.name}": weight
        for name, layer in layers_by_name(model).items()
        for index, weight in enumerate(layer.weights)
    }
