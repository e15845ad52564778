"""Names of layers, carried by their nodes through graph transformations that rename them."""

from __future__ import annotations

import openvino as ov

from autocompress.target.precision import COPY_MARK, HEAVY_OPERATIONS

LAYER_TAG = "autocompress_layer"


def name_layers(model: ov.Model) -> None:
    """Rename the nodes that are tagged with a layer; one that is called again gets a mark and a number."""
    calls: dict[str, int] = {}
    for node in model.get_ordered_ops():
        info = node.get_rt_info()
        if node.get_type_name() in HEAVY_OPERATIONS and LAYER_TAG in info:
            layer = str(info[LAYER_TAG].value)
            calls[layer] = calls.get(layer, 0) + 1
            node.set_friendly_name(layer if calls[layer] == 1 else f"{layer}{COPY_MARK}{calls[layer]}")
