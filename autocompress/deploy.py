"""A candidate as the IR that will be shipped, and what of it runs in INT8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import openvino as ov

from autocompress.config import CompressionConfig
from autocompress.data import Inputs, map_arrays
from autocompress.device import Target
from autocompress.frameworks.base import Candidate, Framework
from autocompress.policy import Policy
from autocompress.target import precision
from autocompress.target.executed import kernels
from autocompress.target.runtime import compile_model
from autocompress.task import Task


def calibration_inputs(task: Task, config: CompressionConfig) -> list[Inputs]:
    """Inputs for calibration, each with the deployed batch size."""
    singles = task.calibration_split.take(config.calibration_samples)
    return [map_arrays(sample, lambda a: np.repeat(a, config.target.batch, axis=0)) for sample in singles]


def deploy(
    framework: Framework,
    task: Task,
    candidate: Candidate,
    target: Target,
    samples: Sequence[Inputs],
    *,
    trained: bool,
    compact: bool,
) -> tuple[ov.Model, list[str]]:
    """The candidate as the IR that will be shipped, and notes.

    Low-bit codes whose packed storage would cost their layer its integer kernel are stored in 8 bits.

    Args:
        framework: of the candidate.
        task: with the original model.
        candidate: what is deployed; it is not changed.
        target: where it will run.
        samples: inputs from which activation ranges are taken.
        trained: False lets NNCF correct biases.
        compact: store 4-, 3- and 2-bit codes in 4 or 2 bits.

    Raises:
        ConversionError: the model could not be turned into the IR that its policy asks for.
    """
    converted = framework.to_openvino(task, candidate, target.batch)
    correct_bias = not trained and len(samples) > 1
    model = precision.place_precision(converted, candidate.policy, samples, correct_bias=correct_bias, compact=compact)
    packed = [
        name for name, grid in converted.grids.items() if compact and grid.bits <= 4 and candidate.policy.layer(name).is_integer
    ]
    if packed:
        running = kernels(compile_model(model, target), packed)
        wide = [name for name in packed if name in running and not running[name].is_low]
        if wide:
            wider = precision.place_precision(
                converted, candidate.policy, samples, wide=wide, correct_bias=correct_bias, compact=compact
            )
            running = kernels(compile_model(wider, target), wide)
            if not any(running[name].is_low for name in wide if name in running):  # it was not the storage
                return model, converted.notes
            model = wider
            converted.notes.append(f"stored in 8 bits to keep an integer kernel: {', '.join(wide)}")
    return model, converted.notes


def integer_layers(compiled: ov.CompiledModel, policy: Policy, names: Iterable[str]) -> dict[str, bool]:
    """Each layer that the policy quantizes → whether it really runs in INT8."""
    asked = [name for name in names if policy.layer(name).is_integer]
    running = kernels(compiled, asked)
    return {name: name in running and running[name].is_low for name in asked}


def not_as_asked(is_integer: Mapping[str, bool]) -> list[str]:
    """Notes on the layers that were to run in INT8 and do not."""
    return [f"{name} was to run in INT8 and does not" for name, runs in is_integer.items() if not runs]
