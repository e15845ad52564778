"""The device: one OpenVINO core, compiling for a target, and what the device is."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import openvino as ov
from openvino import properties

from autocompress.device import Fingerprint, Target
from autocompress.errors import TargetError

INSTRUCTION_SETS = ("avx2", "avx_vnni", "avx512", "amx", "asimddp", "sve", "i8mm", "bf16")
"""Beginnings of the CPU flags on which the speed of integer and low-precision kernels depends."""
VIRTUAL_DEVICES = ("AUTO", "MULTI", "HETERO", "BATCH")
"""They choose among real devices, so their own properties say nothing of the hardware."""


@cache
def core() -> ov.Core:
    """One core for the process; making one costs time."""
    return ov.Core()


def compile_model(model: ov.Model | str | Path, target: Target, **properties_: object) -> ov.CompiledModel:
    """Compile as the target asks.

    Raises:
        TargetError: the device does not exist, refuses the model, or does not do what a hint asks.
    """
    asked = hints_of(target)
    compiled = _compile(model, target.device, asked | properties_)
    _require_taken(compiled, asked)
    return compiled


def compile_for_scoring(model: ov.Model | str | Path, target: Target) -> ov.CompiledModel:
    """Compile for scoring many samples: the same kernels and precision, one stream per core."""
    cores = os.cpu_count() or 1
    hints = {"INFERENCE_NUM_THREADS": cores, "NUM_STREAMS": cores} if is_cpu(target.device) else {}
    return _compile(model, target.device, hints | ({"INFERENCE_PRECISION_HINT": target.precision} if target.precision else {}))


def hints_of(target: Target) -> dict[str, object]:
    """What the device is asked for."""
    hints: dict[str, object] = {"PERFORMANCE_HINT": target.performance_hint}
    if is_cpu(target.device):
        hints["INFERENCE_NUM_THREADS"] = target.threads
        if target.pinning is not None:
            hints["ENABLE_CPU_PINNING"] = target.pinning
    if target.streams is not None:
        hints["NUM_STREAMS"] = target.streams
    if target.precision is not None:
        hints["INFERENCE_PRECISION_HINT"] = target.precision
    return hints


def is_cpu(device: str) -> bool:
    """True for the CPU, also where AUTO can choose nothing else."""
    return device == "CPU" or (device == "AUTO" and core().available_devices == ["CPU"])


def hardware(device: str) -> str:
    """The real device whose properties describe a device; the first one found for a virtual device."""
    return str(core().available_devices[0]) if device.split(":")[0] in VIRTUAL_DEVICES else device


def fingerprint(target: Target) -> Fingerprint:
    """What a latency on this target depends on.

    Raises:
        TargetError: the device does not exist.
    """
    _require_device(target.device)
    device = hardware(target.device)
    return Fingerprint(
        device_name=str(core().get_property(device, "FULL_DEVICE_NAME")),
        capabilities=tuple(sorted(core().get_property(device, "OPTIMIZATION_CAPABILITIES"))),
        instruction_sets=instruction_sets() if is_cpu(target.device) else (),
        default_precision=default_precision(device),
        openvino=ov.get_version().split("-")[0],
        target=target,
    )


@cache
def instruction_sets() -> tuple[str, ...]:
    """The CPU's flags that matter here, and a limit that oneDNN is told to keep. Linux tells them, others the machine's name."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    told = (f"limited to {limit}",) if limit else ()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return (platform.machine(), *told)
    flags = next((line.split(":")[1].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return (*sorted({flag for flag in flags if flag.startswith(INSTRUCTION_SETS)}), *told)


def default_precision(device: str) -> str:
    """The float precision that the device uses where nothing is asked: "f32", "bf16" or "f16"."""
    element_type = core().get_property(hardware(device), properties.hint.inference_precision)
    return str(element_type.to_string())


def _compile(model: ov.Model | str | Path, device: str, hints: dict[str, Any]) -> ov.CompiledModel:
    _require_device(device)
    try:
        return core().compile_model(model, device, hints)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise TargetError(
            f"{device} compiles the model with {_in_words(hints)}", reason, "Check the target's hints and the model."
        ) from error


def _require_taken(compiled: ov.CompiledModel, asked: dict[str, Any]) -> None:
    """OpenVINO replaces a hint that a device cannot follow by another one, silently; then the target would not be the target."""
    for name, wanted in asked.items():
        try:
            taken = compiled.get_property(name)
        except RuntimeError:  # a virtual device does not tell
            continue
        words = taken.to_string() if isinstance(taken, ov.Type) else getattr(taken, "name", taken)
        if str(words) != str(wanted):
            raise TargetError(
                f"The device does what the target's {name} asks",
                f"{wanted}, and OpenVINO takes {words}",
                f"Ask for {words}, or for nothing.",
            )


def _in_words(hints: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in hints.items())


def _require_device(device: str) -> None:
    available = core().available_devices
    real = {name.split(".")[0] for name in available}
    wanted = device.split(":")[1].split(",") if ":" in device else [] if device in VIRTUAL_DEVICES else [device]
    if device.split(":")[0] not in {*real, *VIRTUAL_DEVICES} or any(
        name not in available and name not in real for name in wanted
    ):
        raise TargetError("A target is a device of this machine", repr(device), f"OpenVINO finds: {', '.join(available)}.")
