"""What really ran: read from the graph that the device executes, not from the one it was given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import openvino as ov

HEAVY_TYPES = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "Gemm", "BinaryConvolution")
FUSED_TYPE = "Subgraph"
"""Consecutive small linear layers may be fused into one node, which keeps their names."""
INTEGER_TYPES = ("i8", "u8")
SCALED_SUFFIX = "/DequantizationMultiply"
"""OpenVINO names a matrix product after the scale that it pulls through it."""


@dataclass(frozen=True)
class Kernel:
    """The kernel that runs one convolution or linear layer.

    Attributes:
        layer: the layer's name in the IR.
        primitive: the device's name for it, for example "brgconv_avx512_I8".
        precision: element type that the device reports for it, for example "u8" or "f32".
    """

    layer: str
    primitive: str
    precision: str

    @property
    def is_integer(self) -> bool:
        """True for an 8-bit integer kernel."""
        return self.primitive.lower().endswith(INTEGER_TYPES)


def kernels(compiled: ov.CompiledModel, layers: Iterable[str]) -> dict[str, Kernel]:
    """The kernel of each of the layers that the device runs as a convolution or matrix product."""
    wanted = set(layers)
    found: dict[str, Kernel] = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = _text(info, "layerType")
        for name in _text(info, "originalLayersNames").split(","):
            name = name.removesuffix(SCALED_SUFFIX) if kind in HEAVY_TYPES else name
            if name in wanted and kind in (*HEAVY_TYPES, FUSED_TYPE):
                found[name] = Kernel(name, _text(info, "primitiveType"), _text(info, "runtimePrecision"))
    return found


def _text(info: ov.RTMap, key: str) -> str:
    if key not in info:
        return ""
    value = info[key]
    return str(getattr(value, "value", value))
