"""Hold every row of the probe against plain OpenVINO: the same small graphs, compiled and timed without autocompress's meter.

    python benchmarks/check_probe.py

Probes the target anew, then builds each row's graph again, reads the kernels of its layers from the runtime model and times it
with wall-clock loops in turns with FP32 (or, for zeros, with the dense graph). Prints each row's speed-up found here beside the
probe's. Ends with exit code 1 if a kernel's kind differs, a speed-up differs by more than 10 %, probing takes more than 60 s, or
the second call, in a process of its own, more than 1 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import numpy as np
import openvino as ov

from autocompress.capabilities import Capabilities
from autocompress.device import Target
from autocompress.target import probe, small_graphs
from autocompress.target.small_graphs import BINARY, DEFAULT, FP32, INT8, SCHEMES, Scheme

ROUNDS, CALLS = 60, 3
AGAIN = """
import time
from autocompress import Target, probe
start = time.perf_counter()
probe(Target())
print(time.perf_counter() - start)
"""


def compiled(core: ov.Core, model: ov.Model, precision: str | None = None) -> ov.CompiledModel:
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1}
    return core.compile_model(model, "CPU", hints | ({"INFERENCE_PRECISION_HINT": precision} if precision else {}))


def is_integer(model: ov.CompiledModel) -> bool:
    """All convolutions and matrix products run in kernels named after 8-bit or 1-bit integers."""
    kinds = ("Convolution", "BinaryConvolution", "FullyConnected", "MatMul")
    infos = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    primitives = [str(info["primitiveType"].value) for info in infos if str(info["layerType"].value) in kinds]
    return bool(primitives) and all(name.lower().endswith(("i8", "u8", "u1")) for name in primitives)


def ratios(models: list[ov.CompiledModel]) -> list[float]:
    """Median over rounds of the first model's time by each one's, each round timing all in turn."""
    requests = [model.create_infer_request() for model in models]
    inputs = [{0: np.random.default_rng(1).random(tuple(model.inputs[0].shape), np.float32)} for model in models]
    rounds = []
    for _ in range(ROUNDS):
        times = []
        for request, data in zip(requests, inputs, strict=True):
            request.infer(data)
            samples = []
            for _ in range(CALLS):
                start = time.perf_counter()
                request.infer(data)
                samples.append(time.perf_counter() - start)
            times.append(min(samples))
        rounds.append([times[0] / one for one in times])
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def say(name: str, probed: float, found: float, same_kind: bool = True) -> bool:
    kept = same_kind and abs(found / probed - 1) <= 0.1
    kind = "" if same_kind else ", another kind of kernel"
    print(f"{'ok    ' if kept else 'BROKEN'} {name:<60} probe {probed:6.2f}×  here {found:6.2f}×{kind}", flush=True)
    return kept


def check_kernels(core: ov.Core, can: Capabilities) -> list[bool]:
    schemes = {scheme.name: scheme for scheme in (FP32, *SCHEMES, BINARY)}
    kept = []
    for form in small_graphs.CHANNELS:
        facts = [fact for fact in can.kernels if fact.form == form]
        models = [
            compiled(core, small_graphs.graph(form, schemes[fact.scheme]), schemes[fact.scheme].precision) for fact in facts
        ]
        reference = next(i for i, fact in enumerate(facts) if fact.scheme == FP32.name)
        found = ratios([models[reference], *models])[1:]
        for fact, model, speedup in zip(facts, models, found, strict=True):
            name = f"{form} {fact.weights}/{fact.activations} {fact.scheme}"
            kept.append(say(name, fact.speedup, speedup, is_integer(model) == fact.integer))
    return kept


def check_zeros(core: ov.Core, can: Capabilities) -> list[bool]:
    kept = []
    for form, precision in dict.fromkeys((fact.form, fact.precision) for fact in can.sparsity):
        scheme: Scheme = INT8 if precision == "int8" else DEFAULT
        facts = [fact for fact in can.sparsity if (fact.form, fact.precision) == (form, precision)]
        zeros = [probe._two_of_four if fact.pattern == "2:4" else probe._zeros(fact.level) for fact in facts]
        models = [compiled(core, small_graphs.graph(form, scheme, zeros=function)) for function in (None, *zeros)]
        for fact, speedup in zip(facts, ratios(models)[1:], strict=True):
            kept.append(say(f"{form} {precision} {fact.pattern} {fact.level:.0%} zeros", fact.speedup, speedup))
    return kept


def check_steps(core: ov.Core, can: Capabilities) -> list[bool]:
    """The widths' times; the step follows from them."""
    kept = []
    for fact in can.steps:
        scheme: Scheme = INT8 if fact.precision == "int8" else DEFAULT
        side = probe.STEP_SIDES[fact.form]
        models = [compiled(core, small_graphs.graph(fact.form, scheme, width, side)) for width in fact.widths]
        found = [1 / ratio for ratio in ratios([models[-1], *models])[1:]]
        worst = max(range(len(found)), key=lambda i: abs(found[i] / fact.ratios[i] - 1))
        name = f"{fact.form} {fact.precision}: step {fact.step}; {fact.widths[worst]} channels, which differ most"
        kept.append(say(name, 1 / fact.ratios[worst], 1 / found[worst]))
    return kept


def main() -> int:
    can = probe.capabilities(Target(), refresh=True)
    again = float(subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True).stdout)
    core = ov.Core()
    kept = [can.seconds <= 60, again < 1]
    kept += [*check_kernels(core, can), *check_zeros(core, can), *check_steps(core, can)]
    print(f"Probed in {can.seconds:.0f} s; known in {again:.2f} s the second time; {kept.count(False)} of {len(kept)} broken")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
