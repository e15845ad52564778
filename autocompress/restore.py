"""A bundle back as the trainable module that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from autocompress.bundle import FILES, SAVED, check_integrity, read_promise
from autocompress.config import CompressionConfig
from autocompress.errors import BundleError
from autocompress.frameworks.base import framework_of
from autocompress.history import History
from autocompress.policy import Policy
from autocompress.prepared import remember, task_of


def load(path: str | Path, model: Any, calibration_data: Any = None) -> Any:
    """The trainable module of a bundle: pruned, simulated and with its trained weights. Only JSON and safetensors are read.

    In evaluation mode its outputs equal those of the module that was exported. It can be trained on, and exported again.

    Args:
        path: the bundle.
        model: the original model, or one that is built like it; its weights do not matter, and it is not changed.
        calibration_data: for exporting it again, as for `autocompress.torch.prepare`. Default: the bundle's few samples.

    Raises:
        BundleError: it is no complete bundle, a file was changed, or the model is built differently; the message says how.
        TaskError: the model is of no framework.
    """
    path = Path(path)
    check_integrity(path, (*FILES, *SAVED))
    history, framework = History.read(path / "history.json"), framework_of(model)
    if history.framework != framework.name:
        raise BundleError("A bundle is loaded into a model of its framework", f"{framework.name}, not {history.framework}")
    described = history.settings.model_dump(include={"name", "preprocessing", "target_key"})
    task = task_of(model, _samples(path), **described)
    history.require_original(framework.architecture(task))
    try:
        policy = Policy.from_dict(history.policy)
        candidate = framework.compress(task, policy, CompressionConfig().criterion, history.removed)
        framework.load(candidate, path / "weights.safetensors")
    except Exception as error:  # a history from other hands may say anything
        reason = f"{type(error).__name__}: {error}"
        raise BundleError("A bundle's history can be replayed on its original", reason, "Export it again.") from error
    promise, promised = read_promise(path)
    config = CompressionConfig(
        target=promised.target.at(promise["precision"]),
        storage=history.settings.storage,
        calibration_samples=history.settings.calibration_samples,
    )
    return remember(candidate, task if calibration_data is None else task_of(model, calibration_data, **described), config)


def _samples(path: Path) -> tuple[Any, Any]:
    """The stored inputs, with targets that say nothing."""
    try:
        with np.load(path / "samples.npz") as stored:
            named = {name: stored[name] for name in stored}
    except (OSError, ValueError, BadZipFile) as error:
        raise BundleError("A bundle's samples.npz holds arrays", str(error), "Export it again.") from error
    inputs = tuple(named.values()) if all(name.isdigit() for name in named) else named
    return inputs, np.zeros(len(next(iter(named.values()))), np.int64)
