"""Hold the latency predictor's estimates against measured candidates, on two networks.

    python benchmarks/check_predictor.py [resnet20] [mobilenet_v2] [--seconds 80]

Builds the layer table cold and warm, builds and measures 60 random policies (pruning ratios by group, precision by layer), and
prints the mean absolute percentage error and the rank correlation on the policies that were not used for fitting, after 0, 8 and
20 of them were. Ends with exit code 1 if a bound is broken: 6 % and 0.97 after 8 measurements, 4 % after 20, 90 s for the cold
table and 1 s for the warm one. About ten minutes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from scipy.stats import spearmanr
from torch import nn

import autocompress as ac
from autocompress.config import CompressionConfig
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.space import SearchSpace, build_space, load_space_spec
from autocompress.target import precision
from autocompress.target.layer_table import build_table
from autocompress.target.meter import Timer
from autocompress.target.predict import Predictor
from autocompress.target.probe import capabilities
from autocompress.target.runtime import compile_model, fingerprint
from autocompress.trial import Workbench

POLICIES = 60
SPACE = {
    "objectives": ["accuracy", "latency", "size"],
    "pruning": [{"ratios": [0, 0.25, 0.5, 0.75]}],
    "precision": [{"weights": ["float", 8, 4]}],
}
"""As a search sees it: channels in multiples of the probed step."""
QUANTILE = 0.1
BOUNDS = {0: (1.0, 0.0), 8: (0.06, 0.97), 20: (0.04, 0.97)}
"""Measurements → largest error, smallest rank correlation."""


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the paper."""
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNet20(nn.Module):
    """The CIFAR ResNet of He et al. (2015), table 6: 16, 32 and 64 channels, three blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        strides = [1, 1, 1, 2, 1, 1, 2, 1, 1]
        self.blocks = nn.Sequential(*(Residual(a, b, s) for a, b, s in zip(widths, widths[1:], strides, strict=False)))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the paper."""
        return self.fc(self.blocks(torch.relu(self.bn(self.stem(x)))).mean((2, 3)))


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and its batch norm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class Inverted(nn.Module):
    """Expand, filter each channel, project."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers = [*conv_norm(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [*conv_norm(hidden, hidden, 3, stride, hidden), nn.ReLU6(), *conv_norm(hidden, outputs, 1)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the paper."""
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al. (2018), table 2: layer for layer `torchvision.models.mobilenet_v2()`, which need not be installed."""

    def __init__(self) -> None:
        super().__init__()
        blocks, inputs = [], 32
        for expansion, outputs, count, stride in [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]:
            for i in range(count):
                blocks.append(Inverted(inputs, outputs, stride if i == 0 else 1, expansion))
                inputs = outputs
        first, last = conv_norm(3, 32, 3, 2), conv_norm(320, 1280, 1)
        self.features = nn.Sequential(*first, nn.ReLU6(), *blocks, *last, nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As in the paper."""
        return self.classifier(self.features(x).mean((2, 3)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet20": (ResNet20, (3, 32, 32)),
    "mobilenet_v2": (MobileNetV2, (3, 96, 96)),
}


def task_of(name: str) -> ac.Task:
    """An untrained model with the norms of a trained one, and four random samples: latency does not ask for more."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    data = (np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32), np.zeros(4, np.int64))
    return ac.Task(model, train=data, valid=data, loss=nn.functional.cross_entropy)


def random_policy(space: SearchSpace, generator: random.Random) -> ac.Policy:
    """Every decision of the space by itself."""
    return space.policy({decision.name: generator.randrange(len(decision.choices)) for decision in space.decisions})


def deployed(bench: Workbench, policies: list[ac.Policy], folder: Path) -> list[Path]:
    """The candidates' IR."""
    paths = []
    for i, policy in enumerate(policies):
        model, _ = bench.deploy(bench.candidate(policy), bench.target, False, bench.samples)
        paths.append(folder / f"{i}.xml")
        precision.save(model, paths[-1])
        print(f"\r{i + 1} of {len(policies)} candidates built", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return paths


def measured(reference: ov.CompiledModel, paths: list[Path], target: ac.Target, seconds: float) -> tuple[np.ndarray, float]:
    """Undisturbed latencies relative to the reference, and their relative error: the scatter between halves of the rounds.

    All models take turns in changing order for minutes, and of each model's rounds the fastest tenth counts. Neighbours on the
    same host slow a model with many weights much more than a small one, for minutes on end; that is not what is estimated.
    """
    timers = [Timer(model) for model in (reference, *(compile_model(path, target) for path in paths))]
    order = random.Random(0)
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < 40 or time.perf_counter() - start < seconds:
        found = [0.0] * len(timers)
        for i in order.sample(range(len(timers)), len(timers)):
            timers[i].block_seconds()  # the caches still hold another model
            found[i] = timers[i].block_seconds()
        rounds.append(found)
    halves = [np.quantile(rounds[i::2], QUANTILE, axis=0) for i in (0, 1)]
    times = np.quantile(rounds, QUANTILE, axis=0)
    return times[1:] / times[0], float(np.std((halves[0] / halves[1])[1:])) / 2


def errors(predictor: Predictor, policies: list[ac.Policy], ratios: np.ndarray) -> tuple[float, float]:
    """Mean absolute percentage error and Spearman's rank correlation."""
    estimates = np.array([predictor.ratio(policy) for policy in policies])
    return float(np.abs(estimates / ratios - 1).mean()), float(spearmanr(estimates, ratios)[0])


def check(name: str, folder: Path, seconds: float) -> bool:
    """Print one model's figures; True where every bound is kept."""
    target = ac.Target()
    task, framework = task_of(name), TorchFramework()
    structure = framework.inspect(task)
    bench = Workbench(task, framework, structure, CompressionConfig(target=target, calibration_samples=1, storage="fast"))
    graph = framework.to_openvino(task, bench.candidate(ac.Policy()), target.batch).model
    space = build_space(load_space_spec(SPACE), structure, capabilities(target))
    ratios = {decision.subject: decision.choices for decision in space.decisions if decision.kind == "prune"}
    table = build_table(graph, structure, ratios, fingerprint(target), folder=folder / "cache")
    warm = build_table(graph, structure, ratios, fingerprint(target), folder=folder / "cache")
    print(f"{name}: {table.timed} graphs timed in {table.seconds:.1f} s; from the cache in {warm.seconds:.2f} s")
    policies = [random_policy(space, random.Random(seed)) for seed in range(POLICIES)]
    truth, uncertainty = measured(bench.reference, deployed(bench, policies, folder), target, seconds)
    print(f"  {POLICIES} policies, ratios {truth.min():.3f} to {truth.max():.3f}, measured to ± {uncertainty:.1%}")
    predictor, kept = Predictor(warm, structure, graph), table.seconds <= 90 and warm.seconds < 1
    start = time.perf_counter()
    for policy in policies:
        predictor.ratio(policy)
    print(f"  one estimate takes {(time.perf_counter() - start) / POLICIES * 1e3:.2f} ms")
    for i in range(POLICIES - 20):
        if i in BOUNDS:
            error, rank = errors(predictor, policies[i:], truth[i:])
            most, least = BOUNDS[i]
            kept = kept and error <= most and rank >= least
            print(f"  after {i:2} measurements: MAPE {error:.1%} (bound {most:.0%}), Spearman {rank:.3f} (bound {least})")
        predictor.observe(policies[i], float(truth[i]))
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--seconds", type=float, default=90, help="for which each model's policies are measured")
    options = parser.parse_args()
    kept = []
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            kept.append(check(name, Path(folder), options.seconds))
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
