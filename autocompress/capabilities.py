"""What a target can do, as plain data: what `target/probe.py` found out by running small graphs.

A form is a kind of layer as the device's kernels tell them apart. A scheme is how a layer's numbers are written into the IR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from autocompress.device import Fingerprint
from autocompress.policy import FLOAT, UNSTRUCTURED, Bits

Form = Literal["convolution", "pointwise", "depthwise", "grouped", "linear"]
FORMS: tuple[Form, ...] = ("convolution", "pointwise", "depthwise", "grouped", "linear")

TIE = 0.05
"""Two speed-ups that differ by less than this fraction are the same for a decision."""


def form_of(weight_shape: Sequence[int], groups: int, *, linear: bool = False) -> Form:
    """The form of a layer.

    Args:
        weight_shape: (outputs, inputs of a group, *kernel) of a convolution.
        groups: of a convolution; as many as channels are depthwise.
        linear: a matrix product.
    """
    if linear:
        return "linear"
    if groups > 1:
        return "depthwise" if weight_shape[1] == 1 else "grouped"
    return "pointwise" if all(side == 1 for side in weight_shape[2:]) else "convolution"


class KernelFact(BaseModel):
    """One way to write a layer's numbers, and what the device made of it.

    Attributes:
        form: of the layers.
        weights, activations: bits, or "float".
        scheme: storage and quantizers, for example "i8", "i4 → i8", "i4 → f32", "i8, 16 levels", "i8, 16 levels, then 256".
        graph: the graph that was timed, in words.
        kernel: the device's name for the kernel that ran, and its precision.
        integer: it is an integer kernel (8 bits, or binary).
        speedup, speedup_low, speedup_high: over the same layers in FP32, and its 95 % interval.
        speedup_default: over the same layers in float at the target's default precision.
        ms: latency of the whole small graph.
    """

    model_config = ConfigDict(frozen=True)

    form: Form
    weights: Bits
    activations: Bits
    scheme: str
    graph: str
    kernel: str
    integer: bool
    speedup: float
    speedup_low: float
    speedup_high: float
    speedup_default: float
    ms: float


class StepFact(BaseModel):
    """How many channels cost the same as one more or one less.

    Attributes:
        precision: "int8" or the default float precision.
        step: layers whose channels (of one group, in grouped layers) are a multiple of it waste nothing.
        widths, ratios: the channel counts that were timed, and their time relative to the widest.
    """

    model_config = ConfigDict(frozen=True)

    form: Form
    precision: str
    step: int
    widths: tuple[int, ...]
    ratios: tuple[float, ...]


class SparsityFact(BaseModel):
    """What zeros in the weights buy.

    Attributes:
        pattern: "unstructured" or "2:4".
        level: fraction of zeros.
        precision: "int8" or the default float precision.
        speedup, speedup_low, speedup_high: over the same layers without zeros.
    """

    model_config = ConfigDict(frozen=True)

    form: Form
    pattern: str
    level: float
    precision: str
    speedup: float
    speedup_low: float
    speedup_high: float

    @property
    def pays(self) -> bool:
        """True where the layers run measurably faster with the zeros."""
        return self.speedup_low > 1 + TIE / 2 and self.speedup > 1 + TIE


class Numerics(BaseModel):
    """Whether integer kernels give the right numbers, as largest errors relative to the largest output.

    Attributes:
        binary_zero_one: binary layers, activations coded {0, 1}; None where no binary kernel runs.
        binary_plus_minus: the same, coded {-1, +1}.
        weights_8, weights_7: large weights against large activations, on grids of 8 and 7 bits.
    """

    model_config = ConfigDict(frozen=True)

    binary_zero_one: float | None
    binary_plus_minus: float | None
    weights_8: float
    weights_7: float


WRONG = 0.01
"""A relative error above this is not rounding."""


class Capabilities(BaseModel):
    """What the probe found on one target."""

    model_config = ConfigDict(frozen=True)

    fingerprint: Fingerprint
    kernels: tuple[KernelFact, ...]
    steps: tuple[StepFact, ...]
    sparsity: tuple[SparsityFact, ...]
    numerics: Numerics
    seconds: float

    @property
    def saturates(self) -> bool:
        """True where sums of 8-bit products overflow, so that weights need 7-bit grids."""
        return self.numerics.weights_8 > WRONG > self.numerics.weights_7

    def best(self, form: Form, weights: Bits, activations: Bits) -> KernelFact | None:
        """The fastest scheme that was probed for these bits; None if there is none."""
        facts = [f for f in self.kernels if (f.form, f.weights, f.activations) == (form, weights, activations)]
        return max(facts, key=lambda fact: fact.speedup, default=None)

    def channel_step(self, form: Form, precision: str) -> int:
        """The step of a form, for grouped layers of the channels of one group; 1 where it was not probed."""
        return next((fact.step for fact in self.steps if (fact.form, fact.precision) == (form, precision)), 1)

    def zeros_pay(self, form: Form, level: float, pattern: str = UNSTRUCTURED) -> bool:
        """True where a layer runs measurably faster with this fraction of zeros in this pattern, in any precision. What pays
        without a pattern pays with one. Matrix products apart, all forms are judged by convolutions.
        """
        probed = "linear" if form == "linear" else "convolution"
        facts = [f for f in self.sparsity if f.form == probed and f.level <= level and f.pattern in (UNSTRUCTURED, pattern)]
        return any(fact.pays for fact in facts)

    @property
    def float_precision(self) -> str:
        """In which float operations run here."""
        return self.fingerprint.float_precision

    def binary_pays(self, form: Form) -> bool:
        """True where a binary kernel is right and faster than INT8."""
        binary, int8 = self.best(form, 1, 1), self.best(form, 8, 8)
        error = self.numerics.binary_zero_one
        right = error is not None and error <= WRONG
        return bool(right and binary and binary.integer and int8 and binary.speedup > int8.speedup * (1 + TIE))

    def float_gain(self, form: Form = "convolution") -> float:
        """How much faster than FP32 the default float precision is."""
        fact = self.best(form, FLOAT, FLOAT)
        return fact.speedup if fact else 1.0
