"""Search for compressed models on the measured accuracy–latency front of a device.

import autocompress as ac

task = ac.Task(model, train=train_loader, valid=valid_loader, test=test_loader)
result = ac.search(task, latency_budget="50%", max_trials=40, out="runs/mnist")
result.best(max_accuracy_drop=0.01).export("deploy/")

In a training script of your own:

model = ac.torch.prepare(model, "policy.yaml", calibration_loader)
...
ac.torch.export(model, "deploy/")

and in the same way `ac.keras.prepare`, `fit`, `ac.keras.export`.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress import keras as keras
    from autocompress import torch as torch
    from autocompress.config import SearchConfig
    from autocompress.device import Target
    from autocompress.hardware import bench, explain, probe
    from autocompress.outer_loop import search
    from autocompress.policy import LayerPolicy, Policy
    from autocompress.restore import load
    from autocompress.result import Result
    from autocompress.single import compress
    from autocompress.task import Task
    from autocompress.verification import verify

# OpenVINO and NNCF would send usage statistics, for which they fork the process: without the user's word, in the middle of a
# measurement, and with a child that was seen to hang. Without this package they send nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.1.0"
__all__ = [
    "LayerPolicy",
    "Policy",
    "Result",
    "SearchConfig",
    "Target",
    "Task",
    "bench",
    "compress",
    "explain",
    "load",
    "probe",
    "search",
    "verify",
]

_HOME = {
    "LayerPolicy": "policy",
    "Policy": "policy",
    "Result": "result",
    "SearchConfig": "config",
    "Target": "device",
    "Task": "task",
    "bench": "hardware",
    "compress": "single",
    "explain": "hardware",
    "load": "restore",
    "probe": "hardware",
    "search": "outer_loop",
    "verify": "verification",
}
_FRAMEWORKS = ("keras", "torch")
"""Modules for training scripts. They are not in `__all__`: a star import must not hide the framework itself."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import autocompress` costs nothing."""
    if name in _FRAMEWORKS:
        return importlib.import_module(f"autocompress.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"autocompress.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FRAMEWORKS})
