"""Compression in a user's own PyTorch training script.

import autocompress as ac

model = ac.torch.prepare(model, "policy.yaml", calibration_loader)
...  # any training loop
ac.torch.export(model, "deploy/")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.bundle import require_new
from autocompress.config import CompressionConfig, validated
from autocompress.errors import ConfigError
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.script import follow_schedules, leave_schedules, make_ready, structure_of
from autocompress.policy import Policy
from autocompress.policy_file import read_policy, resolve_policy
from autocompress.prepared import preparation_of, remember, task_of
from autocompress.shipping import ship

if TYPE_CHECKING:
    from torch import nn

__all__ = ["export", "prepare"]


def prepare(
    model: nn.Module,
    policy: Policy | Mapping[str, Any] | str | Path,
    calibration_data: Any,
    *,
    steps: int | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    target_key: str = "labels",
    preprocessing: dict[str, Any] | None = None,
    name: str = "",
    **options: Any,
) -> nn.Module:
    """A compressed copy of a model to train on: pruned, with low bits and zeros simulated, its ranges calibrated.

    It is a plain module in training mode: any optimizer and loop will do, it can be copied, and its `state_dict` is all of it.
    Make the optimizer from *its* parameters.

    Args:
        model: the trained original. It is not changed.
        policy: a Policy, the path of a YAML or JSON file (by hand or from a search), a template's name, or the mapping itself.
        calibration_data: a tensor or array of inputs, a dict of them by name, a pair (inputs, targets), or a DataLoader. The
            first batches give ranges and batch-norm statistics, here and at the export.
        steps: training batches in all, for what the policy does gradually. Default: everything is in force from the start.
        loss: for importance criteria that need gradients; see `Task`.
        target_key: the key of the targets where batches are dicts.
        preprocessing: for the bundle's contract; see `Task`.
        name: for the bundle. Default: the model's class.
        **options: of `CompressionConfig`: criterion, target, storage, calibration_samples.

    Raises:
        UserError: the policy does not fit the model, or the model, data or options cannot be used.
    """
    if steps is not None and steps < 1:
        raise ConfigError("steps is at least 1", steps)
    config, written = validated(CompressionConfig, options), read_policy(policy)
    described = {"loss": loss, "target_key": target_key, "preprocessing": preprocessing, "name": name or type(model).__name__}
    task = task_of(model, calibration_data, **described)
    resolved = resolve_policy(written, structure_of(task, prunable=bool(written["pruning"])))
    candidate = TorchFramework().compress(task, resolved, config.criterion)
    make_ready(candidate, task, config.fine_tuning.binarization)
    if steps is not None:
        follow_schedules(candidate.model, steps)
    prepared: nn.Module = remember(candidate, task, config)
    return prepared.train()


def export(model: nn.Module, out: str | Path) -> Path:
    """Write a trained module as a bundle that can be deployed, verified, and loaded again. The module is not changed.

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
    candidate = made.candidate(copy.deepcopy(model).eval())
    leave_schedules(candidate.model)
    return ship(TorchFramework(), made, candidate, path)
