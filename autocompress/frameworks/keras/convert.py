"""A graph as an `ov.Model` whose convolutions and matrix products carry the layers' names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_moc_transformations
from openvino.frontend import FrontEndManager
from openvino.frontend.tensorflow.graph_iterator import GraphIteratorTFGraph
from openvino.passes import ConstantFolding, Manager

from autocompress.data import Inputs
from autocompress.errors import ConversionError
from autocompress.frameworks.keras.graph import heavy_layers
from autocompress.frameworks.keras.kernels import kernel_of
from autocompress.frameworks.keras.nodes import as_argument
from autocompress.frameworks.keras.recurrent import MARKER, marked, marker_shape, put_sequences, sequence_layers, unrolled
from autocompress.target.layer_names import LAYER_TAG, name_layers
from autocompress.target.precision import HEAVY_OPERATIONS

KERNEL = "autocompress_kernel_"
"""Begins the name of an input that is a kernel."""
MOVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Convert")
"""What may stand between a kernel and the layer whose weight it is."""


def convert(model: keras.Model, example: Inputs) -> ov.Model:
    """Convert at the example's own shapes.

    OpenVINO gives convolutions made-up names while it moves the channels to the front, and once more while it folds batch norms
    into them. So the kernels are inputs of the graph at first, which keep their names; the layers that read them are tagged,
    and then the kernels become constants.

    Args:
        model: a graph without simulation, on the TensorFlow backend.
        example: inputs.

    Raises:
        ConversionError: OpenVINO cannot convert the model.
    """
    logging.getLogger("openvino").setLevel(logging.ERROR)
    try:
        layers = heavy_layers(model)
        recurrent = sequence_layers(model)
        with unrolled(model):
            converted = _translated(model, example, [kernel_of(layer) for layer in layers.values()], recurrent)
        put_sequences(converted, recurrent)
        _tag_layers(converted, list(layers))
        _fill_in_kernels(converted, [keras.ops.convert_to_numpy(kernel_of(layer)) for layer in layers.values()])
        apply_moc_transformations(converted, cf=False, smart_reshape=True)
    except Exception as error:  # a user's layers can do anything
        raise ConversionError(f"OpenVINO cannot convert the model: {type(error).__name__}: {error}") from error
    name_layers(converted)
    return converted


def _translated(model: keras.Model, example: Inputs, kernels: Sequence[Any], recurrent: Sequence[keras.layers.Layer]) -> ov.Model:
    """OpenVINO's operations for those of TensorFlow, one by one, with kernels and markers behind the model's own inputs."""
    import tensorflow as tf

    named = isinstance(example, dict)
    shapes = [(example[tensor.name] if named else example[i]).shape for i, tensor in enumerate(model.inputs)]  # type: ignore[index]
    signature = [tf.TensorSpec(shape, tensor.dtype, tensor.name) for shape, tensor in zip(shapes, model.inputs, strict=True)]
    signature += [tf.TensorSpec(kernel.shape, kernel.dtype, f"{KERNEL}{index}") for index, kernel in enumerate(kernels)]
    signature += [tf.TensorSpec(marker_shape(layer), "float32", f"{MARKER}{i}") for i, layer in enumerate(recurrent)]

    def run(*tensors: Any) -> Any:
        inputs, rest = tensors[: len(shapes)], tensors[len(shapes) :]
        values = dict(zip((tensor.name for tensor in model.inputs), inputs, strict=True)) if named else inputs
        states = list(zip(kernels, rest[: len(kernels)], strict=True))
        with keras.StatelessScope(state_mapping=states), marked(recurrent, rest[len(kernels) :]):
            return keras.tree.flatten(model(as_argument(values), training=False))

    function = tf.function(run, autograph=False).get_concrete_function(*signature)
    names = {given.name: spec.name for given, spec in zip(function.inputs, signature, strict=False)}
    graph = GraphIteratorTFGraph(function.graph, False, False, names)  # it has to live while the frontend reads it
    frontend = FrontEndManager().load_by_framework("tf")
    return _with_outputs(frontend.convert(frontend.load(graph)), [tensor.name for tensor in function.outputs])


def _with_outputs(model: ov.Model, names: list[str]) -> ov.Model:
    """A model with these outputs, in order. The frontend adds what nobody reads, as what is left of a removed branch."""
    results = {name: result for result in model.get_results() for name in result.input_value(0).get_names()}
    return ov.Model([results[name] for name in names], model.get_parameters(), model.get_friendly_name())


def _tag_layers(model: ov.Model, names: list[str]) -> None:
    """Note each heavy node's layer where graph transformations carry it along."""
    for node in model.get_ordered_ops():
        kernel = _kernel_behind(node) if node.get_type_name() in HEAVY_OPERATIONS else None
        if kernel is not None:
            node.get_rt_info()[LAYER_TAG] = names[kernel]


def _kernel_behind(node: ov.Node) -> int | None:
    """The index of the kernel that is a node's weight."""
    for port in node.input_values():
        source = port.get_node()
        while source.get_type_name() in MOVING:
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Parameter" and source.output(0).get_any_name().startswith(KERNEL):
            return _index_of(source)
    return None


def _fill_in_kernels(model: ov.Model, kernels: Sequence[Any]) -> None:
    """Constants in place of the inputs that are kernels."""
    for parameter in model.get_parameters():
        if parameter.output(0).get_any_name().startswith(KERNEL):
            constant = ops.constant(np.array(kernels[_index_of(parameter)]))
            for consumer in parameter.output(0).get_target_inputs():
                consumer.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)


def _index_of(parameter: ov.Node) -> int:
    return int(parameter.output(0).get_any_name().removeprefix(KERNEL))
