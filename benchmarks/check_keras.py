"""The Keras engine beside a plain `fit`, its own simulation, and the PyTorch engine.

    python benchmarks/check_keras.py [steps] [mixed] [alike] [--pairs 12] [--seeds 3] [--epochs 3]

steps: what a training step with simulated bits costs beside a plain one (8 bits everywhere, batch 64, ResNet-8 and MobileNetV2),
and a step of a shared training, in which every step has another policy.
mixed: 30 % of the channels, 8, 4 and 2 bits, half of the weights zero in one layer, 2:4 in another, one binary layer, trained and
exported: on how many validation images the IR gives the simulation's class, and which layers run in integer or binary kernels.
alike: the trained ResNet-8 of experiments/mnist_resnet8 and its weights in Keras; both are compressed by eight policies, trained
on the same data with three seeds and deployed. Means of the IR's validation accuracies, and latencies of the pairs, interleaved.
Results are kept in `runs/check_keras/`, so that it can be cut off and started again.

Ends with exit code 1 if a bound is broken: a step of 1.6 plain ones; 97 % same classes and no quantized layer in floating
point; mean accuracies 0.7 points and latencies 5 % apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import openvino as ov
from torch import nn

import autocompress as ac
from autocompress.data import to_numpy
from autocompress.frameworks.base import Candidate, Framework, TuneSettings
from autocompress.frameworks.keras.finetune import Trainer, teacher_of
from autocompress.frameworks.keras.framework import KerasFramework
from autocompress.frameworks.keras.fused import fused_norms
from autocompress.frameworks.keras.reestimate import calibrate_ranges
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.space import uniform_policy
from autocompress.target import precision
from autocompress.target.evaluate import evaluate, predict
from autocompress.target.executed import kernels
from autocompress.target.meter import measure
from autocompress.target.runtime import compile_for_scoring, compile_model
from autocompress.task import load_task

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments/mnist_keras_resnet8"))

import distorted_mnist
import keras_resnet
from keras_originals import ChannelsLast, channels_last

ROOT = Path(__file__).resolve().parents[1]
WIDTH, BATCH, WARM_UP = 32, 64, 6
SAMPLES, CHANNEL_STEP = 100, 8
EXACT, DEVICE = ac.Target(precision="f32"), ac.Target()
Step = Callable[[], object]
STEP_BOUND, SAME_CLASS, ACCURACY_BOUND, LATENCY_BOUND = 1.6, 0.97, 0.007, 0.05


def step_models() -> dict[str, Callable[[], keras.Model]]:
    """Untrained networks of 28×28 and 32×32 images."""
    mobilenet = keras.applications.MobileNetV2
    return {
        "resnet8": lambda: keras_resnet.resnet8(WIDTH),
        "mobilenet_v2": lambda: mobilenet(input_shape=(32, 32, 3), weights=None, classes=10, classifier_activation=None),
    }


def fresh(make: Callable[[], keras.Model]) -> keras.Model:
    """A compiled model."""
    keras.utils.set_random_seed(0)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True, weight_decay=5e-3), loss, jit_compile=False)
    return model


def quantized(task: ac.Task) -> keras.Model:
    """What the product's own loop hands to `fit`, every layer in 8 bits."""
    framework = KerasFramework()
    policy = ac.Policy({}, {layer.name: ac.LayerPolicy(8, 8) for layer in framework.inspect(task).layers})
    candidate = framework.compress(task, policy, "l2")
    calibrate_ranges(task, candidate.model)  # or inputs would pass as they are
    settings = TuneSettings(epochs=10**6, learning_rate=1e-3, distillation=0.0)
    return Trainer(task, candidate.model, settings, teacher_of(framework._graph(task))).student


def elastic_step(task: ac.Task, data: tuple[Any, Any]) -> Step:
    """A step of a shared training: random channels, every layer in 8 bits."""
    framework = KerasFramework()
    structure, generator = framework.inspect(task), np.random.default_rng(0)
    layers = {layer.name: ac.LayerPolicy(8, 8) for layer in structure.layers}
    training = framework.share(task, "l2", TuneSettings(epochs=1, learning_rate=1e-3, distillation=0.0))
    training.begin(10**6)
    student = training.trainer.student

    def step() -> None:
        ratios = {group.name: float(generator.choice([0, 0.25, 0.5, 0.75])) for group in structure.groups}
        training.elastic.obey(ac.Policy(ratios, layers), thin=True)
        trained_on(student, data)

    return step


def trained_on(student: keras.Model, data: tuple[Any, Any]) -> None:
    """A step as it is within the product's own loop."""
    with fused_norms(student):
        student.train_on_batch(*data)


def check_steps(pairs: int) -> list[str]:
    """Steps of all kinds in turns; the ratio of their CPU times to a plain one's."""
    broken = []
    for name, make in step_models().items():
        model, generator = fresh(make), np.random.default_rng(0)
        images = generator.standard_normal((BATCH, *model.input_shape[1:])).astype(np.float32)
        data = images, generator.integers(0, 10, BATCH)
        low, shared = (ac.Task(fresh(make), train=data, valid=data, batch_size=BATCH, name="noise") for _ in range(2))
        plain = partial(model.train_on_batch, *data)
        student = quantized(low)
        steps: dict[str, Step] = {"quantized": partial(trained_on, student, data), "shared": elastic_step(shared, data)}
        for step in (plain, *steps.values()):
            for _ in range(WARM_UP):
                step()
        for kind, step in steps.items():
            ratio = statistics.median(_step_seconds(step) / _step_seconds(plain) for _ in range(pairs))
            print(f"{name:14} a {kind} step takes {ratio:.2f} plain ones, at most {STEP_BOUND}", flush=True)
            broken += [f"{name}: a {kind} step takes {ratio:.2f}"] if ratio > STEP_BOUND else []
    return broken


def _step_seconds(step: Step) -> float:
    """CPU seconds of this process: other processes do not count."""
    start = time.process_time()
    step()
    return time.process_time() - start


def deployed(framework: Framework, task: ac.Task, candidate: Candidate) -> ov.Model:
    """The IR of a trained candidate."""
    samples = task.calibration_split.take(SAMPLES)
    return precision.place_precision(framework.to_openvino(task, candidate, 1), candidate.policy, samples, correct_bias=False)


def trained(framework: Framework, task: ac.Task, policy: ac.Policy, epochs: int, seed: int = 0) -> Candidate:
    """A candidate after its fine-tuning."""
    candidate = framework.compress(task, policy, "l2")
    settings = TuneSettings(epochs, task.learning_rate, task.distillation, seed)
    framework.fine_tune(task, candidate, settings, lambda _: None)
    return candidate


def check_mixed(epochs: int) -> list[str]:
    """All methods in one policy: the IR beside the simulation."""
    task, framework = load_task(ROOT / "experiments/mnist_keras_resnet8/task.py"), KerasFramework()
    structure = framework.inspect(task)
    layers = {layer.name: ac.LayerPolicy(8, 8) for layer in structure.layers} | {
        "block1_conv1": ac.LayerPolicy(4, 8),
        "block1_conv2": ac.LayerPolicy(2, 8),
        "block2_conv1": ac.LayerPolicy(8, 8, 0.5),
        "block2_conv2": ac.LayerPolicy(4, 8, pattern="2:4"),
        "block3_conv2": ac.LayerPolicy(1, 1),
    }
    steps = dict.fromkeys((group.name for group in structure.groups), CHANNEL_STEP)
    policy = ac.Policy(uniform_policy(structure, 0.3, steps).pruning, layers)
    candidate = trained(framework, task, policy, epochs)
    images, labels = task.valid
    simulated = np.concatenate([candidate.model(images[i : i + 500], training=False) for i in range(0, len(images), 500)])
    model = deployed(framework, task, candidate)
    singles = ((to_numpy(images[i : i + 1]),) for i in range(len(images)))
    real = predict(compile_for_scoring(model, EXACT), ((single, 1) for single in singles))
    same = float((simulated.argmax(1) == real.argmax(1)).mean())
    right = [float((outputs.argmax(1) == labels).mean()) for outputs in (simulated, real)]
    ran = kernels(compile_model(model, DEVICE), layers)
    floats = sorted(name for name in layers if name not in ran or not ran[name].is_low)
    print(f"mixed: same class {same:.2%}, at least {SAME_CLASS:.0%}; accuracy {right[0]:.4f} simulated, {right[1]:.4f} IR")
    print(f"mixed: {len(layers) - len(floats)} of {len(layers)} quantized layers in integer or binary kernels", flush=True)
    broken = [f"mixed: {same:.2%} same classes"] if same < SAME_CLASS else []
    return broken + [f"mixed: {name} runs in floating point" for name in floats]


def keras_name(name: str) -> str:
    """PyTorch's name of a layer or group as the Keras network has it."""
    return name.removesuffix(".0").replace(".", "_")


def transferred(model: nn.Module) -> keras.Model:
    """The network in Keras with the weights of one in PyTorch."""
    made, weights = keras_resnet.resnet8(WIDTH), {name: value.numpy() for name, value in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            made.get_layer(keras_name(name)).set_weights([weights[f"{name}.weight"].transpose(2, 3, 1, 0)])
        elif isinstance(module, nn.BatchNorm2d):
            conv = name.replace("bn", "conv") if "." in name else "stem"
            conv = conv[:-1] + "0" if conv.endswith("shortcut.1") else conv
            kinds = ("weight", "bias", "running_mean", "running_var")
            made.get_layer(f"{keras_name(conv)}_bn").set_weights([weights[f"{name}.{kind}"] for kind in kinds])
        elif isinstance(module, nn.Linear):
            made.get_layer(keras_name(name)).set_weights([weights[f"{name}.weight"].T, weights[f"{name}.bias"]])
    return made


class Pair:
    """The same task in both frameworks."""

    def __init__(self) -> None:
        self.torch = load_task(ROOT / "experiments/mnist_resnet8/task.py")
        self.keras = ac.Task(
            transferred(self.torch.model),
            train=ChannelsLast(distorted_mnist.DistortedBatches(*distorted_mnist.splits()["train"], seed=2)),
            valid=channels_last(*self.torch.valid),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metric="accuracy",
            name="the same in Keras",
        )
        self.frameworks = {"torch": (TorchFramework(), self.torch), "keras": (KerasFramework(), self.keras)}

    def require_equal_outputs(self) -> None:
        """The transfer is right, or nothing here means anything."""
        images = self.torch.valid[0][:50]
        theirs = self.torch.model.eval()(images).detach().numpy()
        ours = np.asarray(self.keras.model(np.moveaxis(images.numpy(), 1, -1), training=False))
        assert np.abs(theirs - ours).max() < 1e-4 * np.ptp(theirs), "the weights were not transferred rightly"

    def policies(self) -> dict[str, ac.Policy]:
        """Eight, by name, with PyTorch's names of layers and groups."""
        structure = self.frameworks["torch"][0].inspect(self.torch)
        names, steps = [layer.name for layer in structure.layers], {group.name: CHANNEL_STEP for group in structure.groups}

        def bits(weights: Any, activations: Any = 8) -> dict[str, ac.LayerPolicy]:
            return dict.fromkeys(names, ac.LayerPolicy(weights, activations))

        def pruned(ratio: float) -> dict[str, float]:
            return dict(uniform_policy(structure, ratio, steps).pruning)

        last = structure.groups[-1].name
        sparse = dict.fromkeys(names[1:-1], ac.LayerPolicy(8, 8, 0.5))
        return {
            "8 bits": ac.Policy({}, bits(8)),
            "4 bits": ac.Policy({}, bits(4)),
            "2 bits": ac.Policy({}, bits(2)),
            "25 % fewer channels": ac.Policy(pruned(0.25), bits(8)),
            "50 % fewer channels": ac.Policy(pruned(0.5), bits(8)),
            "75 % fewer channels": ac.Policy(pruned(0.75), bits(8)),
            "half of the zeros, mixed bits": ac.Policy({}, bits(8) | sparse | {names[1]: ac.LayerPolicy(4, 8)}),
            "last group 75 %, 4 bits": ac.Policy({last: 0.75}, bits(4)),
        }


def in_keras(policy: ac.Policy) -> ac.Policy:
    """A policy with Keras' names."""
    pruning = {keras_name(name): ratio for name, ratio in policy.pruning.items()}
    return ac.Policy(pruning, {keras_name(name): layer for name, layer in policy.layers.items()})


def check_alike(seeds: int, epochs: int) -> list[str]:
    """Both engines beside each other; every result is kept."""
    path = ROOT / "runs/check_keras/alike.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    pair = Pair()
    pair.require_equal_outputs()
    for seed in range(seeds):
        for name, policy in pair.policies().items():
            key = f"{name}, seed {seed}, {epochs} epochs"
            if key not in known:
                known[key] = _both(pair, policy, epochs, seed, timed=seed == 0)
                path.write_text(json.dumps(known, indent=1))
            print(f"  {key:50} {known[key]}", flush=True)
    found = [known[f"{name}, seed {seed}, {epochs} epochs"] for name in pair.policies() for seed in range(seeds)]
    means = [statistics.mean(row[kind] for row in found) for kind in ("torch", "keras")]
    ratios = [row["latency_ratio"] for row in found if "latency_ratio" in row]
    print(f"alike: mean accuracy {means[0]:.4f} PyTorch, {means[1]:.4f} Keras, at most {ACCURACY_BOUND:.1%} apart")
    print(f"alike: latency of Keras over PyTorch {min(ratios):.3f} to {max(ratios):.3f}, at most {LATENCY_BOUND:.0%} from 1")
    broken = [f"alike: accuracies {means[0]:.4f} and {means[1]:.4f}"] if abs(means[0] - means[1]) > ACCURACY_BOUND else []
    return broken + [f"alike: latency ratio {ratio:.3f}" for ratio in ratios if abs(ratio - 1) > LATENCY_BOUND]


def _both(pair: Pair, policy: ac.Policy, epochs: int, seed: int, *, timed: bool) -> dict[str, float]:
    """Accuracies of the two IRs, and the ratio of their latencies (Keras over PyTorch)."""
    found: dict[str, float] = {}
    models = {}
    for kind, (framework, task) in pair.frameworks.items():
        candidate = trained(framework, task, policy if kind == "torch" else in_keras(policy), epochs, seed)
        models[kind] = deployed(framework, task, candidate)
        found[kind] = evaluate(compile_for_scoring(models[kind], EXACT), task.splits["valid"], task.scorer)
    if timed:
        compiled = {kind: compile_model(model, DEVICE) for kind, model in models.items()}
        found["latency_ratio"] = measure([compiled["keras"]], compiled["torch"], reference_ms=1.0)[0].ms
    return found


def main(parts: list[str], pairs: int, seeds: int, epochs: int) -> int:
    """All checks; 1 if a bound is broken."""
    broken: list[str] = []
    if "steps" in parts:
        broken += check_steps(pairs)
    if "mixed" in parts:
        broken += check_mixed(epochs)
    if "alike" in parts:
        broken += check_alike(seeds, epochs)
    print(*broken, sep="\n")
    return int(bool(broken))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["steps", "mixed", "alike"])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    sys.exit(main(arguments.parts, arguments.pairs, arguments.seeds, arguments.epochs))
