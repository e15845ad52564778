"""The device: one OpenVINO core, compiling for a target, and what the device is."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import openvino as ov
from openvino import properties

from autocompress.device import Fingerprint, Target
from autocompress.errors import TargetError


@cache
def core() -> ov.Core:
    """One core for the process; making one costs time."""
    return ov.Core()


def compile_for_latency(model: ov.Model | str | Path, target: Target) -> ov.CompiledModel:
    """Compile as the target asks: one request at a time.

    Raises:
        TargetError: the device refuses the model or a hint.
    """
    return _compile(model, target.device, latency_hints(target))


def compile_for_throughput(model: ov.Model | str | Path, target: Target) -> ov.CompiledModel:
    """Compile for scoring many samples: the same kernels and precision, one stream per core."""
    cores = os.cpu_count() or 1
    hints = {"INFERENCE_NUM_THREADS": cores, "NUM_STREAMS": cores}
    return _compile(model, target.device, hints | ({"INFERENCE_PRECISION_HINT": target.precision} if target.precision else {}))


def latency_hints(target: Target) -> dict[str, object]:
    """What the device is asked for when it serves one request at a time."""
    hints: dict[str, object] = {"PERFORMANCE_HINT": target.performance_hint, "INFERENCE_NUM_THREADS": target.threads}
    return hints | ({"INFERENCE_PRECISION_HINT": target.precision} if target.precision else {})


def fingerprint(target: Target) -> Fingerprint:
    """What a latency on this target depends on.

    Raises:
        TargetError: the device does not exist.
    """
    _require_device(target.device)
    return Fingerprint(
        device_name=str(core().get_property(target.device, "FULL_DEVICE_NAME")),
        capabilities=tuple(sorted(core().get_property(target.device, "OPTIMIZATION_CAPABILITIES"))),
        default_precision=default_precision(target.device),
        openvino=ov.get_version().split("-")[0],
        target=target,
    )


def default_precision(device: str) -> str:
    """The float precision that the device uses where nothing is asked: "f32", "bf16" or "f16"."""
    element_type = core().get_property(device, properties.hint.inference_precision)
    return str(element_type.to_string())


def _compile(model: ov.Model | str | Path, device: str, hints: dict[str, object]) -> ov.CompiledModel:
    _require_device(device)
    try:
        return core().compile_model(model, device, hints)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise TargetError(
            f"{device} compiles the model with {hints}", reason, "Check the target's precision and the model."
        ) from error


def _require_device(device: str) -> None:
    available = core().available_devices
    if device.split(".")[0].split(":")[0] not in {name.split(".")[0] for name in available}:
        raise TargetError("A target is a device of this machine", repr(device), f"OpenVINO finds: {', '.join(available)}.")
