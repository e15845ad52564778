"""Is the reason named? Each prepared model has one fault, or none; `explain` has to name that fault and no other.

The target is probed first (up to a minute, then cached). The models are those of the tests, measured here in full. Exit code 1
if a reason is missing, wrong or made up.

    python benchmarks/check_explain.py [--threads 1] [--precision f32]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openvino as ov

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "target"))
import test_explain as prepared

from autocompress.capabilities import Capabilities
from autocompress.device import Target
from autocompress.target.explain import explain
from autocompress.target.probe import capabilities


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("f32", "bf16", "f16"))
    options = parser.parse_args()
    target = Target(threads=options.threads, precision=options.precision)
    known = capabilities(target)
    wrong = 0
    print(f"{'model':<50}{'expected':<24}{'named':<40}{'seconds':>8}")
    for name, model, expected in cases(target, known):
        start = time.perf_counter()
        explanation = explain(model, target, known)
        noted = expected in {reason for _, reason in prepared.NOTED.values()}
        named = [finding.reason for finding in (explanation.findings if noted else explanation.faults)]
        wrong += named != ([expected] if expected else [])
        shown = ", ".join(named) or "nothing"
        print(f"{name:<50}{expected or 'nothing':<24}{shown:<40}{time.perf_counter() - start:>8.1f}", flush=True)
    print(f"{wrong} wrong" if wrong else "all right")
    return 1 if wrong else 0


def cases(target: Target, known: Capabilities) -> Iterator[tuple[str, ov.Model, str]]:
    """Name, model, expected reason. Where floats run in FP32 anyway there is no hidden gain to name."""
    for name, (build, reason) in (prepared.PREPARED | prepared.NOTED).items():
        hidden = target.precision is None and known.float_precision != "f32"
        applies = reason != "baseline-already-bf16" or hidden
        yield name, build(), reason if applies else ""
    for name, build in prepared.HEALTHY.items():
        yield name, build(), ""


if __name__ == "__main__":
    sys.exit(main())
