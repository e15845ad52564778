"""The ResNet-8 of `mnist_resnet8` in Keras, trained once on the same distorted images and kept in a cache."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import keras_resnet
import numpy as np

import autocompress as ac

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share
import distorted_mnist
from originals import CACHE

WIDTH = 32
EPOCHS, LEARNING_RATE = 10, 0.1


class ChannelsLast:
    """The distorted training batches as NumPy arrays with the channels last."""

    def __init__(self, images: Any, labels: Any, seed: int) -> None:
        self.batches = distorted_mnist.DistortedBatches(images, labels, seed)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (channels_last(*batch) for batch in self.batches)


def channels_last(images: Any, labels: Any) -> tuple[Any, Any]:
    """Tensors (N, 1, 28, 28) as arrays (N, 28, 28, 1)."""
    return np.moveaxis(images.numpy(), 1, -1), labels.numpy()


def original(images: Any, labels: Any) -> keras.Model:
    """The trained ResNet-8, compiled."""
    code = "".join(map(inspect.getsource, (keras_resnet, distorted_mnist, original)))
    path = CACHE / f"mnist_keras_resnet8-{hashlib.sha256(code.encode()).hexdigest()[:16]}.keras"
    if not path.is_file():
        print(f"Training the original once ({EPOCHS} epochs); it is kept in {CACHE.name}/", flush=True)
        keras.utils.set_random_seed(0)
        model, batches = keras_resnet.resnet8(WIDTH), ChannelsLast(images, labels, seed=1)
        warm_up = len(batches)
        rate = keras.optimizers.schedules.CosineDecay(
            LEARNING_RATE / 25, (EPOCHS - 1) * len(batches), warmup_target=LEARNING_RATE, warmup_steps=warm_up
        )
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-3)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
        passes = (batch for _ in range(EPOCHS) for batch in batches)
        model.fit(passes, epochs=EPOCHS, steps_per_epoch=len(batches), shuffle=False, verbose=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    loaded: keras.Model = keras.saving.load_model(path)
    return loaded


def make_task() -> ac.Task:
    """The task of this experiment. Loss and kind of optimizer are those that the model was compiled with."""
    parts = distorted_mnist.splits()
    return ac.Task(
        original(*parts["train"]),
        train=ChannelsLast(*parts["train"], seed=2),
        valid=channels_last(*distorted_mnist.fixed_distortions(*parts["valid"], seed=3)),
        test=channels_last(*distorted_mnist.fixed_distortions(*parts["test"], seed=4)),
        metric="accuracy",
        preprocessing={**distorted_mnist.PREPROCESSING, "layout": "NHWC", "shape": [28, 28, 1]},
        learning_rate=0.03,
        epochs=3,
        name="Keras ResNet-8 on distorted MNIST",
    )
