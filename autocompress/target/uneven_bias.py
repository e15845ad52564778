"""A matrix product in INT8 whose bias is missing or everywhere equal, kept from returning wrong numbers.

With one thread OpenVINO 2026.4 reads such a bias as one number and the steps of the output channels as many: what follows in INT8
is garbage. A bias of which one number differs by next to nothing is read as it should be.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops

NEXT_TO_NOTHING = np.float32(1e-30)
RELATIVELY = np.float32(1e-6)


def make_bias_uneven(node: ov.Node) -> None:
    """Add a bias to a matrix product that has none, or change one number of a bias that is everywhere equal, in place."""
    channels = node.get_output_partial_shape(0)[-1]
    if node.get_type_name() != "MatMul" or channels.is_dynamic or channels.get_length() == 1:
        return
    consumers = list(node.output(0).get_target_inputs())
    follower = consumers[0].get_node() if len(consumers) == 1 else None
    bias = None if follower is None or follower.get_type_name() != "Add" else _constant_of(follower)
    if bias is None:
        uneven = np.zeros(channels.get_length(), np.float32)
        uneven[0] = NEXT_TO_NOTHING
        shifted = ops.add(node, ops.constant(uneven))
        for consumer in consumers:
            consumer.replace_source_output(shifted.output(0))
    elif np.ptp(bias.get_node().data) == 0:
        value = np.float32(bias.get_node().data.flat[0])
        uneven = np.full(channels.get_length(), value)
        uneven[0] = value * (1 + RELATIVELY) if value else NEXT_TO_NOTHING
        bias.replace(ops.constant(uneven).output(0))


def _constant_of(add: ov.Node) -> ov.Output | None:
    """The constant that an addition adds."""
    values = [value for value in add.input_values() if value.get_node().get_type_name() == "Constant"]
    return values[0] if values else None
