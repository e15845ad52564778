"""What a framework reports of a model, in words that are the same for PyTorch and Keras."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with its own weight.

    Attributes:
        name: the framework's own name, for example "layer1.conv2".
        kind: the framework's class name, for example "Conv2d".
        weight_shape: shape of the weight before pruning.
        macs: multiply-accumulate operations for one sample.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    macs: int


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together (a dependency group), proven to be removable.

    In a residual network, for example, the two convolutions whose outputs are added form one group: channel 3 of one can
    only go together with channel 3 of the other, and with input channel 3 of every layer that reads the sum.

    Attributes:
        name: the layer by which the group is addressed in a policy.
        channels: how many channels it has.
        layers: the layers that lose output channels.
    """

    name: str
    channels: int
    layers: tuple[str, ...]


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
