"""What is real on this target: small graphs, timed and read back.

Nothing here is known beforehand. Every fact is a measurement of six equal layers, interleaved with the same layers in FP32, and
the kernel that the device reports. It takes well under a minute and is kept per fingerprint in the user's cache folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from pydantic import ValidationError

from autocompress.capabilities import FORMS, Capabilities, Form, KernelFact, SparsityFact, StepFact
from autocompress.device import Fingerprint, Target
from autocompress.errors import TargetError
from autocompress.record import Latency
from autocompress.target import small_graphs
from autocompress.target.cache import cache_folder, key_of, read_json, write_json
from autocompress.target.executed import HEAVY_TYPES, Kernel, executed_nodes
from autocompress.target.meter import measure, reference_latency_ms
from autocompress.target.probe_numerics import numerics
from autocompress.target.runtime import compile_model, fingerprint
from autocompress.target.small_graphs import BINARY, DEFAULT, FP32, INT8, SCHEMES, Scheme

Progress = Callable[[float, str], None]

KERNEL_SECONDS, STEP_SECONDS, SPARSITY_SECONDS = 2.2, 1.2, 0.8
"""For the rows of a form, for the widths of a form and precision, for the zeros of a form and precision."""
REFERENCE_SECONDS = 0.3
HALF_WIDTH = 0.02
STEPS = (2, 4, 8, 16, 32)
STEP_WIDTHS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 60, 62, 63, 64)
STEP_SIDES: dict[Form, int] = {"convolution": 16, "pointwise": 28, "depthwise": 28, "grouped": 16, "linear": 16}
"""Of the image: large enough that the layers outweigh the request."""
WASTED = 0.4
"""Channels are wasted where removing them saves less than this fraction of their share of the work."""
SPARSE_FORMS: tuple[Form, ...] = ("convolution", "linear")
LEVELS = (0.5, 0.8, 0.9)
TWO_OF_FOUR = "2:4"


def capabilities(target: Target, *, refresh: bool = False, progress: Progress = lambda fraction, words: None) -> Capabilities:
    """What is known of a target, probed if it is not known yet.

    Args:
        target: only its device, threads, streams and hints matter.
        refresh: probe again.
        progress: told the finished fraction and what is being probed.

    Raises:
        TargetError: the device does not exist or refuses a hint.
    """
    known = None if refresh else probed_before(target)
    if known is not None:
        return known
    plain, found = _probed_target(target)
    probed = probe(plain, found, progress)
    write_json(_path(found), probed.model_dump(mode="json"))
    return probed


def probed_before(target: Target) -> Capabilities | None:
    """What the cache knows of a target; None where it was never probed, or by another version.

    Raises:
        TargetError: the device does not exist or refuses a hint.
    """
    _, found = _probed_target(target)
    try:
        return Capabilities.model_validate(read_json(_path(found)))
    except ValidationError:
        return None


def _probed_target(target: Target) -> tuple[Target, Fingerprint]:
    """The target without what is of no matter to a probe, and its fingerprint."""
    plain = target.model_copy(update={"batch": 1, "shapes": {}, "dynamic": False})
    return plain, fingerprint(plain)


def _path(found: Fingerprint) -> Path:
    return cache_folder() / f"probe-{key_of(found)}.json"


def probe(target: Target, found: Fingerprint, progress: Progress) -> Capabilities:
    """Measure all facts anew."""
    start = time.perf_counter()
    jobs = 2 * len(FORMS) + len(FORMS) + len(SPARSE_FORMS) * 2
    steps_done = iter(range(jobs))

    def tell(words: str) -> None:
        progress(next(steps_done) / jobs, words)

    rows: list[KernelFact] = []
    steps: list[StepFact] = []
    sparsity: list[SparsityFact] = []
    for form in FORMS:
        tell(f"kernels of {form} layers")
        rows += _kernel_facts(form, target)
    for form in FORMS:
        for scheme in (INT8, DEFAULT):
            tell(f"channel step of {form} layers")
            steps.append(_step_fact(form, scheme, target, found))
    for form in SPARSE_FORMS:
        for scheme in (INT8, DEFAULT):
            tell(f"zeros in {form} layers")
            sparsity += _sparsity_facts(form, scheme, target, found)
    return Capabilities(
        fingerprint=found,
        kernels=tuple(rows),
        steps=tuple(steps),
        sparsity=tuple(sparsity),
        numerics=numerics(target),
        seconds=round(time.perf_counter() - start, 1),
    )


def _kernel_facts(form: Form, target: Target) -> Iterator[KernelFact]:
    schemes = [FP32, *SCHEMES, *([BINARY] if form in ("convolution", "pointwise") else [])]
    built = {scheme: _compiled(small_graphs.graph(form, scheme), target, scheme) for scheme in schemes}
    running = {scheme: compiled for scheme, compiled in built.items() if compiled is not None}
    reference = running[FP32]
    reference_ms = reference_latency_ms(reference, REFERENCE_SECONDS)
    latencies = dict(
        zip(running, measure(list(running.values()), reference, reference_ms, HALF_WIDTH, KERNEL_SECONDS), strict=True)
    )
    default = latencies[DEFAULT].ratio
    for scheme, latency in latencies.items():
        yield _kernel_fact(form, scheme, _slowest_kernel(running[scheme]), latency, default)


def _kernel_fact(form: Form, scheme: Scheme, kernel: Kernel, latency: Latency, default: float) -> KernelFact:
    return KernelFact(
        form=form,
        weights=scheme.weights,
        activations=scheme.activations,
        scheme=scheme.name,
        graph=small_graphs.in_words(form),
        kernel=kernel.primitive,
        integer=kernel.is_low,
        speedup=round(1 / latency.ratio, 4),
        speedup_low=round(1 / latency.ratio_high, 4),
        speedup_high=round(1 / latency.ratio_low, 4),
        speedup_default=round(default / latency.ratio, 4),
        ms=round(latency.ms, 5),
    )


def _slowest_kernel(compiled: ov.CompiledModel) -> Kernel:
    """The kernel of the layers; a float one if they differ."""
    found = [Kernel(node.name, node.primitive, node.precision) for node in executed_nodes(compiled) if node.kind in HEAVY_TYPES]
    return min(found, key=lambda kernel: kernel.is_low, default=Kernel("", "unknown", "unknown"))


def _step_fact(form: Form, scheme: Scheme, target: Target, found: Fingerprint) -> StepFact:
    groups = small_graphs.GROUPS if form == "grouped" else 1
    widths = [width for width in STEP_WIDTHS if width % groups == 0]
    compiled = [compile_model(small_graphs.graph(form, scheme, width, STEP_SIDES[form]), target) for width in widths]
    latencies = measure(compiled, compiled[-1], 1.0, HALF_WIDTH / 2, STEP_SECONDS)
    ratios = {width: latency.ratio for width, latency in zip(widths, latencies, strict=True)}
    return StepFact(
        form=form,
        precision=_precision_name(scheme, found),
        step=max((step for step in STEPS if _is_step(step, ratios, form)), default=groups) // groups,
        widths=tuple(widths),
        ratios=tuple(round(ratio, 4) for ratio in ratios.values()),
    )


def _is_step(step: int, ratios: Mapping[int, float], form: Form) -> bool:
    """True where stopping half a step below a multiple of the step saves little, on average over the timed widths."""
    power = 1 if form == "depthwise" else 2  # the work grows with the width, or with its square
    pairs = [(width - step // 2, width) for width in ratios if width % step == 0 and width - step // 2 in ratios]
    saved = [(1 - ratios[low] / ratios[high]) / (1 - (low / high) ** power) for low, high in pairs]
    return bool(saved) and float(np.mean(saved)) < WASTED


def _sparsity_facts(form: Form, scheme: Scheme, target: Target, found: Fingerprint) -> Iterator[SparsityFact]:
    patterns = [("unstructured", level) for level in LEVELS] + [(TWO_OF_FOUR, 0.5)]
    dense = compile_model(small_graphs.graph(form, scheme), target)
    sparse = [
        compile_model(small_graphs.graph(form, scheme, zeros=_two_of_four if pattern == TWO_OF_FOUR else _zeros(level)), target)
        for pattern, level in patterns
    ]
    latencies = measure(sparse, dense, 1.0, HALF_WIDTH, SPARSITY_SECONDS)
    for (pattern, level), latency in zip(patterns, latencies, strict=True):
        yield SparsityFact(
            form=form,
            pattern=pattern,
            level=level,
            precision=_precision_name(scheme, found),
            speedup=round(1 / latency.ratio, 4),
            speedup_low=round(1 / latency.ratio_high, 4),
            speedup_high=round(1 / latency.ratio_low, 4),
        )


def _zeros(level: float) -> Callable[[NDArray[np.int8]], NDArray[np.int8]]:
    def apply(codes: NDArray[np.int8]) -> NDArray[np.int8]:
        return np.where(np.random.default_rng(1).random(codes.shape) < level, 0, codes).astype(np.int8)

    return apply


def _two_of_four(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    """Two of every four input channels in a row are zero."""
    channels = np.arange(codes.shape[1]).reshape(1, -1, *[1] * (codes.ndim - 2))
    return np.where(channels % 4 < 2, 0, codes).astype(np.int8)


def _precision_name(scheme: Scheme, found: Fingerprint) -> str:
    return "int8" if scheme is INT8 else found.float_precision


def _compiled(model: ov.Model, target: Target, scheme: Scheme) -> ov.CompiledModel | None:
    """None where the device refuses the graph: then there is no such row."""
    try:
        return compile_model(model, target.at(scheme.precision))
    except TargetError:
        if scheme in (FP32, DEFAULT):
            raise
        return None
