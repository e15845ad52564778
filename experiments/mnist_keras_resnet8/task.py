"""The ResNet-8 of `mnist_resnet8` in Keras, trained once on the same distorted images and kept in a cache."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import keras_resnet

import autocompress as ac

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share
import distorted_mnist
from keras_originals import CLASSES, Batches, ChannelsLast, channels_last, cosine, trained_once

WIDTH = 32
EPOCHS, LEARNING_RATE = 10, 0.1


def original(batches: Batches) -> keras.Model:
    """The trained ResNet-8, compiled."""
    keras.utils.set_random_seed(0)
    rate = cosine(LEARNING_RATE, EPOCHS, batches)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-3)
    model = keras_resnet.resnet8(WIDTH)
    return trained_once("mnist_keras_resnet8", model, batches, optimizer, EPOCHS, keras_resnet, distorted_mnist)


def make_task() -> ac.Task:
    """The task of this experiment. Since it names its loss, candidates get the optimizer that PyTorch's have."""
    parts = distorted_mnist.splits()
    return ac.Task(
        original(ChannelsLast(distorted_mnist.DistortedBatches(*parts["train"], seed=1))),
        train=ChannelsLast(distorted_mnist.DistortedBatches(*parts["train"], seed=2)),
        valid=channels_last(*distorted_mnist.fixed_distortions(*parts["valid"], seed=3)),
        test=channels_last(*distorted_mnist.fixed_distortions(*parts["test"], seed=4)),
        loss=CLASSES,
        metric="accuracy",
        preprocessing={**distorted_mnist.PREPROCESSING, "layout": "NHWC", "shape": [28, 28, 1]},
        epochs=3,
        name="Keras ResNet-8 on distorted MNIST",
    )
