"""A model's channel groups: for each channel the slices of parameters that go with it.

Example. In a residual network the convolutions whose outputs are added form one group: channel 3 is row 3 of both weights,
entry 3 of their batch norms, and column 3 of every weight that reads the sum. A channel of a group may be more than one slice
of a tensor: a whole head of an attention layer, a group of a grouped convolution, the pixels of a flattened image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.structure import Group

COPY_MARK = "#"
"""A layer whose channels belong to several groups: "fc" and "fc#2"."""


Role = Literal["writes", "reads", "carries"]


@dataclass(frozen=True)
class Axis:
    """Where channels lie along an axis of a parameter or buffer.

    Attributes:
        layer: the layer whose weight it is; for what only carries channels (a norm, a bias), empty.
        tensor: name of the parameter or buffer.
        axis: along which it is sliced; None where the layer loses channels without a slice (inputs of a grouped convolution).
        classes: class of each index; 0 for what belongs to no channel.
        role: what the layer does with the channels.
        each: how many of the layer's channels lie in one index: several where they have more than one dimension (heads).
    """

    layer: str
    tensor: str
    axis: int | None
    classes: NDArray[np.int64]
    role: Role
    each: int = 1


@dataclass(frozen=True)
class Traced:
    """What following the channels through a model has told.

    Attributes:
        axes: in the order in which they were met.
        reasons: class → why it has to stay, for those that have.
    """

    axes: tuple[Axis, ...]
    reasons: dict[int, str]


@dataclass(frozen=True)
class Member:
    """Where the channels of a group lie in one tensor.

    Attributes:
        layer, tensor, axis, role, each: see `Axis`.
        indices: (channels, slices of each) along the axis.
    """

    layer: str
    tensor: str
    axis: int | None
    role: Role
    indices: NDArray[np.int64]
    each: int = 1

    @property
    def width(self) -> int:
        """Channels of the layer that go with one channel of the group."""
        return int(self.indices.shape[1]) * self.each


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only go together.

    Attributes:
        name: the first layer that makes them.
        members: in the order of the forward pass.
        reason: why they have to stay; None where nothing is known against removing them.
    """

    name: str
    members: tuple[Member, ...]
    reason: str | None

    @property
    def channels(self) -> int:
        """How many there are."""
        return int(self.members[0].indices.shape[0])

    def described(self, removable: bool) -> Group:
        """In the words that are the same for all frameworks."""
        writers = {member.layer: member.width for member in self.members if member.role == "writes"}
        readers: dict[str, int] = {}
        for member in self.members:
            if member.role == "reads":
                readers[member.layer] = readers.get(member.layer, 0) + member.width
        wide = tuple((name, width) for name, width in writers.items() if width > 1)
        return Group(self.name, self.channels, tuple(writers), tuple(readers.items()), wide, removable)


def groups_of(traced: Traced) -> dict[str, ChannelGroup]:
    """All groups by name, with those that have to stay."""
    groups: dict[str, ChannelGroup] = {}
    for members, reason in _grouped(traced):
        names = [member.layer for member in members if member.role == "writes"]
        if not names:
            continue
        copies = sum(name.split(COPY_MARK)[0] == names[0] for name in groups)
        name = names[0] if not copies else f"{names[0]}{COPY_MARK}{copies + 1}"
        if reason is None and not any(member.role == "reads" for member in members):
            reason = "no layer reads its channels"
        groups[name] = ChannelGroup(name, members, reason)
    return groups


def _grouped(traced: Traced) -> Iterator[tuple[tuple[Member, ...], str | None]]:
    """Classes that lie in the same tensors in the same way are the channels of one group."""
    places: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}
    for number, axis in enumerate(traced.axes):
        order = np.argsort(axis.classes, kind="stable")
        found, starts = np.unique(axis.classes[order], return_index=True)
        for one, indices in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            if one:
                places.setdefault(one, []).append((number, indices))
    alike: dict[tuple[Any, ...], list[int]] = {}
    for one, parts in places.items():
        key = (tuple((number, len(indices)) for number, indices in parts), traced.reasons.get(one))
        alike.setdefault(key, []).append(one)
    for (signature, reason), classes in alike.items():
        members = []
        for place, (number, _) in enumerate(signature):
            axis = traced.axes[number]
            indices = np.stack([places[one][place][1] for one in classes])
            members.append(Member(axis.layer, axis.tensor, axis.axis, axis.role, indices, axis.each))
        yield tuple(members), reason


def element_axes(
    name: str, classes: NDArray[np.int64], reasons: dict[int, str], layer: str = "", role: Role = "carries", channels: int = 0
) -> Iterator[Axis]:
    """The axis of a tensor along which its classes vary; if they vary along several, its channels have to stay.

    Args:
        name: of the tensor.
        classes: of its elements.
        reasons: class → why it has to stay; added to.
        layer: see `Axis`.
        role: see `Axis`.
        channels: how many the layer has there, if not one for each index.
    """
    varying = [a for a in range(classes.ndim) if (classes != classes.take([0], a)).any()]
    if len(varying) == 1:
        line = np.moveaxis(classes, varying[0], 0).reshape(classes.shape[varying[0]], -1)[:, 0]
        yield Axis(layer, name, varying[0], line, role, max(1, channels // len(line)))
    for found in np.unique(classes).tolist() if len(varying) != 1 else ():
        reasons.setdefault(found, f"its channels lie across {name}")


def removed_slices(
    groups: Mapping[str, ChannelGroup],
    removed: Mapping[str, Sequence[int]],
    roles: Sequence[Role] = ("writes", "reads", "carries"),
) -> dict[tuple[str, int], NDArray[np.int64]]:
    """Tensor and axis → the indices that go when channels of some groups are removed."""
    found: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
    for name, channels in removed.items():
        for member in groups[name].members:
            if member.axis is not None and member.role in roles and len(channels):
                found.setdefault((member.tensor, member.axis), []).append(member.indices[list(channels)].reshape(-1))
    return {place: np.unique(np.concatenate(parts)) for place, parts in found.items()}
