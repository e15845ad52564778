"""Time and score every front model of a run from outside: plain OpenVINO and NumPy, nothing of autocompress but the task's data.

    python benchmarks/check_front.py runs/demo experiments/mnist_resnet8/task.py

Prints, per model, the speed-up over the original and the test accuracy found here beside those in front.csv, and the share of
the policy's INT8 layers that run in an integer kernel. Ends with exit code 1 if a speed-up differs by more than 10 %, an
accuracy by more than 0.001, or a share is not 100 %.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov

from autocompress.task import load_task

ROUNDS, CALLS = 150, 5


def compiled(core: ov.Core, run: Path, trial: int) -> ov.CompiledModel:
    target = json.loads((run / "run.json").read_text())["fingerprint"]["target"]
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": target["threads"]}
    return core.compile_model(run / "trials" / f"{trial:04d}" / "model.xml", target["device"], hints)


def block(request: ov.InferRequest, inputs: dict[int, np.ndarray]) -> float:
    request.infer(inputs)
    start = time.perf_counter()
    for _ in range(CALLS):
        request.infer(inputs)
    return (time.perf_counter() - start) / CALLS


def speedups(models: dict[int, ov.CompiledModel], original: int) -> dict[int, float]:
    """Median over rounds of original time / model time, all models in every round."""
    requests = {trial: model.create_infer_request() for trial, model in models.items()}
    inputs = {0: np.random.default_rng(1).random(tuple(models[original].inputs[0].shape), np.float32)}
    for request in requests.values():
        request.infer(inputs)
    rounds = [{trial: block(request, inputs) for trial, request in requests.items()} for _ in range(ROUNDS)]
    return {trial: statistics.median(r[original] / r[trial] for r in rounds) for trial in models}


def accuracy(model: ov.CompiledModel, inputs: np.ndarray, targets: np.ndarray) -> float:
    request = model.create_infer_request()
    hits = (int(np.argmax(request.infer({0: inputs[i : i + 1]})[0])) == targets[i] for i in range(len(inputs)))
    return sum(hits) / len(inputs)


def int8_share(model: ov.CompiledModel, policy: dict[str, dict[str, dict[str, int]]]) -> float:
    """Of the layers with quantized weights and activations, how many run in a kernel that OpenVINO names as integer."""
    asked = {name for name, layer in policy["layers"].items() if "weights" in layer and "activations" in layer}
    integer = set()
    for node in model.get_runtime_model().get_ops():
        info = node.get_rt_info()
        names = {name.split("/")[0] for name in str(info["originalLayersNames"].value).split(",")}
        if str(info["primitiveType"].value).lower().endswith("i8"):
            integer |= names & asked
    return len(integer) / len(asked) if asked else 1.0


def main(run: Path, task_file: str) -> int:
    with (run / "front.csv").open() as file:
        rows = {int(row["trial"]): row for row in csv.DictReader(file)}
    with (run / "trials.csv").open() as file:
        original = next(int(row["trial"]) for row in csv.DictReader(file) if row["source"] == "baseline:original")
    rows = {trial: row for trial, row in rows.items() if row["source"] != "baseline:f32"}  # compiled with a hint of its own
    core = ov.Core()
    models = {trial: compiled(core, run, trial) for trial in {*rows, original}}
    found = speedups(models, original)
    inputs, targets = (np.asarray(array) for array in load_task(task_file).test)
    worst = {"speed-up": 0.0, "accuracy": 0.0, "share": 1.0}
    print("trial  speed-up here  front.csv  ratio   test here  front.csv  INT8 layers")
    for trial, row in rows.items():
        stated, score = float(row["speedup"]), accuracy(models[trial], inputs, targets)
        share = int8_share(models[trial], json.loads(row["policy"]))
        print(
            f"{trial:5}  {found[trial]:13.3f}  {stated:9.3f}  {found[trial] / stated:5.3f}   {score:9.4f}  "
            f"{float(row['accuracy_test']):9.4f}  {share:11.0%}"
        )
        worst["speed-up"] = max(worst["speed-up"], abs(found[trial] / stated - 1))
        worst["accuracy"] = max(worst["accuracy"], abs(score - float(row["accuracy_test"])))
        worst["share"] = min(worst["share"], share)
    print(f"largest differences: speed-up {worst['speed-up']:.1%}, accuracy {worst['accuracy']:.4f}")
    print(f"smallest share of INT8 layers: {worst['share']:.0%}")
    return int(worst["speed-up"] > 0.10 or worst["accuracy"] > 0.001 or worst["share"] < 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
