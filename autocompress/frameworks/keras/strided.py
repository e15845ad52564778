"""Strided convolutions of one pixel, computed on the pixels that they look at, while a model is trained.

oneDNN 3, with which TensorFlow and PyTorch compute on CPUs, writes past its workspace in the gradient of such a convolution's
kernel where it has fewer input channels than a block, 16 with AVX-512 (uxlfoundation/oneDNN, issue 6035). The shortcut of a
pruned ResNet is that: at 64 × 64 the process dies. Without the stride there is no such workspace, and the outputs are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras import ops

from autocompress.frameworks.keras.calls import calls_replaced

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def subsampled(*models: keras.Model) -> AbstractContextManager[None]:
    """Within it, such convolutions of some models take their pixels first. A user's own kinds of them stay as they are."""
    layers = [layer for model in models for layer in model._flatten_layers() if type(layer) in CONVOLUTIONS]
    return calls_replaced([layer for layer in layers if max(layer.kernel_size) == 1 < max(layer.strides)], _subsampling)


def _subsampling(layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    strides = layer.strides

    def called(inputs: Any) -> Any:  # by the name that Keras gives it, as a caller may
        taken = ops.average_pool(inputs, 1, strides, "valid", layer.data_format)  # of one pixel each
        object.__setattr__(layer, "strides", (1,) * len(strides))
        try:
            return original(taken)
        finally:
            object.__setattr__(layer, "strides", strides)

    return called
