"""A module's channel groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from autocompress.frameworks.channels import ChannelGroup, groups_of
from autocompress.frameworks.torch.trace import trace


def channel_groups(model: nn.Module, example: Any) -> dict[str, ChannelGroup]:
    """All groups of a module by name, with those that have to stay."""
    return groups_of(trace(model, example))
