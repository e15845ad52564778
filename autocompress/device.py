"""The target of a deployment, as plain data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Target(BaseModel):
    """Where the model will run, and how it is called.

    The defaults describe one stream of single requests on one thread: the least noisy setting, and the usual one on an
    edge device.

    Attributes:
        device: OpenVINO's name for it, for example "CPU", "GPU.0", "NPU" or "AUTO".
        threads: inference threads (CPU only).
        streams: requests that run side by side; None leaves it to the performance hint.
        pinning: threads stay on their cores; None leaves it to the device.
        batch: samples of a request.
        shapes: for models with dynamic inputs, the shape at which they are called, by input name or index.
        dynamic: such a model is compiled as it is, and only its requests have those shapes. Otherwise it is made static first.
        precision: of float operations. None is the device's own default, which is what a user gets without asking
            (bf16 on many server CPUs).
        performance_hint: LATENCY serves one request at a time, THROUGHPUT keeps all streams busy; a "latency" is then the
            time per request at full load.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "CPU"
    threads: int = Field(1, ge=1)
    streams: int | None = Field(None, ge=1)
    pinning: bool | None = None
    batch: int = Field(1, ge=1)
    shapes: dict[str, tuple[int, ...]] = {}
    dynamic: bool = False
    precision: Literal["f32", "bf16", "f16"] | None = None
    performance_hint: Literal["LATENCY", "THROUGHPUT"] = "LATENCY"

    def at(self, precision: str | None) -> Target:
        """The same target, at another float precision if one is given."""
        return self.model_copy(update={"precision": precision}) if precision else self

    @property
    def is_for_throughput(self) -> bool:
        """True where requests run side by side."""
        return self.performance_hint == "THROUGHPUT"


class Fingerprint(BaseModel):
    """What a latency depends on. Latencies of two fingerprints are never compared."""

    model_config = ConfigDict(frozen=True)

    device_name: str
    capabilities: tuple[str, ...]
    instruction_sets: tuple[str, ...] = ()
    default_precision: str
    openvino: str
    target: Target

    @property
    def float_precision(self) -> str:
        """The precision in which float operations run: the target's, or else the device's default."""
        return self.target.precision or self.default_precision

    def differences(self, other: Fingerprint) -> list[str]:
        """The fields in which two fingerprints differ, in words."""
        mine, theirs = self.model_dump(), other.model_dump()
        return [f"{name}: {theirs[name]} before, {mine[name]} now" for name in mine if mine[name] != theirs[name]]
