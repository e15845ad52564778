"""What the coverage checks of the frameworks share: a process for each network, and a row that says how far it came."""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

WALL_PER_CPU = 10
"""Wall time for each second of CPU time: a process that waits for ever is stopped too."""
LONGEST_REASON = 240


@dataclass
class Row:
    """What is known of one network.

    Attributes:
        status: "ok"; "wrong": outputs differ from the silenced original's, or other channels matter too little to tell;
            "frozen": no group is proven; "failed": in a stage.
        stage: the last one begun.
        proven, frozen: groups.
        share: of the parameters, in layers that lost channels.
        error: of the outputs after pruning all groups, relative to their range.
        control: the error after zeroing other channels, in tolerances.
        int8, asked: layers.
        cpu_seconds: of the whole chain.
        inspect_seconds: of them, for tracing and proving.
        reason: why it failed, or why most of the frozen groups are.
    """

    model: str
    family: str
    status: str = "running"
    stage: str = "build"
    proven: int = 0
    frozen: int = 0
    share: float = 0.0
    error: float = float("nan")
    control: float = float("nan")
    int8: int = 0
    asked: int = 0
    cpu_seconds: float = 0.0
    inspect_seconds: float = 0.0
    reason: str = ""

    @classmethod
    def columns(cls) -> list[str]:
        """Of the CSV."""
        return [field.name for field in fields(cls)]

    def to_text(self) -> dict[str, str]:
        """Values of the CSV."""
        return {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_text(cls, text: dict[str, str]) -> Row:
        """What `to_text` gave."""
        kinds: dict[str, Any] = {field.name: type(getattr(cls("", ""), field.name)) for field in fields(cls)}
        return cls(**{name: kinds[name](value) for name, value in text.items()})

    def line(self) -> str:
        """For the terminal."""
        return (
            f"{self.model:32} {self.status:6} {self.stage:8} groups {self.proven:3} + {self.frozen:3} frozen"
            f"  share {self.share:4.0%}  error {self.error:7.1e}  control {self.control:7.1e}  INT8 {self.int8:3}/{self.asked:3}"
            f"  {self.cpu_seconds:5.1f} s (inspect {self.inspect_seconds:4.1f})  {self.reason}"
        )


class Chain(Protocol):
    """The stages of one network."""

    row: Row

    def stages(self) -> Sequence[Callable[[], None]]:
        """In order; each leaves what the next one needs."""
        ...

    def verdict(self) -> str:
        """The status of a network that came to the end."""
        ...


Examine = Callable[[str], Iterator[Row]]
"""From a network's name to its rows; importable by name, so that a process can begin with it."""


def examined(chain: Chain) -> Iterator[Row]:
    """The row at the beginning of every stage and at the end; an exception ends it."""
    warnings.simplefilter("ignore")
    for stage in chain.stages():
        chain.row.stage = stage.__name__
        chain.row.cpu_seconds = time.process_time()
        yield replace(chain.row)
        try:
            stage()
        except Exception as error:  # of any library: it is the network's result
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            chain.row.status, chain.row.reason = "failed", reason[:LONGEST_REASON]
            break
    else:
        chain.row.status = chain.verdict()
    chain.row.cpu_seconds = time.process_time()
    yield chain.row


@dataclass(frozen=True)
class Limits:
    """How a network's process is started and when it is ended.

    Attributes:
        cpu_seconds: for each network.
        start: "fork" takes over what the parent has imported; TensorFlow needs "spawn".
    """

    cpu_seconds: int
    start: Literal["fork", "spawn"]


def limited(examine: Examine, name: str, sender: Connection, cpu_seconds: int) -> None:
    """The body of a child process: silent, and killed by the system when its CPU time is spent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    for row in examine(name):
        sender.send(row)


class Child:
    """One running network, and the last that was heard of it."""

    def __init__(self, name: str, family: str, examine: Examine, limits: Limits) -> None:
        context: Any = multiprocessing.get_context(limits.start)
        self.limits = limits
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=limited, args=(examine, name, sender, limits.cpu_seconds), daemon=True)
        self.row = Row(name, family)
        self.is_late = False
        self.deadline = time.monotonic() + WALL_PER_CPU * limits.cpu_seconds
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
            self.is_late = True
            return True
        return False

    def result(self) -> Row:
        """The row, with the reason of an early end."""
        self.process.join()
        code = self.process.exitcode or 0
        if self.row.status == "running":
            self.row.status = "failed"
            if self.is_late:
                self.row.reason = f"no end after {WALL_PER_CPU * self.limits.cpu_seconds} s of wall time"
            elif code in (-signal.SIGXCPU, -signal.SIGKILL):
                self.row.reason = f"more than {self.limits.cpu_seconds} CPU seconds"
                self.row.cpu_seconds = float(self.limits.cpu_seconds)
            else:
                self.row.reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return self.row


def run(families: Mapping[str, str], examine: Examine, limits: Limits, jobs: int) -> Iterator[Row]:
    """Rows as they are finished. The networks are given by name, each with its family."""
    waiting, running = list(families.items()), list[Child]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Child(*waiting.pop(0), examine, limits))
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


def write(path: Path, rows: Sequence[Row], packages: Sequence[str], command: str) -> None:
    """All rows, and what they were made with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, Row.columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.to_text() for row in rows)
    path.with_suffix(".txt").write_text("\n".join(circumstances(packages, command)) + "\n")


def circumstances(packages: Sequence[str], command: str) -> list[str]:
    """Machine, versions, command."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [
        f"host: {processor}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        f"versions: {versions}",
        f"command: {command}",
    ]


def check(
    families: Mapping[str, str],
    examine: Examine,
    limits: Limits,
    packages: Sequence[str],
    summary: Callable[[Sequence[Row]], tuple[bool, str]],
    description: str,
    framework: str | None = None,
) -> int:
    """Print a line for each network and the summary; 1 if a bound is broken.

    Args:
        families: of all networks, by name.
        examine: what a process does with one.
        limits: of a process.
        packages: whose versions are written beside the rows.
        summary: whether the bounds hold, and the figures in words.
        description: of the script, for its help.
        framework: the argument that the script has taken, if any; part of the CSV's name.
    """
    script, taken = Path(sys.argv[0]), [framework] if framework else []
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names, separated by commas; by default all that have no row yet")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the CSV already has; --models are run again")
    parser.add_argument("--out", type=Path, default=script.parent / "results" / f"{'_'.join([script.stem, *taken])}.csv")
    options = parser.parse_args()
    order = {name: place for place, name in enumerate(families)}
    rows = read(options.out) if options.resume else {}
    wanted = options.models.split(",") if options.models else order.keys() - rows.keys()
    if unknown := set(wanted) - order.keys():
        raise SystemExit(f"unknown networks: {', '.join(sorted(unknown))}; known: {', '.join(order)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no child outlives this process
    for row in run({name: families[name] for name in order if name in wanted}, examine, limits, options.jobs):
        rows[row.model] = row
        print(row.line(), flush=True)
        command = " ".join(["python", f"{script.parent.name}/{script.name}", *taken])
        write(options.out, sorted(rows.values(), key=lambda row: order[row.model]), packages, command)
    kept, words = summary(list(rows.values()))
    print(words)
    return int(not kept)
