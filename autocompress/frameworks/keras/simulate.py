"""One simulation of low bits and zeros while training: a transformed kernel, a quantized input.

Each simulated layer stands inside a wrapper of its name. `settle` writes the transformed kernels into plain layers.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from autocompress.frameworks.keras.graph import HEAVY, copied, layers_by_name, rebuild
from autocompress.frameworks.keras.inputs import SimulatedInput
from autocompress.frameworks.keras.kernels import kernel_axes, kernel_of
from autocompress.frameworks.keras.straight import read, valued
from autocompress.frameworks.keras.thin import whole
from autocompress.frameworks.keras.weights import PACKAGE, SimulatedWeight
from autocompress.policy import FLOAT, LayerPolicy, Policy
from autocompress.target.precision import LayerGrid


@keras.saving.register_keras_serializable(PACKAGE)
class Simulated(keras.layers.Layer):
    """A layer that runs with its kernel and its input as they will be deployed.

    Attributes:
        layer: with the kernel that trains.
        weight: what becomes of the kernel; None where it stays as it is.
        input_quantizer: what becomes of the input; None where it stays as it is.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        weight: SimulatedWeight | None = None,
        input_quantizer: SimulatedInput | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**{"name": layer.name, "dtype": layer.dtype_policy, **options})
        self.layer, self.weight, self.input_quantizer = layer, weight, input_quantizer
        self.supports_masking = layer.supports_masking

    def build(self, shape: Any) -> None:
        """Build the layer."""
        if not self.layer.built:
            self.layer.build(shape)
        self.built = True

    def call(self, value: Any, training: bool = False) -> Any:
        """The layer on its quantized input with its transformed kernel."""
        if self.input_quantizer is not None:
            value = self.input_quantizer(value, training=training)
        if self.weight is None:
            return self.layer(value)
        kernel = kernel_of(self.layer)
        with valued((own, self.weight(read(kernel)) if own is kernel else read(own)) for own in self.layer.variables):
            return self.layer(value)

    def compute_output_shape(self, shape: Any) -> Any:
        """That of the layer."""
        return self.layer.compute_output_shape(shape)

    def get_config(self) -> dict[str, Any]:
        """What makes it again."""
        parts = {"layer": self.layer, "weight": self.weight, "input_quantizer": self.input_quantizer}
        serialized = {name: None if part is None else keras.saving.serialize_keras_object(part) for name, part in parts.items()}
        return {**super().get_config(), **serialized}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Simulated:
        """Make it from `get_config`."""
        parts = {name: config.pop(name) for name in ("layer", "weight", "input_quantizer")}
        made = {name: part and keras.saving.deserialize_keras_object(part) for name, part in parts.items()}
        return cls(**made, **config)


def simulate(model: keras.Model, policy: Policy, *, owned: bool = False) -> keras.Model:
    """A graph in which a policy's bits and zeros are simulated.

    Args:
        model: a plain graph.
        policy: what is simulated.
        owned: the plain graph is not used any more, so its layers are taken over. Otherwise they are copied.
    """

    def replace(name: str, layer: keras.layers.Layer) -> keras.layers.Layer | None:
        taken = layer if owned else copied(layer)
        return _simulated(taken, policy.layer(name)) if isinstance(layer, HEAVY) else taken

    return rebuild(model, replace)


def set_progress(model: keras.Model, fraction: float) -> None:
    """Tell the simulation how much of the training is done, from 0 to 1; before and after it, everything is in force."""
    for layer in simulated_layers(model).values():
        if layer.weight is not None:
            layer.weight.set_progress(kernel_of(layer.layer), fraction)


def share_binary_scales(model: keras.Model, shared: bool) -> None:
    """Give weights of one bit one scale per layer (DoReFa-Net) or per output channel (XNOR-Net)."""
    for layer in simulated_layers(model).values():
        if layer.weight is not None and layer.weight.bits == 1:
            layer.weight.shared_scale.assign(shared)


def has_unseen_inputs(model: keras.Model) -> bool:
    """True where an input's range was not observed yet."""
    return any(not quantizer.is_seen for quantizer in simulated_inputs(model).values())


def input_ranges(model: keras.Model) -> dict[str, tuple[float, float]]:
    """Layer name → lowest and highest value of its simulated input, for the inputs that have seen a batch."""
    return {name: bounds for name, quantizer in simulated_inputs(model).items() if (bounds := quantizer.bounds) is not None}


def simulated_layers(model: keras.Model) -> dict[str, Simulated]:
    """Layer name → the layer, of those that are simulated."""
    found = {name: whole(layer) for name, layer in layers_by_name(model).items()}
    return {name: layer for name, layer in found.items() if isinstance(layer, Simulated)}


def simulated_inputs(model: keras.Model) -> dict[str, SimulatedInput]:
    """Layer name → the quantizer of its input."""
    found = simulated_layers(model).items()
    return {name: layer.input_quantizer for name, layer in found if layer.input_quantizer is not None}


def settle(model: keras.Model) -> tuple[keras.Model, dict[str, LayerGrid]]:
    """A plain copy of a simulated graph with its kernels as they will be deployed, and the codes of its grids by layer name."""
    finished = _finished(model)
    found: dict[str, LayerGrid] = {}

    def replace(name: str, layer: keras.layers.Layer) -> keras.layers.Layer | None:
        if not isinstance(layer, Simulated):
            return None
        plain = copied(layer.layer)
        if layer.weight is not None:
            kernel_of(plain).assign(layer.weight(read(kernel_of(plain))))
            if layer.weight.bits is not None:
                found[name] = _grid(layer.weight, kernel_of(layer.layer))
        return plain

    return rebuild(finished, replace), found


def _finished(model: keras.Model) -> keras.Model:
    """The graph as it is after its training: itself, or a copy where a part of the simulation follows the training."""
    weights = [layer.weight for layer in simulated_layers(model).values() if layer.weight is not None]
    if not any(weight.follows_training for weight in weights):
        return model
    finished = rebuild(model, lambda name, layer: None)
    set_progress(finished, 1.0)
    return finished


def _simulated(layer: keras.layers.Layer, policy: LayerPolicy) -> keras.layers.Layer:
    weight = quantizer = None
    if policy.weights != FLOAT or policy.sparsity:
        weight = SimulatedWeight(policy, kernel_axes(layer))  # named by Keras: PyTorch's backend finds variables by unique paths
        weight.start(ops.convert_to_numpy(kernel_of(layer)))
    if isinstance(policy.activations, int):
        quantizer = SimulatedInput(policy.activations)
    return layer if weight is None and quantizer is None else Simulated(layer, weight, quantizer)


def _grid(weight: SimulatedWeight, kernel: Any) -> LayerGrid:
    codes, bits = weight.codes(kernel), weight.bits
    assert bits is not None  # layers without a grid are not asked
    return LayerGrid(codes.swapaxes(0, 1), bits, axis=1) if weight.axes.is_transposed else LayerGrid(codes, bits)
