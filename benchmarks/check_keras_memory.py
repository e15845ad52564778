"""Does the process of a Keras search stay small, while its worker processes grow and are replaced?

    python benchmarks/check_keras_memory.py --trials 50 --out runs/memory

A small residual network on scikit-learn's digits; every candidate is fine-tuned in a traced graph, as in real trainings. Prints
the resident memory at the first trial, at every tenth and after the last; exit code 1 if it grew by 100 MB or more. Measuring the
front again at the end compiles all its models at once; what that takes, once, is printed beside it.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

import autocompress as ac
from autocompress.frameworks.keras import process
from autocompress.frameworks.keras.worker import resident_bytes
from autocompress.record import Stage, TrialRecord
from autocompress.watch import Watcher

MOST_GROWN_MB = 100
MODEL = "AUTOCOMPRESS_CHECK_MODEL"
"""Environment variable with the path of the trained original."""


def data() -> dict[str, tuple[Any, Any]]:
    bunch = load_digits()
    images, classes = bunch.images[..., None].astype("float32") / 16, bunch.target
    order = np.random.default_rng(0).permutation(len(classes))
    return {"train": (images[order[:1200]], classes[order[:1200]]), "valid": (images[order[1200:]], classes[order[1200:]])}


def original() -> keras.Model:
    keras.utils.set_random_seed(0)
    value = images = keras.Input((8, 8, 1))
    for index, (width, strides) in enumerate(((16, 1), (16, 1), (32, 2), (32, 1))):
        name = f"block{index + 1}"
        inner = layers.Conv2D(width, 3, strides, padding="same", use_bias=False, name=f"{name}_conv1")(value)
        inner = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(inner))
        inner = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv2")(inner)
        inner = layers.BatchNormalization(momentum=0.9)(inner)
        if value.shape[-1] != width:
            value = layers.Conv2D(width, 1, strides, name=f"{name}_shortcut")(value)
        value = layers.ReLU()(layers.Add()([inner, value]))
    model = keras.Model(images, layers.Dense(10, name="fc")(layers.GlobalAveragePooling2D()(value)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-2), loss, jit_compile=False)
    model.fit(*data()["train"], 64, 6, verbose=0)
    return model


def make_task() -> ac.Task:
    return ac.Task(keras.saving.load_model(os.environ[MODEL]), **data(), epochs=2, learning_rate=3e-3, name="memory")


class Scales(Watcher):
    """Weighs this process when a trial begins."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []

    def stage(self, record: TrialRecord, stage: Stage) -> None:
        """Weigh at the first stage of a new trial."""
        if stage == Stage.COMPRESS and record.number == len(self.megabytes):
            self.weigh()

    def final(self, records: Sequence[TrialRecord]) -> None:
        """Weigh before the front is measured again."""
        self.weigh()

    def weigh(self) -> None:
        """Note this process's resident memory."""
        gc.collect()
        self.megabytes.append(resident_bytes() / 1e6)
        if len(self.megabytes) % 10 == 1:
            print(f"trial {len(self.megabytes) - 1}: {self.megabytes[-1]:.0f} MB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("runs/memory"))
    parser.add_argument("--in-process", action="store_true", help="for comparison, without workers")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    os.environ[MODEL] = str(options.out.with_suffix(".keras").resolve())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    original().save(os.environ[MODEL])
    workers, scales = [], Scales()
    start = process.WorkerProcess.__init__

    def counted(self: Any, *arguments: Any) -> None:
        workers.append(self)
        start(self, *arguments)

    process.WorkerProcess.__init__ = counted
    ac.search(
        f"{__file__}:make_task",
        max_trials=options.trials,
        out=options.out,
        watcher=scales,
        isolate=not options.in_process,
        fine_tuning={"mode": "each"},
    )
    first, *_, last = scales.megabytes
    grown, largest = last - first, max((one.resident_bytes for one in workers), default=0) / 1e6
    print(f"{len(scales.megabytes) - 1} trials: the search's process grew by {grown:.0f} MB (allowed: {MOST_GROWN_MB})")
    print(f"{len(workers)} workers, the largest with {largest:.0f} MB")
    scales.weigh()
    print(f"Measuring the front again and the report: {scales.megabytes[-1] - last:.0f} MB")
    return int(grown >= MOST_GROWN_MB)


if __name__ == "__main__":
    sys.exit(main())
