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

import argparse
import csv
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from coverage_chain import CPU_SECONDS, Row, examine
from networks import Network, packages, timm_networks, transformers_networks

WALL_SECONDS = 600
"""Ten times the CPU time: a process that waits for ever is stopped too."""
LEAST_SHARE, LEAST_PASSED = 1 / 3, 0.85
OUT = Path(__file__).parent / "results" / "coverage_torch.csv"
PACKAGES = ("torch", "torch-pruning", "timm", "transformers", "openvino", "nncf", "numpy")


def limited(network: Network, sender: Connection) -> None:
    """The body of a child process: silent, and killed by the system when its CPU time is spent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    for row in examine(network):
        sender.send(row)


class Child:
    """One running network, and the last that was heard of it."""

    def __init__(self, network: Network) -> None:
        context = multiprocessing.get_context("fork")  # the packages are imported once, in the parent
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=limited, args=(network, sender), daemon=True)
        self.row = Row(network.name, network.family)
        self.deadline = time.monotonic() + WALL_SECONDS
        self.process.start()
        sender.close()

    def finished(self) -> bool:
        """Take what it has sent; True if it has ended, or has had its time and is ended now."""
        try:
            while self.receiver.poll():
                self.row = self.receiver.recv()
        except EOFError:
            return True
        if time.monotonic() > self.deadline:
            self.process.kill()
            self.row.reason = f"no end after {WALL_SECONDS} s of wall time"
            return True
        return False

    def result(self) -> Row:
        """The row, with the reason of an early end."""
        self.process.join()
        code = self.process.exitcode or 0
        if self.row.status == "running":
            self.row.status = "failed"
            spent = code in (-signal.SIGXCPU, -signal.SIGKILL) and not self.row.reason
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self.row.reason = self.row.reason or (f"more than {CPU_SECONDS} CPU seconds" if spent else how)
            self.row.cpu_seconds = float(CPU_SECONDS) if spent else self.row.cpu_seconds
        return self.row


def run(networks: Sequence[Network], jobs: int) -> Iterator[Row]:
    """Rows as they are finished."""
    waiting, running = list(networks), list[Child]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Child(waiting.pop(0)))
        wait([child.receiver for child in running], timeout=1)
        for child in [child for child in running if child.finished()]:
            running.remove(child)
            yield child.result()


def read(path: Path) -> dict[str, Row]:
    """Rows of an earlier run."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {fields["model"]: Row.from_text(fields) for fields in csv.DictReader(file)}


def write(path: Path, rows: Sequence[Row]) -> None:
    """All rows, and what they were made with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, Row.columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.to_text() for row in rows)
    path.with_suffix(".txt").write_text("\n".join(circumstances()) + "\n")


def circumstances() -> list[str]:
    """Machine, versions, command."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"host: {processor}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        f"versions: {versions}",
        "command: python benchmarks/coverage_torch.py",
    ]


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


def main(options: Any) -> int:
    """Print a line for each network and the summary; 1 if a bound is broken."""
    networks = timm_networks() + transformers_networks()
    order = {network.name: place for place, network in enumerate(networks)}
    rows = read(options.out) if options.resume else {}
    wanted = options.models.split(",") if options.models else order.keys() - rows.keys()
    if unknown := set(wanted) - order.keys():
        raise SystemExit(f"unknown networks: {', '.join(sorted(unknown))}; known: {', '.join(order)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no child outlives this process
    packages()  # imported once: importing is not a network's time
    for row in run([network for network in networks if network.name in wanted], options.jobs):
        rows[row.model] = row
        print(row.line(), flush=True)
        write(options.out, sorted(rows.values(), key=lambda row: order[row.model]))
    kept, words = summary(list(rows.values()))
    print(words)
    return int(not kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names, separated by commas; by default all that have no row yet")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the CSV already has; --models are run again")
    parser.add_argument("--out", type=Path, default=OUT)
    sys.exit(main(parser.parse_args()))
