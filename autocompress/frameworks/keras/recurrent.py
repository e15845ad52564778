"""Recurrent layers in a graph without loops: OpenVINO cannot read the lists of tensors of TensorFlow's loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras


@contextmanager
def unrolled(model: keras.Model) -> Iterator[None]:
    """Within it, recurrent layers are traced step by step, for sequences whose length is known then."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN)]
    before = [layer.unroll for layer in layers]
    try:
        for layer in layers:
            layer.unroll = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.unroll = was
