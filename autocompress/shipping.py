"""A model from a user's own training script as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autocompress.bundle import bundled_samples, complete_bundle, unmeasured_promise
from autocompress.deploy import calibration_inputs, deploy, integer_layers, not_as_asked
from autocompress.frameworks.base import Candidate, Framework
from autocompress.history import History
from autocompress.prepared import Preparation
from autocompress.target import precision
from autocompress.target.runtime import compile_model, fingerprint


def ship(framework: Framework, made: Preparation, candidate: Candidate, path: Path) -> Path:
    """Write a candidate as a bundle that promises neither accuracy nor latency: nothing is measured but some outputs.

    Args:
        framework: of the candidate.
        made: how it was made.
        candidate: what is deployed; it is not changed.
        path: a folder that is new or empty.

    Raises:
        ConversionError: OpenVINO or NNCF refuses the model.
    """
    target, samples = made.config.target, calibration_inputs(made.task, made.config)
    compact = made.config.storage == "compact"
    graph, notes = deploy(framework, made.task, candidate, target, samples, trained=True, compact=compact)
    path.mkdir(parents=True, exist_ok=True)
    precision.save(graph, path / "model.xml")
    framework.save(candidate, path / "weights.safetensors")
    history = History(
        framework=framework.name,
        policy=made.policy.to_dict(),
        removed={group: list(channels) for group, channels in made.removed.items()},
        original=framework.architecture(made.task),
    )
    history.write(path / "history.json")
    inputs: dict[str, Any] = bundled_samples(made.task.calibration_split)
    np.savez(path / "samples.npz", **inputs)
    is_integer = integer_layers(compile_model(path / "model.xml", target), made.policy, made.macs)
    promise = unmeasured_promise(made.task.name, path, fingerprint(target), is_integer, notes + not_as_asked(is_integer))
    complete_bundle(path, target, made.policy.to_dict(), promise, made.task.preprocessing)
    return path
