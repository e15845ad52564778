"""Budgets and allowed accuracy drops, as a user writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from autocompress.errors import ConfigError
from autocompress.metrics import Metric

_NUMBER = r"([-+]?\d+(?:\.\d*)?|[-+]?\.\d+)"
_ABSOLUTE = re.compile(rf"^{_NUMBER}\s*(us|ms|s)$")
_RELATIVE = re.compile(rf"^{_NUMBER}\s*(%|x)(?:\s*(?:of\s+)?(original|int8))?$")
_TO_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_DURATION = re.compile(rf"^{_NUMBER}\s*(s|m|h)?$")
_SIZE = re.compile(rf"^{_NUMBER}\s*(b|kb|mb|gb)?$")
_TO_BYTES = {None: 1, "b": 1, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}
_TO_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """A latency that the deployed model has to keep.

    Written `0.25ms`, or relative to the original model at the target's default precision (`50%`, `0.5x`), or relative to that
    model in INT8 after training, without any search (`70% of int8`).
    """

    text: str
    value: float
    unit: Literal["ms", "original", "int8"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        Raises:
            ConfigError: it does not parse, or is not positive.
        """
        cleaned = text.strip().lower()
        if match := _ABSOLUTE.match(cleaned):
            budget = cls(text, float(match[1]) * _TO_MS[match[2]], "ms")
        elif match := _RELATIVE.match(cleaned):
            value = float(match[1]) / (100 if match[2] == "%" else 1)
            budget = cls(text, value, "int8" if match[3] == "int8" else "original")
        else:
            raise ConfigError("A latency budget is a time or a fraction", repr(text), "Write 0.25ms, 50%, 0.5x or '70% of int8'.")
        if budget.value <= 0:
            raise ConfigError("A latency budget is positive", repr(text), "Write 0.25ms, 50%, 0.5x or '70% of int8'.")
        return budget

    def resolve_ms(self, original_ms: float, int8_ms: float) -> float:
        """The budget in milliseconds."""
        return self.value * {"ms": 1.0, "original": original_ms, "int8": int8_ms}[self.unit]


@dataclass(frozen=True)
class Drop:
    """How much of the metric may be lost: absolute (0.01) or relative to the original's own value ("1%")."""

    value: float
    relative: bool

    @classmethod
    def parse(cls, value: str | float) -> Drop:
        """Read a drop.

        Raises:
            ConfigError: it does not parse, or is negative.
        """
        text = str(value).strip()
        try:
            drop = cls(float(text[:-1]) / 100, True) if text.endswith("%") else cls(float(text), False)
        except ValueError as error:
            raise ConfigError("An accuracy drop is a number or a percentage", repr(value), "Write 0.01 or 1%.") from error
        if not drop.value >= 0:
            raise ConfigError("An accuracy drop is not negative", repr(value), "Write 0.01 or 1%.")
        return drop

    def allows(self, value: float, original: float, metric: Metric) -> bool:
        """True where `value` is worse than `original` by no more than the drop."""
        return metric.gain(original) - metric.gain(value) <= self._allowed(original) + 1e-12

    def limit(self, original: float, metric: Metric) -> float:
        """The worst value that is allowed."""
        return original - metric.gain(self._allowed(original))

    def _allowed(self, original: float) -> float:
        return self.value * abs(original) if self.relative else self.value


def parse_share(text: str) -> float:
    """The share of the original's multiply-accumulates that may be left, written `50%` or `0.5x`.

    Raises:
        ConfigError: it does not parse, or is not between 0 and 100 %.
    """
    match = _RELATIVE.match(text.strip().lower())
    share = float(match[1]) / (100 if match[2] == "%" else 1) if match and match[3] != "int8" else 0.0
    if not 0 < share < 1:
        raise ConfigError("A MACs target is a fraction of the original's, between 0 and 100 %", repr(text), "Write 50% or 0.5x.")
    return share


def parse_duration(text: str | float) -> float:
    """Seconds of a duration written `90`, `90s`, `8m` or `1.5h`.

    Raises:
        ConfigError: it does not parse, or is not positive.
    """
    match = _DURATION.match(str(text).strip().lower())
    if not match or float(match[1]) <= 0:
        raise ConfigError("A time is a positive duration", repr(text), "Write 90s, 8m or 1.5h.")
    return float(match[1]) * _TO_SECONDS[match[2]]


def parse_size(text: str | int) -> int:
    """Bytes of a size written `80000`, `80kB` or `1.5MB`.

    Raises:
        ConfigError: it does not parse, or is not positive.
    """
    match = _SIZE.match(str(text).strip().lower())
    if not match or float(match[1]) <= 0:
        raise ConfigError("A size is a positive number of bytes", repr(text), "Write 80000, 80kB or 1.5MB.")
    return round(float(match[1]) * _TO_BYTES[match[2]])
