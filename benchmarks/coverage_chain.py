"""The way of one network through the coverage checks, as far as it is the same for all frameworks."""

from __future__ import annotations

import contextlib
import io
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from typing import Any

import numpy as np
import openvino as ov
from coverage_check import LONGEST_REASON, Row

from autocompress.device import Target
from autocompress.policy import LayerPolicy, Policy
from autocompress.structure import Layer, Structure
from autocompress.target.executed import kernels
from autocompress.target.precision import Converted, place_precision
from autocompress.target.runtime import compile_model

RATIO = 0.3
"""Of the channels of every proven group."""
LEAST_CONTROL = 100
"""How many tolerances the outputs must move by if other channels are zeroed."""


class NetworkChain(ABC):
    """The stages, in order; each leaves what the next one needs.

    Attributes:
        tolerance: of outputs, relative to their range.
        structure: after `inspect`.
        lost: what was removed, after `check`; empty where nothing was.
        converted: the pruned network, after `convert`.
    """

    tolerance: float
    structure: Structure
    lost: Sized
    policy: Policy
    converted: Converted
    placed: ov.Model

    def __init__(self, name: str, family: str) -> None:
        logging.getLogger("nncf").setLevel(logging.ERROR)
        self.row = Row(name, family)

    def stages(self) -> Sequence[Callable[[], None]]:
        """In order."""
        return (self.build, self.inspect, self.prune, self.check, self.convert, self.quantize, self.compile)

    @abstractmethod
    def build(self) -> None:
        """Make the model, its inputs, and the perturbed copy that everything but the engine's own proof is done with."""

    @abstractmethod
    def inspect(self) -> None:
        """Trace and prove."""

    @abstractmethod
    def prune(self) -> None:
        """Remove a share of the channels of all proven groups, any of them."""

    @abstractmethod
    def check(self) -> None:
        """Run it beside the silenced original."""

    @abstractmethod
    def convert(self) -> None:
        """To OpenVINO, with the weights on their 8-bit grids."""

    @abstractmethod
    def sample(self) -> Any:
        """The example, in NumPy."""

    def note_structure(self, structure: Structure, seconds: float) -> None:
        """Keep what was found, and what it took."""
        self.structure, self.row.inspect_seconds = structure, seconds
        self.row.proven, self.row.frozen = len(structure.groups), len(structure.frozen)
        reasons = Counter(group.reason for group in structure.frozen).most_common(2)
        self.row.reason = "; ".join(f"{count} × {reason}" for reason, count in reasons)[:LONGEST_REASON]

    def ask_for_8_bits(self, layers: Sequence[Layer]) -> None:
        """The policy of all layers that are left."""
        self.policy = Policy({}, {layer.name: LayerPolicy(8, 8) for layer in layers})
        self.row.asked = len(layers)

    def quantize(self) -> None:
        """Place INT8."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.placed = place_precision(self.converted, self.policy, [self.sample()])

    def compile(self) -> None:
        """Compile and run once."""
        compiled = compile_model(self.placed, Target())
        found = kernels(compiled, self.policy.layers)
        self.row.int8 = sum(kernel.is_integer for kernel in found.values())
        results = compiled(self.sample())
        if not all(np.isfinite(results[i]).all() for i in range(len(compiled.outputs))):
            raise ValueError("the INT8 model's outputs are not finite")

    def verdict(self) -> str:
        """The status of a network that came to the end."""
        if not len(self.lost):
            return "frozen"
        return "ok" if self.row.error <= self.tolerance and self.row.control > LEAST_CONTROL else "wrong"  # a NaN is wrong
