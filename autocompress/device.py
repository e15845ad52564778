"""The target of a deployment, as plain data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Target(BaseModel):
    """Where the model will run, and how it is called.

    The defaults describe one stream of single requests on one thread: the least noisy setting, and the usual one on an
    edge device. `precision=None` means the device's own default precision for float operations, which is what a user gets
    without asking (bf16 on many server CPUs).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "CPU"
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)
    precision: Literal["f32", "bf16", "f16"] | None = None
    performance_hint: Literal["LATENCY"] = "LATENCY"

    def at(self, precision: str | None) -> Target:
        """The same target, at another float precision if one is given."""
        return self.model_copy(update={"precision": precision}) if precision else self


class Fingerprint(BaseModel):
    """What a latency depends on. Latencies of two fingerprints are never compared."""

    model_config = ConfigDict(frozen=True)

    device_name: str
    capabilities: tuple[str, ...]
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
