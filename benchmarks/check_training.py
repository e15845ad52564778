"""What a training step with simulated bits costs, beside a plain one.

    python benchmarks/check_training.py [resnet20] [mobilenet_v2] [--pairs 12]

Plain, quantized (8 bits everywhere) and quantized steps with distillation take turns, batch 64, 32×32 pixels. Prints the median
of the ratios of CPU times; so does that of a shared training, in which every step has another policy with some of the channels.
Ends with exit code 1 if a bound is broken: 1.5 for the quantized step, 1.9 with distillation, 1.6 for the elastic model's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from models import MobileNetV2, ResNet20
from torch import nn
from torch.nn import functional

import autocompress as ac
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.torch.finetune import Trainer
from autocompress.frameworks.torch.framework import TorchFramework

BATCH, SIDE = 64, 32
BOUNDS = {"QAT": 1.5, "QAT + distillation": 1.9, "elastic, masked": 1.6, "elastic, thin": 1.6}
WARM_UP = 6
MODELS = {"resnet20": ResNet20, "mobilenet_v2": MobileNetV2}

Step = Callable[[], None]


def task_of(make: Callable[[], nn.Module]) -> ac.Task:
    """An untrained model and one batch of noise: a step's cost does not ask for more."""
    torch.manual_seed(0)
    data = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, 10, (BATCH,))
    return ac.Task(make(), train=data, valid=data, batch_size=BATCH, loss=functional.cross_entropy, name="noise")


def plain_step(task: ac.Task) -> Step:
    """A step as a textbook writes it."""
    model = task.model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images, classes = task.train

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), classes).backward()
        optimizer.step()

    return step


def quantized_step(task: ac.Task, distillation: float) -> Step:
    """A step of the product's own loop, every layer in 8 bits."""
    framework = TorchFramework()
    layers = [layer.name for layer in framework.inspect(task).layers]
    policy = ac.Policy({}, dict.fromkeys(layers, ac.LayerPolicy(8, 8)))
    candidate = framework.compress(task, policy, "l2")
    settings = TuneSettings(epochs=10**6, learning_rate=1e-3, distillation=distillation)
    trainer = Trainer(task, candidate.model.train(), settings, copy.deepcopy(task.model).eval())
    (batch,) = trainer.batches()
    return lambda: trainer.step(batch)


def elastic_step(task: ac.Task, is_thin: bool) -> Step:
    """A step of a shared training, of the whole masked model or of what the policy leaves of it; every layer in 8 bits."""
    framework = TorchFramework()
    structure = framework.inspect(task)
    layers = dict.fromkeys((layer.name for layer in structure.layers), ac.LayerPolicy(8, 8))
    training = framework.share(task, "l2", TuneSettings(epochs=1, learning_rate=1e-3, distillation=0.0))
    training.begin(10**6)
    training.trainer.to_training_mode()
    (batch,) = training.trainer.batches()
    generator = np.random.default_rng(0)

    def step() -> None:
        policy = ac.Policy({group.name: float(generator.choice([0, 0.25, 0.5, 0.75])) for group in structure.groups}, layers)
        if is_thin:
            training._obey(policy)
        else:
            training.elastic.obey(policy)
        training.trainer.step(batch)

    return step


def cpu_seconds(step: Step) -> float:
    """Of this process: other processes do not count."""
    start = time.process_time()
    step()
    return time.process_time() - start


def check(name: str, pairs: int) -> list[str]:
    """Print the ratios; what breaks a bound is returned in words."""
    steps = {
        "QAT": quantized_step(task_of(MODELS[name]), 0.0),
        "QAT + distillation": quantized_step(task_of(MODELS[name]), 0.7),
        "elastic, masked": elastic_step(task_of(MODELS[name]), False),
        "elastic, thin": elastic_step(task_of(MODELS[name]), True),
    }
    plain = plain_step(task_of(MODELS[name]))
    for step in (plain, *steps.values()):
        for _ in range(WARM_UP):
            step()
    ratios: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(pairs):
        for kind, step in steps.items():
            ratios[kind].append(cpu_seconds(step) / cpu_seconds(plain))
    broken = []
    for kind, found in ratios.items():
        ratio = statistics.median(found)
        low, _, high = statistics.quantiles(found)
        print(f"{name:14} {kind:20} {ratio:.2f}× a plain step [{low:.2f}, {high:.2f}], at most {BOUNDS[kind]}", flush=True)
        broken += [f"{name}: {kind} takes {ratio:.2f}"] if ratio > BOUNDS[kind] else []
    return broken


def main(names: list[str], pairs: int) -> int:
    """All checks; 1 if a bound is broken."""
    broken = [line for name in names for line in check(name, pairs)]
    print(*broken, sep="\n")
    return int(bool(broken))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--pairs", type=int, default=12)
    arguments = parser.parse_args()
    sys.exit(main(arguments.models, arguments.pairs))
