"""Compression in a user's own Keras training script.

import autocompress as ac

model = ac.keras.prepare(model, "policy.yaml", images)
model.compile(...)
model.fit(...)
ac.keras.export(model, "deploy/")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.bundle import require_new
from autocompress.config import CompressionConfig, validated
from autocompress.errors import ConfigError
from autocompress.frameworks.keras.framework import KerasFramework
from autocompress.frameworks.keras.script import Schedule, make_ready, structure_of
from autocompress.policy import Policy
from autocompress.policy_file import read_policy, resolve_policy
from autocompress.prepared import preparation_of, remember, task_of
from autocompress.shipping import ship

if TYPE_CHECKING:
    import keras

__all__ = ["export", "prepare", "schedule"]


def prepare(
    model: keras.Model,
    policy: Policy | Mapping[str, Any] | str | Path,
    calibration_data: Any,
    *,
    loss: Any = None,
    target_key: str = "labels",
    preprocessing: dict[str, Any] | None = None,
    name: str = "",
    **options: Any,
) -> keras.Model:
    """A compressed copy of a model to train on: pruned, with low bits and zeros simulated, its ranges calibrated.

    It is a Functional model that is not compiled; `compile`, `fit`, `save` and `keras.saving.load_model` work as ever.

    Args:
        model: the trained original. It is not changed.
        policy: a Policy, the path of a YAML or JSON file (by hand or from a search), a template's name, or the mapping itself.
        calibration_data: an array of inputs, a dict of them by name, a pair (inputs, targets), or data that yield batches; see
            `Task`. The first batches give ranges and batch-norm statistics, here and at the export.
        loss: for importance criteria that need gradients. Default: that which the model was compiled with.
        target_key: the key of the targets where batches are dicts.
        preprocessing: for the bundle's contract; see `Task`.
        name: for the bundle. Default: the model's name.
        **options: of `CompressionConfig`: criterion, target, storage, calibration_samples.

    Raises:
        UserError: the policy does not fit the model, or the model, data or options cannot be used.
    """
    config, written = validated(CompressionConfig, options), read_policy(policy)
    described = {"loss": loss, "target_key": target_key, "preprocessing": preprocessing, "name": name or model.name}
    task, framework = task_of(model, calibration_data, **described), KerasFramework()
    resolved = resolve_policy(written, structure_of(framework, task, prunable=bool(written["pruning"])))
    candidate = framework.compress(task, resolved, config.criterion)
    make_ready(candidate, task, config.fine_tuning.binarization)
    return remember(candidate, task, config)


def schedule(model: keras.Model, steps: int) -> Schedule:
    """A callback for `fit` by which zeros grow and layers of one bit become binary in the course of a training.

    Without it everything is in force from the first step.

    Args:
        model: what `prepare` or `load` returned.
        steps: training batches in all.
    """
    if steps < 1:
        raise ConfigError("steps is at least 1", steps)
    preparation_of(model)
    return Schedule(model, steps)


def export(model: keras.Model, out: str | Path) -> Path:
    """Write a trained model as a bundle that can be deployed, verified, and loaded again. The model is not changed.

    Nothing is measured but the outputs for some samples: the bundle promises no accuracy and no latency.

    Args:
        model: what `prepare` or `load` returned.
        out: a new or empty folder.

    Returns:
        The folder.

    Raises:
        TaskError: the model does not know how it was made.
        BundleError: the folder is not empty.
        ConversionError: OpenVINO or NNCF refuses the model.
    """
    made, path = preparation_of(model), Path(out)
    require_new(path)
    return ship(KerasFramework(), made, made.candidate(model), path)
