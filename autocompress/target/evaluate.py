"""The task's metric on a compiled model."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov

from autocompress.data import Inputs, Split, as_prediction, join, rebatched
from autocompress.errors import ConversionError
from autocompress.metrics import Metric


def evaluate(compiled: ov.CompiledModel, split: Split, metric: Metric) -> float:
    """The metric on every sample of a split, each scored at the batch size that is deployed.

    Raises:
        TaskError: the metric is not a finite number.
    """
    targets: list[Any] = []

    def batches() -> Any:
        for batch in split.numpy():
            targets.append(batch.targets)
            yield batch

    predictions = predict(compiled, rebatched(batches(), batch_size(compiled)))
    return metric(predictions, join(targets))


def predict(compiled: ov.CompiledModel, batches: Any) -> Any:
    """Outputs for batches of (inputs, real samples): one array, or a tuple of arrays in the model's order."""
    results: list[list[Any]] = []
    queue = ov.AsyncInferQueue(compiled)

    def keep(request: ov.InferRequest, place: tuple[int, int]) -> None:
        index, real = place
        results[index] = [np.array(request.get_output_tensor(i).data[:real]) for i in range(len(compiled.outputs))]

    queue.set_callback(keep)
    for index, (inputs, real) in enumerate(batches):
        results.append([])
        queue.start_async(feed(compiled, inputs), (index, real))
    queue.wait_all()
    return as_prediction([join([result[i] for result in results]) for i in range(len(compiled.outputs))])


def feed(compiled: ov.CompiledModel, inputs: Inputs) -> dict[int, Any]:
    """Inputs by the index of the compiled model's input: positional ones in order, named ones by name.

    Raises:
        ConversionError: a name that the compiled model does not know.
    """
    if isinstance(inputs, tuple):
        return dict(enumerate(inputs))
    index = {name: i for i, port in enumerate(compiled.inputs) for name in port.get_names()}
    unknown = set(inputs) - set(index)
    if unknown:
        raise ConversionError(f"The converted model has the inputs {', '.join(index)}, not {', '.join(sorted(unknown))}.")
    return {index[name]: array for name, array in inputs.items()}


def batch_size(compiled: ov.CompiledModel) -> int:
    """The first dimension of the first input."""
    return int(compiled.inputs[0].shape[0])
