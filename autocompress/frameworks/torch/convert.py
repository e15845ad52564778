"""A module as an `ov.Model` whose convolutions and matrix products carry the modules' names."""

from __future__ import annotations

import logging
import re
from typing import Any

import openvino as ov
import torch
from openvino._offline_transformations import apply_moc_transformations
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import nn

from autocompress.errors import ConversionError
from autocompress.frameworks.torch.prune import quiet
from autocompress.target.precision import COPY_MARK, HEAVY_OPERATIONS

LAYER_TAG = "autocompress_layer"
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
        with torch.no_grad(), quiet():
            decoder = TorchScriptPythonDecoder(model, example_input=example)
            frontend = FrontEndManager().load_by_framework("pytorch")
            converted = frontend.convert(frontend.load(decoder))
        _tag_layers(converted)
        converted.reshape(_shapes(converted, example))
        apply_moc_transformations(converted, cf=False, smart_reshape=True)
    except Exception as error:  # the decoder traces arbitrary user code
        raise ConversionError(f"OpenVINO cannot convert the model: {type(error).__name__}: {error}") from error
    _name_layers(converted)
    return converted


def _shapes(model: ov.Model, example: Any) -> dict[Any, list[int]]:
    named = example.items() if isinstance(example, dict) else enumerate(example)
    return {model.input(name): list(tensor.shape) for name, tensor in named}


def _tag_layers(model: ov.Model) -> None:
    """Note each heavy node's module where graph transformations carry it along."""
    for node in model.get_ordered_ops():
        scope = _SCOPE.match(node.get_friendly_name())
        if node.get_type_name() in HEAVY_OPERATIONS and scope:
            node.get_rt_info()[LAYER_TAG] = scope["module"]


def _name_layers(model: ov.Model) -> None:
    """Rename the tagged nodes; a module that is called again gets a mark and a number."""
    calls: dict[str, int] = {}
    for node in model.get_ordered_ops():
        info = node.get_rt_info()
        if node.get_type_name() in HEAVY_OPERATIONS and LAYER_TAG in info:
            layer = str(info[LAYER_TAG].value)
            calls[layer] = calls.get(layer, 0) + 1
            node.set_friendly_name(layer if calls[layer] == 1 else f"{layer}{COPY_MARK}{calls[layer]}")
