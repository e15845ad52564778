"""What a framework reports of a model, in words that are the same for PyTorch and Keras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with its own weight.

    Attributes:
        name: the framework's own name, for example "layer1.conv2".
        kind: the framework's class name, for example "Conv2d".
        weight_shape: shape of the weight before pruning.
        macs: multiply-accumulate operations for one sample.
        groups: of a convolution; a depthwise one has as many as channels.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    macs: int
    groups: int = 1

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels before pruning. A transposed convolution has its inputs first."""
        first, second = self.weight_shape[0], self.weight_shape[1] * self.groups
        return (first, second) if "Transpose" in self.kind else (second, first)


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together (a dependency group), proven to be removable.

    In a residual network, for example, the two convolutions whose outputs are added form one group: channel 3 of one can
    only go together with channel 3 of the other, and with input channel 3 of every layer that reads the sum.

    Attributes:
        name: the layer by which the group is addressed in a policy.
        channels: how many channels it has.
        layers: the layers that lose output channels.
        readers: (layer, count) of the layers that lose input channels, `count` of them for each channel of the group: 1, or
            height × width for a linear layer behind a flatten. A depthwise layer is both here and in `layers`; a layer that
            reads a concatenation is a reader of several groups.
        wide: (layer, count) of the layers that lose more than one output channel for each channel of the group: the channels of a
            head of an attention layer, or of a group of a grouped convolution, go together.
        removable: it can be removed whole (ratio 1): the residual branch whose inner group it is vanishes.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    readers: tuple[tuple[str, int], ...] = ()
    wide: tuple[tuple[str, int], ...] = ()
    removable: bool = False

    def removed(self, ratio: float) -> int:
        """How many channels a pruning ratio removes. One stays, unless the ratio is 1 and the group can be removed whole."""
        if ratio == 1 and self.removable:
            return self.channels
        return min(round(self.channels * ratio), self.channels - 1)

    def width(self, layer: str) -> int:
        """How many output channels a layer loses for each channel of the group."""
        return dict(self.wide).get(layer, 1)


@dataclass(frozen=True)
class FrozenGroup:
    """Channels that are left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Structure:
    """The layers and groups of a model, in the model's own order."""

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...]
    frozen: tuple[FrozenGroup, ...] = ()

    def lost_channels(self, pruning: Mapping[str, float]) -> tuple[dict[str, int], dict[str, int]]:
        """How many input and how many output channels each layer loses under the ratios of some groups.

        Args:
            pruning: group name → ratio.

        Returns:
            Layer name → input channels, and layer name → output channels; layers that lose none are left out.
        """
        inputs: dict[str, int] = {}
        outputs: dict[str, int] = {}
        for group in self.groups:
            removed = group.removed(pruning.get(group.name, 0.0))
            if removed:
                for name, count in group.readers:
                    inputs[name] = inputs.get(name, 0) + count * removed
                for name in group.layers:
                    outputs[name] = outputs.get(name, 0) + removed * group.width(name)
        return inputs, outputs

    def macs_share(self, pruning: Mapping[str, float]) -> float:
        """Multiply-accumulates under the ratios of some groups, relative to the whole model's."""
        return sum(self.macs(pruning).values()) / sum(layer.macs for layer in self.layers)

    def macs(self, pruning: Mapping[str, float]) -> dict[str, int]:
        """Layer name → multiply-accumulates for one sample under the ratios of some groups."""
        lost_inputs, lost_outputs = self.lost_channels(pruning)
        found = {}
        for layer in self.layers:
            inputs, outputs = layer.channels
            kept_inputs, kept_outputs = inputs - lost_inputs.get(layer.name, 0), outputs - lost_outputs.get(layer.name, 0)
            if layer.groups > 1:  # it loses whole groups, inputs and outputs alike
                found[layer.name] = layer.macs * kept_outputs // outputs
            else:
                found[layer.name] = layer.macs * kept_inputs * kept_outputs // (inputs * outputs)
        return found
