"""A module as an `ov.Model` whose convolutions and matrix products carry the modules' names."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops
from openvino._offline_transformations import apply_moc_transformations
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.passes import ConstantFolding, Manager
from torch import nn

from autocompress.errors import ConversionError
from autocompress.frameworks.torch.calls import unfused
from autocompress.frameworks.torch.layers import quiet
from autocompress.frameworks.torch.vanish import Vanished
from autocompress.target.layer_names import LAYER_TAG, name_layers
from autocompress.target.precision import HEAVY_OPERATIONS

UNCHECKED = {"check_trace": False}
"""The check runs the model three times more, which took as long as all else of a conversion."""
_SCOPE = re.compile(r"__module\.(?P<module>[^/]+)/")


def convert(model: nn.Module, example: Any) -> ov.Model:
    """Convert at the example's own shapes.

    `ov.convert_model` does the same in more time, and its folding of batch norms gives every convolution a made-up name. Here
    the names are read before that and put back after it.

    Raises:
        ConversionError: OpenVINO cannot convert the model.
    """
    model.eval()
    logging.getLogger("openvino").setLevel(logging.ERROR)
    try:
        with torch.no_grad(), quiet(), unfused():
            decoder = TorchScriptPythonDecoder(model, example_input=example, trace_kwargs=UNCHECKED)
            frontend = FrontEndManager().load_by_framework("pytorch")
            converted = frontend.convert(frontend.load(decoder))
        _tag_layers(converted)
        converted.reshape(_shapes(converted, example))
        apply_moc_transformations(converted, cf=False, smart_reshape=True)
    except Exception as error:  # the decoder traces arbitrary user code
        raise ConversionError(f"OpenVINO cannot convert the model: {type(error).__name__}: {error}") from error
    name_layers(converted)
    if any(isinstance(module, Vanished) for module in model.modules()):
        _fold_constants(converted)
    return converted


def _fold_constants(model: ov.Model) -> None:
    """What is left of vanished branches becomes constants, of one value per channel where they do not vary in space."""
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Add", "Multiply"):
            continue
        for port in node.inputs():
            source = port.get_source_output().get_node()
            if source.get_type_name() == "Constant" and len(source.get_output_shape(0)) > 2:
                value = source.data
                channels = value[(slice(None), slice(None), *[slice(0, 1)] * (value.ndim - 2))]
                if value.shape != channels.shape and (value == channels).all():
                    port.replace_source_output(ops.constant(np.array(channels)).output(0))
    model.validate_nodes_and_infer_types()


def _shapes(model: ov.Model, example: Any) -> dict[Any, list[int]]:
    named = example.items() if isinstance(example, dict) else enumerate(example)
    return {model.input(name): list(tensor.shape) for name, tensor in named}


def _tag_layers(model: ov.Model) -> None:
    """Note each heavy node's module where graph transformations carry it along."""
    for node in model.get_ordered_ops():
        scope = _SCOPE.match(node.get_friendly_name())
        if node.get_type_name() in HEAVY_OPERATIONS and scope:
            node.get_rt_info()[LAYER_TAG] = scope["module"]
