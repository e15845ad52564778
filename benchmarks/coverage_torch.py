"""How many architectures of timm and transformers the PyTorch engine takes all the way, and whether what it removes is right.

    python benchmarks/coverage_torch.py [--models resnet10t,Bert] [--jobs 1] [--resume]

Each network runs in a process of its own: trace and prove its groups, remove 30 % of the channels of all proven groups at once,
run, convert, INT8, compile, run. What was removed is checked by `silencing.py`, which does not ask the engine: with weights and
statistics perturbed, the pruned network's outputs must be those of the original with the lost input channels of each layer
zeroed; and zeroing as many other channels must change them by more than 100 times the tolerance. A crash, a hang and running
out of 60 CPU seconds are that network's result.

Writes a row for each network to the CSV, and beside it a .txt with the machine, versions and command. Ends with exit code 1 if
fewer than 85 % of the networks pass with a third of their parameters in layers that lost channels, or if any output is wrong.
Needs timm, torchvision and transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import coverage_check
from coverage_check import Limits, Row
from coverage_torch_chain import CPU_SECONDS, TorchChain
from networks import packages, timm_networks, transformers_networks

LEAST_SHARE, LEAST_PASSED = 1 / 3, 0.85
PACKAGES = ("torch", "torch-pruning", "timm", "transformers", "openvino", "nncf", "numpy")
NETWORKS = {network.name: network for network in timm_networks() + transformers_networks()}


def examine(name: str) -> Iterator[Row]:
    """The rows of one network."""
    return coverage_check.examined(TorchChain(NETWORKS[name]))


def summary(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether the bounds hold, and the figures in words."""
    passed = [row for row in rows if row.status == "ok" and row.share >= LEAST_SHARE]
    wrong = [row for row in rows if row.status == "wrong"]
    architectures = sum(row.family == "transformers" for row in rows)
    words = (
        f"{len(passed)} of {len(rows)} ({len(passed) / len(rows):.0%}; {architectures} are of transformers) pass with at least a "
        f"third of their parameters in layers that lost channels; wrong outputs: {len(wrong)}"
    )
    return len(passed) >= LEAST_PASSED * len(rows) and not wrong, words


def main() -> int:
    """1 if a bound is broken."""
    packages()  # imported once: importing is not a network's time
    families = {name: network.family for name, network in NETWORKS.items()}
    return coverage_check.check(families, examine, Limits(CPU_SECONDS, "fork"), PACKAGES, summary, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
