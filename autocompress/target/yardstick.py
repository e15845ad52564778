"""A small fixed model against which a bundle's latency is promised.

Milliseconds drift with the machine's load and clock. How many times longer a model takes than this one, measured in the same
moments, does not; so a bundle can be verified without the original model beside it.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from autocompress.device import Target
from autocompress.target.runtime import compile_model

CHANNELS, SIDE, LAYERS = 32, 28, 3


def yardstick(target: Target) -> ov.CompiledModel:
    """Three 3×3 convolutions of 32 channels on 28×28, in FP32, on the target's device and threads."""
    weight = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 17
    parameter = ops.parameter([1, CHANNELS, SIDE, SIDE], np.float32)
    node = parameter
    for _ in range(LAYERS):
        node = ops.relu(ops.convolution(node, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1]))
    return compile_model(ov.Model([node], [parameter], "yardstick"), target.model_copy(update={"precision": "f32"}))
