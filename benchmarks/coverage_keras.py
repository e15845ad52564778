"""How many Keras architectures the engine takes all the way, and whether what it removes is right.

    python benchmarks/coverage_keras.py [--models MobileNetV2,nested] [--jobs 1] [--resume]

Each network runs in a process of its own: trace and prove its groups, remove 30 % of the channels of all proven groups at once,
run, convert, INT8, compile, run. What was removed is checked by `silencing_keras.py`, which does not ask the engine: with weights
and statistics perturbed, the pruned network's outputs must be those of the original with zeros in the kernels that read what is
gone, within 1e-5 of their range; and zeroing as many other channels must change them by more than 100 times that. A crash, a
hang and running out of 240 CPU seconds are that network's result.

Writes a row for each network to the CSV, and beside it a .txt with the machine, versions and command. Ends with exit code 1 if
fewer than 95 % of the networks pass, or if any output is wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import coverage_check
from coverage_check import Limits, Row
from coverage_keras_chain import KerasChain
from networks_keras import NETWORKS

CPU_SECONDS = 240
LEAST_PASSED = 0.95
PACKAGES = ("keras", "tensorflow", "openvino", "nncf", "numpy")


def examine(name: str) -> Iterator[Row]:
    """The rows of one network."""
    return coverage_check.examined(KerasChain(NETWORKS[name]))


def summary(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether the bounds hold, and the figures in words."""
    passed, wrong = ([row for row in rows if row.status == status] for status in ("ok", "wrong"))
    applications = sum(row.family == "applications" for row in rows)
    words = (
        f"{len(passed)} of {len(rows)} ({len(passed) / len(rows):.0%}; {applications} are of keras.applications) pass; "
        f"wrong outputs: {len(wrong)}"
    )
    return len(passed) >= LEAST_PASSED * len(rows) and not wrong, words


def main() -> int:
    """1 if a bound is broken."""
    families = {name: network.family for name, network in NETWORKS.items()}
    return coverage_check.check(families, examine, Limits(CPU_SECONDS, "spawn"), PACKAGES, summary, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
