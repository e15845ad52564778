"""The task's metric on a deployed model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from autocompress.data import Inputs, Split, as_prediction, elements_per_sample, join, rebatched
from autocompress.device import Target
from autocompress.errors import ConversionError, TargetError
from autocompress.metrics import Metric
from autocompress.target.runtime import compile_for_scoring, core

SCORED_TOGETHER = 32
"""Samples of one request at most; more took longer again."""
WIDENED_ELEMENTS = 2**18
"""Elements of the largest input of a widened graph at most."""
SAME = 1e-4
"""Difference of two outputs, relative to the largest, that is rounding."""


def score(model: ov.Model | Path, target: Target, split: Split, metric: Metric) -> float:
    """The metric of a deployed model on every sample of a split.

    A call of a small model takes longer than its arithmetic, so small samples share a request where that is seen to change no
    output.

    Raises:
        TargetError: the device refuses the model.
        TaskError: the metric is not a finite number.
    """
    compiled = compile_for_scoring(model, target)
    return evaluate(_for_many(model, compiled, target, split) or compiled, split, metric)


def _for_many(model: ov.Model | Path, compiled: ov.CompiledModel, target: Target, split: Split) -> ov.CompiledModel | None:
    """The same model at a larger batch; None where that does not pay or its outputs are others."""
    first, deployed = next(split.numpy()), batch_size(compiled)
    most = min(SCORED_TOGETHER, first.size, WIDENED_ELEMENTS // elements_per_sample(first.inputs))
    if most < 2 * deployed:
        return None
    size = most // deployed * deployed
    try:
        single = core().read_model(model) if isinstance(model, Path) else model
        wide = compile_for_scoring(widened(single, size // deployed), target)
        before, after = (predict(one, rebatched(iter([first]), batch_size(one))) for one in (compiled, wide))
    except (RuntimeError, TargetError):  # a graph may be made for one batch size
        return None
    return wide if differ_by_rounding(before, after) else None


def widened(model: ov.Model, times: int) -> ov.Model:
    """A copy of a static graph whose inputs hold so many times as many samples.

    Raises:
        RuntimeError: the graph was made for its batch size.
    """
    wide = model.clone()
    wide.reshape({port: [times * port.shape[0], *list(port.shape)[1:]] for port in wide.inputs})
    return wide


def differ_by_rounding(before: Any, after: Any) -> bool:
    """Whether two predictions differ by rounding at most: two arrays, or two tuples of as many."""
    if isinstance(before, tuple):
        return all(map(differ_by_rounding, before, after))
    if before.shape != after.shape or not before.size:
        return False
    largest = np.abs(before[np.isfinite(before)]).max(initial=0.0)
    return bool(np.allclose(before, after, rtol=0, atol=SAME * largest, equal_nan=True))


def evaluate(compiled: ov.CompiledModel, split: Split, metric: Metric) -> float:
    """The metric on every sample of a split, each scored at the batch size of a compiled model.

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
