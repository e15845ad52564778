"""Calling a user's module with a batch, and looking at what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.data import Inputs, map_arrays, to_numpy
from autocompress.task import Task


def as_tensor(array: Any, device: torch.device | str = "cpu") -> Any:
    """An array of a batch as a tensor on the model's device. NumPy's float64 becomes float32, as models have it."""
    tensor = torch.as_tensor(array)
    return tensor.to(device, torch.float32 if tensor.dtype == torch.float64 else tensor.dtype)


def tensors(inputs: Inputs, device: torch.device | str = "cpu") -> Any:
    """Inputs with every array a tensor."""
    return map_arrays(inputs, lambda array: as_tensor(array, device))


@contextmanager
def unfused() -> Iterator[None]:
    """Within it PyTorch's own encoder layers call the layers that they are made of, past which they compute in evaluation."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def call(model: nn.Module, inputs: Any) -> Any:
    """The module on positional or named inputs."""
    with unfused():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def outputs_of(value: Any) -> list[torch.Tensor]:
    """The tensors of an output: one, a tuple, a dict or a model-output object, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [tensor for item in value if item is not None for tensor in outputs_of(item)]


def predicted(
    model: nn.Module, batches: Iterable[Inputs], ordered: Callable[[Any], Any] = lambda inputs: inputs
) -> list[NDArray[Any]]:
    """The outputs for batches of inputs, one after the other. The model is left in evaluation mode.

    Args:
        model: that is called.
        batches: inputs, as they come from the data.
        ordered: puts tensors into the model's order of memory.
    """
    device = device_of(model.eval())
    with torch.no_grad():
        calls = (call(model, ordered(tensors(inputs, device))) for inputs in batches)
        found = [[to_numpy(output) for output in outputs_of(one)] for one in calls]
    return [np.ascontiguousarray(np.concatenate(parts)) for parts in zip(*found, strict=True)]  # a metric may ask for a view


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def on_cpu(example: Any) -> Any:
    """The same inputs where OpenVINO and the proofs work."""
    return map_arrays(example, lambda tensor: tensor.cpu())


def example_inputs(task: Task, batch: int) -> Any:
    """`batch` training samples as tensors on the model's device; the last is repeated where there are fewer."""
    samples = task.splits["train"].take(batch)
    samples += [samples[-1]] * (batch - len(samples))
    device = device_of(task.model)
    names = samples[0].keys() if isinstance(samples[0], dict) else range(len(samples[0]))
    joined = {name: torch.cat([as_tensor(sample[name], device) for sample in samples]) for name in names}  # type: ignore[index]
    return joined if isinstance(samples[0], dict) else tuple(joined.values())
