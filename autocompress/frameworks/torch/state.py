"""A module's weights on disk without pickle, what belongs to what, and tensors that it uses twice (tied weights)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from autocompress.errors import ModelError
from autocompress.frameworks.weights_file import read_tensors, write_whole


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers as safetensors, whole or not at all. A tensor with several names is stored under the first."""
    state = model.state_dict()
    first = _first_names(state)
    stored = save({name: state[name].contiguous().clone() for name in dict.fromkeys(first.values())})
    write_whole(path, lambda place: place.write_bytes(stored))  # save_file lets nobody but the user read the file


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote.

    Raises:
        ModelError: the file is missing, damaged, or of another model.
    """
    stored = read_tensors(path, load_file)
    first = _first_names(model.state_dict())
    try:
        model.load_state_dict(stored | {name: stored[owner] for name, owner in first.items() if owner in stored})
    except RuntimeError as error:
        raise ModelError("The weights of a file are those of the model", f"{path}: {error}") from error


def architecture(model: nn.Module) -> dict[str, str]:
    """Every module without parts of its own and every tensor, by name, in words.

    Of two models with one architecture each takes the other's weights. What their forward functions do with them is not seen.
    """
    modules = {
        name: f"{type(module).__name__}({module.extra_repr()})"
        for name, module in model.named_modules()
        if not any(module.children())
    }
    state = model.state_dict()
    tensors = {
        name: f"{str(state[name].dtype).removeprefix('torch.')} {list(state[name].shape)}"
        if name == first
        else f"the same tensor as {first}"
        for name, first in _first_names(state).items()
    }
    return modules | tensors


def _first_names(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Name of each tensor → the first name under which the same memory is seen in the same way."""
    seen: dict[tuple[object, ...], str] = {}
    return {
        name: seen.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), name) if tensor.numel() else name
        for name, tensor in state.items()
    }
