"""Small graphs of a wanted latency, for the benchmarks of the meter."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from autocompress.device import Target
from autocompress.target.meter import reference_latency_ms
from autocompress.target.runtime import compile_model

F32 = Target(precision="f32")


def convolutions(channels: int, side: int, layers: int, outputs: int | None = None) -> ov.Model:
    """3×3 convolutions with ReLU, in FP32; the last one has `outputs` channels."""
    generator = np.random.default_rng(0)
    parameter = ops.parameter([1, channels, side, side], np.float32)
    node = parameter
    for index in range(layers):
        last = outputs if outputs and index == layers - 1 else channels
        weight = generator.standard_normal((last, channels, 3, 3)).astype(np.float32) / 17
        node = ops.relu(ops.convolution(node, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1]))
    return ov.Model([node], [parameter])


def of_latency(wanted_ms: float, channels: int, side: int) -> ov.Model:
    """Of as many layers as it takes to come near a latency, on this machine."""
    counts = range(1, 40)
    for layers in counts:
        model = convolutions(channels, side, layers)
        found = reference_latency_ms(compile_model(model, F32), 0.2)
        if found >= 0.9 * wanted_ms:
            return model
    raise SystemExit(f"{counts[-1]} layers take less than {wanted_ms} ms here; take larger ones")
