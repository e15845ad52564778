"""How many architectures one training serves for all policies, and whether what candidates inherit is what was trained.

    python benchmarks/coverage_shared.py torch|keras [--models resnet10t,Bert] [--jobs 1] [--resume]

The networks are those of `coverage_torch.py` and `coverage_keras.py`, each in a process of its own and with a few random
samples: prove its groups, train a few shared steps under random policies (another ratio for each group, 8 or 4 bits or none for
each layer), inherit two of them, and train an heir. The heir of a policy that only prunes must give what the elastic model
gives that obeys it, its channels silenced but not removed and under the same statistics, within 1e-4 of the range; bits are
left out, since a value that lies between two levels may round either way. A crash, a hang and running out of 300 CPU seconds
are that network's result.

Writes a row for each network to the CSV, and beside it a .txt with the machine, versions and command. Ends with exit code 1 if
fewer than 97 % of the networks pass, or if any output is wrong.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import coverage_check
import numpy as np
from coverage_check import Limits, Row

import autocompress as ac
from autocompress.data import map_arrays
from autocompress.frameworks.base import Candidate, TuneSettings, framework_of
from autocompress.structure import Structure

CPU_SECONDS, LEAST_PASSED, TOLERANCE = 300, 0.97, 1e-4
SMALLEST_RANGE = 1e-3
"""Of outputs: an untrained network may give nearly the same for all samples."""
SAMPLES, BATCHES, POLICIES = 4, 2, 3
RATIOS = (0.0, 0.25, 0.5, 0.75)
LAYERS = (ac.LayerPolicy(), ac.LayerPolicy(8, 8), ac.LayerPolicy(4, 8))
SETTINGS = TuneSettings(1, 1e-3, 0.5)
PACKAGES = {"torch": ("torch", "timm", "transformers", "numpy"), "keras": ("keras", "tensorflow", "numpy")}


class SharedChain:
    """The stages of one network."""

    def __init__(self, network: Any, as_task: Callable[[Any, Any], ac.Task]) -> None:
        logging.getLogger("nncf").setLevel(logging.ERROR)
        self.network, self.as_task = network, as_task
        self.row = Row(network.name, network.family)

    def stages(self) -> Sequence[Callable[[], None]]:
        """In order."""
        return (self.build, self.inspect, self.share, self.train, self.inherit, self.tune)

    def build(self) -> None:
        """The model, and random data of the kinds of its example."""
        model = self.network.make()
        self.task = self.as_task(model, self.network.inputs())
        self.framework = framework_of(model)

    def inspect(self) -> None:
        """Trace and prove."""
        start = time.process_time()
        structure = self.framework.inspect(self.task)
        self.row.inspect_seconds = time.process_time() - start
        self.row.proven, self.row.frozen = len(structure.groups), len(structure.frozen)
        self.policies = list(random_policies(structure))

    def share(self) -> None:
        """Make the elastic model."""
        self.training = self.framework.share(self.task, "l2", SETTINGS)
        self.training.begin(BATCHES)

    def train(self) -> None:
        """Every step another policy."""
        for _ in range(POLICIES):
            self.training.epoch(itertools.cycle(self.policies), lambda _: None)

    def inherit(self) -> None:
        """Heirs beside the elastic model itself."""
        whole, pruning = self.policies[0], ac.Policy(self.policies[1].pruning)
        both = self.training.candidate(whole)
        self.framework.reestimate(self.task, both)
        self._predicted(both)
        elastic: Any = self.training
        elastic.elastic.obey(pruning)
        masked = Candidate(elastic.elastic.model, pruning, {})
        expected, actual = self._predicted(masked), self._predicted(self.training.candidate(pruning))
        differences = zip(actual, expected, strict=True)
        errors = [np.abs(a - e).max() / max(np.ptp(e), SMALLEST_RANGE) for a, e in differences]
        self.row.error = float(np.max(errors))  # a NaN stays

    def tune(self) -> None:
        """Train an heir."""
        heir = self.training.candidate(self.policies[0])
        self.framework.fine_tune(self.task, heir, SETTINGS, lambda _: None, self.training)

    def verdict(self) -> str:
        """The status of a network that came to the end."""
        return "ok" if self.row.error <= TOLERANCE else "wrong"

    def _predicted(self, candidate: Candidate) -> list[Any]:
        return flat(self.framework.predict(self.task, candidate, (batch.inputs for batch in self.task.splits["valid"].batches())))


def random_policies(structure: Structure) -> Iterator[ac.Policy]:
    """Another ratio for each group and another precision for each layer."""
    generator = np.random.default_rng(0)
    for _ in range(POLICIES):
        pruning = {group.name: float(generator.choice(RATIOS)) for group in structure.groups}
        yield ac.Policy(pruning, {layer.name: LAYERS[generator.integers(len(LAYERS))] for layer in structure.layers})


def flat(outputs: Any) -> list[Any]:
    """The floats of a prediction in NumPy."""
    if isinstance(outputs, Mapping):
        return flat(list(outputs.values()))
    if isinstance(outputs, list | tuple):
        return [array for part in outputs for array in flat(part)]
    array = np.asarray(outputs)
    return [array] if array.dtype.kind == "f" else []


def smallness(predictions: Any, _: Any) -> float:
    """A metric that any outputs have."""
    return -float(np.mean(flat(predictions)[0] ** 2))


def random_samples(example: Any, samples: int) -> Any:
    """Arrays like those of a single sample; where all of one are ones, as in a mask, so are these."""
    generator = np.random.default_rng(1)

    def like(array: Any) -> Any:
        shape = samples, *array.shape[1:]
        if array.dtype.kind == "f":
            return generator.normal(size=shape).astype(array.dtype)
        return generator.integers(min(int(array.min()), 1), int(array.max()) + 1, shape).astype(array.dtype)

    return map_arrays(example, lambda array: like(np.asarray(array)))


def torch_task(model: Any, example: Any) -> ac.Task:
    """A task of a module: its first output is to be a number that rises from sample to sample."""
    import torch

    def loss(outputs: Any, targets: Any) -> Any:
        first = next(output for output in outputs_of(outputs) if output.is_floating_point())
        return (first - targets.reshape(-1, *[1] * (first.ndim - 1))).square().mean()

    outputs_of = importlib.import_module("autocompress.frameworks.torch.calls").outputs_of
    torch.set_num_threads(1)
    inputs = random_samples(example, SAMPLES)
    data = [(inputs, np.linspace(0, 1, SAMPLES, dtype=np.float32))] * BATCHES
    return ac.Task(model.eval(), train=data, valid=data, loss=loss, metric=smallness, direction="maximize", learning_rate=1e-3)


def keras_task(model: Any, example: Any) -> ac.Task:
    """The same of a Keras model, for all its outputs."""
    import keras
    import tensorflow as tf

    def target(output: Any) -> Any:
        return np.broadcast_to(numbers.reshape(-1, *[1] * (len(output.shape) - 1)), output.shape).copy()

    as_argument = importlib.import_module("autocompress.frameworks.keras.nodes").as_argument
    inputs = as_argument(random_samples(example, SAMPLES * BATCHES))
    numbers = np.linspace(0, 1, SAMPLES * BATCHES, dtype=np.float32)
    outputs = model(inputs, training=False)
    targets, loss = (keras.tree.map_structure(made, outputs) for made in (target, lambda _: "mse"))
    data = tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(SAMPLES)
    return ac.Task(model, train=data, valid=data, loss=loss, metric=smallness, direction="maximize", learning_rate=1e-3)


AS_TASK = {"torch": torch_task, "keras": keras_task}


def networks(framework: str) -> Mapping[str, Any]:
    """All of a framework, by name."""
    found: Mapping[str, Any] = importlib.import_module(f"coverage_{framework}").NETWORKS
    return found


def examine(framework: str, name: str) -> Iterator[Row]:
    """The rows of one network."""
    return coverage_check.examined(SharedChain(networks(framework)[name], AS_TASK[framework]))


def summary(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether the bounds hold, and the figures in words."""
    passed, wrong = ([row for row in rows if row.status == status] for status in ("ok", "wrong"))
    words = f"{len(passed)} of {len(rows)} ({len(passed) / len(rows):.0%}) share a training; wrong outputs: {len(wrong)}"
    return len(passed) >= LEAST_PASSED * len(rows) and not wrong, words


def main(framework: str) -> int:
    """1 if a bound is broken."""
    families = {name: network.family for name, network in networks(framework).items()}
    limits = Limits(CPU_SECONDS, "fork" if framework == "torch" else "spawn")
    return coverage_check.check(
        families, partial(examine, framework), limits, PACKAGES[framework], summary, __doc__ or "", framework
    )


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in AS_TASK:
        sys.exit(__doc__)
    sys.exit(main(sys.argv.pop(1)))
