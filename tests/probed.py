"""What a probe could have found, without running one."""

from __future__ import annotations

from typing import Any

from autocompress.capabilities import FORMS, Capabilities, Form, KernelFact, Numerics, SparsityFact, StepFact
from autocompress.device import Fingerprint, Target
from autocompress.policy import FLOAT, Bits

FOUND = Fingerprint(
    device_name="a CPU",
    capabilities=("FP32", "INT8"),
    instruction_sets=("avx2",),
    default_precision="f32",
    openvino="2026.4.1",
    target=Target(),
)
RIGHT = Numerics(binary_zero_one=0.0, binary_plus_minus=1.4, weights_8=0.0, weights_7=0.0)
SATURATING = Numerics(binary_zero_one=0.0, binary_plus_minus=1.4, weights_8=0.36, weights_7=0.0)


def kernel_fact(form: Form, weights: Bits, activations: Bits, speedup: float, scheme: str = "i8") -> KernelFact:
    integer = FLOAT not in (weights, activations) and speedup > 1.2
    return KernelFact(
        form=form,
        weights=weights,
        activations=activations,
        scheme=scheme,
        graph="six layers",
        kernel="jit_avx2_I8" if integer else "brgconv_avx2_f32",
        integer=integer,
        speedup=speedup,
        speedup_low=0.98 * speedup,
        speedup_high=1.02 * speedup,
        speedup_default=speedup,
        ms=1 / speedup,
    )


def sparsity_fact(form: Form, speedup: float, level: float = 0.9) -> SparsityFact:
    low, high = 0.98 * speedup, 1.02 * speedup
    return SparsityFact(
        form=form, pattern="unstructured", level=level, precision="int8", speedup=speedup, speedup_low=low, speedup_high=high
    )


def capabilities(
    found: Fingerprint = FOUND, *, step: int = 8, binary: float = 4.0, zeros: float = 1.0, **changes: Any
) -> Capabilities:
    """INT8 is twice as fast, 4 and 2 bits are no faster than 8, 16 levels are slower; the rest as asked."""
    speedups: dict[tuple[Bits, Bits], float] = {
        (FLOAT, FLOAT): 1.0,
        (8, 8): 2.0,
        (8, FLOAT): 1.0,
        (4, 8): 2.0,
        (2, 8): 2.0,
        (8, 4): 1.8,
        (8, 1): 1.8,
    }
    kernels = [kernel_fact(form, *bits, speedup) for form in FORMS for bits, speedup in speedups.items()]
    kernels += [kernel_fact(form, 1, 1, binary, "binary") for form in ("convolution", "pointwise")]
    precisions = ("int8", found.float_precision)
    return Capabilities(
        fingerprint=found,
        kernels=tuple(kernels),
        steps=tuple(
            StepFact(form=form, precision=precision, step=step, widths=(56, 64), ratios=(1.0, 1.0))
            for form in FORMS
            for precision in precisions
        ),
        sparsity=tuple(sparsity_fact(form, zeros) for form in ("convolution", "linear")),
        numerics=changes.get("numerics", RIGHT),
        seconds=1.0,
    )
