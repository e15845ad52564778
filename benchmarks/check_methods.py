"""All training-time methods on the ResNet-8 of experiments/mnist_resnet8: chained in one policy, and beside NNCF's own training.

    python benchmarks/check_methods.py [chain] [nncf] [--seeds 3] [--epochs 3]

chain: 30 % of the channels, 8 and 4 bits, half of the weights zero in two layers, one binary layer, trained and exported: on how
many validation images the IR gives the simulation's class. A small regression likewise: the mean difference over the range.
nncf: `nncf.quantize` on the PyTorch model, trained by the same loop with the same teacher; beside it ours in INT8, in few bits,
and with half of the channels. Accuracies are those of the IR at f32 on the validation images, means over the seeds.

Ends with exit code 1 if a bound is broken: 97 % and 2 %; INT8 at least NNCF's less 0.2 points; half of the channels in INT8 at
most 1 point below the original; of 4, 3 and 2 bits the most at which rounding alone costs more than 2 points of accuracy at least
2 points better trained (no training can win them back where rounding does not cost them), and more bits than these no worse
trained by 0.2. NNCF compiles an extension at first (a minute, needs g++ and ninja).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import os
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # before NNCF is imported

import nncf
import numpy as np
import openvino as ov
import torch
from sklearn.datasets import load_diabetes
from torch import nn

import autocompress as ac
from autocompress.data import to_numpy
from autocompress.frameworks.base import Candidate, TuneSettings
from autocompress.frameworks.torch.finetune import Trainer
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.reestimate import reestimate_batch_norm
from autocompress.space import uniform_policy
from autocompress.target import precision
from autocompress.target.evaluate import evaluate, predict
from autocompress.target.runtime import compile_for_scoring
from autocompress.task import load_task

FRAMEWORK = TorchFramework()
TASK_FILE = Path(__file__).resolve().parents[1] / "experiments/mnist_resnet8/task.py"
EXACT = ac.Target(precision="f32")
SAMPLES, CHANNEL_STEP = 100, 8
SAME_CLASS, REGRESSION_ERROR = 0.97, 0.02
NNCF_SLACK, TRAINING_GAIN, PRUNED_LOSS = 0.002, 0.02, 0.01


def settings(task: ac.Task, epochs: int, seed: int) -> TuneSettings:
    return TuneSettings(epochs, task.learning_rate, task.distillation, seed)


def candidate_of(task: ac.Task, policy: ac.Policy, epochs: int = 0, seed: int = 0) -> Candidate:
    """A candidate, trained where there are epochs."""
    candidate = FRAMEWORK.compress(task, policy, "l2")
    if epochs:
        FRAMEWORK.fine_tune(task, candidate, settings(task, epochs, seed), lambda _: None)
    return candidate


def deployed(task: ac.Task, candidate: Candidate, trained: bool) -> ov.CompiledModel:
    """The IR of a candidate, compiled in f32."""
    samples = task.calibration_split.take(SAMPLES)
    converted = FRAMEWORK.to_openvino(task, candidate, 1)
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        return compile_for_scoring(
            precision.place_precision(converted, candidate.policy, samples, correct_bias=not trained), EXACT
        )


def accuracy(task: ac.Task, policy: ac.Policy, epochs: int = 0, seed: int = 0) -> float:
    """Of the deployed IR."""
    candidate = candidate_of(task, policy, epochs, seed)
    return evaluate(deployed(task, candidate, bool(epochs)), task.splits["valid"], task.scorer)


def both_outputs(task: ac.Task, candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of the simulation and of the IR on the validation data."""
    inputs = task.valid[0]
    with torch.no_grad():
        simulated = torch.cat([candidate.model(part) for part in inputs.split(500)]).numpy()
    singles = ((to_numpy(inputs[i : i + 1]),) for i in range(len(inputs)))
    return simulated, predict(deployed(task, candidate, True), ((single, 1) for single in singles))


def check_chain(task: ac.Task, epochs: int) -> list[str]:
    """All methods in one policy on images."""
    structure = FRAMEWORK.inspect(task)
    layers = {
        "stem": ac.LayerPolicy(8, 8),
        "block1.conv1": ac.LayerPolicy(4, 8),
        "block1.conv2": ac.LayerPolicy(4, 4),
        "block2.conv1": ac.LayerPolicy(8, 8, 0.5),
        "block2.conv2": ac.LayerPolicy(4, 8, pattern="2:4"),
        "block2.shortcut.0": ac.LayerPolicy(8, 8),
        "block3.conv1": ac.LayerPolicy(8, 8),
        "block3.conv2": ac.LayerPolicy(1, 1),
        "block3.shortcut.0": ac.LayerPolicy(8, 8),
        "fc": ac.LayerPolicy(8, 8),
    }
    steps = dict.fromkeys((group.name for group in structure.groups), CHANNEL_STEP)
    policy = ac.Policy(uniform_policy(structure, 0.3, steps).pruning, layers)
    simulated, real = both_outputs(task, candidate_of(task, policy, epochs))
    same = float((simulated.argmax(1) == real.argmax(1)).mean())
    right = [float((outputs.argmax(1) == task.valid[1].numpy()).mean()) for outputs in (simulated, real)]
    print(
        f"chain on images: same class {same:.2%}, at least {SAME_CLASS:.0%}; accuracy {right[0]:.4f} simulated, {right[1]:.4f} IR"
    )
    return [f"chain: {same:.2%} same classes"] if same < SAME_CLASS else []


def regression_task() -> ac.Task:
    """Ten measurements to the progress of a disease, learned in a few seconds."""
    data = load_diabetes()
    order = np.random.default_rng(0).permutation(len(data.target))
    inputs = torch.from_numpy(20 * data.data[order]).float()
    targets = torch.from_numpy((data.target[order] - data.target.mean()) / data.target.std()).float()[:, None]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    train, valid = (inputs[:300], targets[:300]), (inputs[300:], targets[300:])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(train[0]), train[1]).backward()
        optimizer.step()
    return ac.Task(model, train=train, valid=valid, metric="mse", learning_rate=2e-3, name="diabetes")


def check_regression() -> list[str]:
    """All methods in one policy on a regression."""
    task = regression_task()
    structure = FRAMEWORK.inspect(task)
    layers = {
        "0": ac.LayerPolicy(8, 8),
        "2": ac.LayerPolicy(4, 8, 0.5),
        "4": ac.LayerPolicy(8, 4, pattern="2:4"),
        "6": ac.LayerPolicy(8, 8),
    }
    pruning = uniform_policy(structure, 0.3, dict.fromkeys((group.name for group in structure.groups), CHANNEL_STEP)).pruning
    simulated, real = both_outputs(task, candidate_of(task, ac.Policy(pruning, layers), 40))
    error = float(np.abs(simulated - real).mean() / np.ptp(simulated))
    print(f"chain on a regression: mean difference {error:.2%} of the range, at most {REGRESSION_ERROR:.0%}")
    return [f"regression: {error:.2%} of the range"] if error > REGRESSION_ERROR else []


class PlainQuantizer(nn.Module):
    """One of NNCF's trained quantizers in PyTorch's own operation, which OpenVINO converts.

    `nncf.strip` makes the same of it, but needs torchao.
    """

    def __init__(self, quantizer: Any) -> None:
        super().__init__()
        quantizer.set_levels()
        self.lowest, self.highest, scale, zero = quantizer.get_parameters_for_torch_fq()
        self.per_channel = scale.numel() > 1
        self.axis = int(np.argmax(quantizer.scale_shape)) if self.per_channel else 0
        self.scale, self.zero = scale.detach().reshape(-1), zero.detach().reshape(-1).to(torch.int32)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The value on its grid."""
        if self.per_channel:
            return torch.fake_quantize_per_channel_affine(value, self.scale, self.zero, self.axis, self.lowest, self.highest)
        return torch.fake_quantize_per_tensor_affine(value, float(self.scale), int(self.zero), self.lowest, self.highest)


def nncf_accuracy(task: ac.Task, epochs: int, seed: int) -> float:
    """Quantized and trained by NNCF's hooks, with the teacher, loop and schedule that ours has."""
    torch.manual_seed(seed)
    samples = [tuple(map(torch.from_numpy, sample)) for sample in task.calibration_split.take(SAMPLES)]
    with contextlib.redirect_stdout(io.StringIO()):
        model = nncf.quantize(copy.deepcopy(task.model), nncf.Dataset([sample[0] for sample in samples]), subset_size=SAMPLES)
    Trainer(task, model, settings(task, epochs, seed), copy.deepcopy(task.model).eval()).run(lambda _: None)
    reestimate_batch_norm(model, task)
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_parameters_for_torch_fq"):
            parent, _, last = name.rpartition(".")
            model.get_submodule(parent).add_module(last, PlainQuantizer(module))
    converted = ov.convert_model(model.eval(), example_input=samples[0][0], input=list(samples[0][0].shape))
    return evaluate(compile_for_scoring(converted, EXACT), task.splits["valid"], task.scorer)


def mean_accuracy(what: str, found: list[float]) -> float:
    """Print and return the mean over the seeds."""
    print(f"{what:34} {statistics.mean(found):.4f}   {', '.join(f'{value:.4f}' for value in found)}", flush=True)
    return statistics.mean(found)


def check_nncf(task: ac.Task, epochs: int, seeds: int) -> list[str]:
    """Accuracies beside NNCF's and the original's; what breaks a bound is returned in words."""
    structure = FRAMEWORK.inspect(task)
    names = [layer.name for layer in structure.layers]
    broken: list[str] = []

    def trained(what: str, policy: ac.Policy) -> float:
        return mean_accuracy(what, [accuracy(task, policy, epochs, seed) for seed in range(seeds)])

    original = mean_accuracy("original", [accuracy(task, ac.Policy())])
    theirs = mean_accuracy("INT8, trained by NNCF", [nncf_accuracy(task, epochs, seed) for seed in range(seeds)])
    ours = trained("INT8", uniform_policy(structure))
    broken += [f"INT8 {ours:.4f} beside NNCF's {theirs:.4f}"] if ours < theirs - NNCF_SLACK else []
    half = trained("half of the channels, INT8", uniform_policy(structure, 0.5, dict.fromkeys(names, CHANNEL_STEP)))
    broken += [f"half of the channels: {half:.4f} beside {original:.4f}"] if half < original - PRUNED_LOSS else []
    for bits in (4, 3, 2):
        policy = ac.Policy({}, dict.fromkeys(names, ac.LayerPolicy(bits, 8)))
        before = mean_accuracy(f"{bits} bits, not trained", [accuracy(task, policy)])
        after = trained(f"{bits} bits", policy)
        costs = before < original - TRAINING_GAIN
        broken += (
            [f"{bits} bits: {after:.4f} after {before:.4f}"] if after < before + (TRAINING_GAIN if costs else -NNCF_SLACK) else []
        )
        if costs:
            break
    return broken


def main(parts: list[str], epochs: int, seeds: int) -> int:
    """All checks; 1 if a bound is broken."""
    warnings.simplefilter("ignore")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    task, broken = load_task(TASK_FILE), []
    if "chain" in parts:
        broken += check_chain(task, epochs) + check_regression()
    if "nncf" in parts:
        broken += check_nncf(task, epochs, seeds)
    print(*broken, sep="\n")
    return int(bool(broken))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["chain", "nncf"])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    sys.exit(main(arguments.parts, arguments.epochs, arguments.seeds))
