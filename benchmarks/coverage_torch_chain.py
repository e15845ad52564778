"""One PyTorch network through the whole chain, stage by stage."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from coverage_chain import RATIO, NetworkChain
from networks import Network
from silencing import Channels, difference, lost_channels, other_channels, perturbed, silenced_outputs
from torch import nn

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.proof import Proof
from autocompress.frameworks.torch.calls import call, outputs_of
from autocompress.frameworks.torch.channels import channel_groups
from autocompress.frameworks.torch.convert import convert
from autocompress.frameworks.torch.inspect import prove
from autocompress.frameworks.torch.layers import layers_of
from autocompress.frameworks.torch.prune import remove_channels
from autocompress.frameworks.torch.simulate import settle, simulate
from autocompress.target.precision import Converted

CPU_SECONDS = 60


class TorchChain(NetworkChain):
    """The stages of a network of PyTorch."""

    tolerance = 1e-4

    model: nn.Module
    example: Any
    groups: dict[str, ChannelGroup]
    proof: Proof
    pruned: nn.Module
    lost: Channels

    def __init__(self, network: Network) -> None:
        torch.set_num_threads(1)
        super().__init__(network.name, network.family)
        self.network = network

    def build(self) -> None:
        """Make the module, its inputs, and the perturbed copy that everything but the engine's own proof is done with."""
        torch.manual_seed(0)
        self.model, self.example = self.network.make().eval(), self.network.inputs()
        self.original = perturbed(self.model)

    def inspect(self) -> None:
        """Trace and prove."""
        start = time.process_time()
        self.groups = channel_groups(copy.deepcopy(self.model), self.example)
        self.proof = prove(self.model, self.example, self.groups)
        structure = self.proof.structure(layers_of(self.model, self.example), self.groups)
        self.note_structure(structure, time.process_time() - start)

    def prune(self) -> None:
        """Remove a share of the channels of all proven groups, any of them."""
        generator, removed = torch.Generator().manual_seed(3), {}
        for group in self.structure.groups:
            order = torch.randperm(group.channels, generator=generator)
            removed[group.name] = sorted(order[: group.removed(RATIO)].tolist())
        self.pruned = copy.deepcopy(self.original)
        remove_channels(self.pruned, self.groups, removed, self.proof.follow)

    def check(self) -> None:
        """Run it beside the silenced original."""
        self.lost, lost_outputs = lost_channels(self.original, self.pruned)
        touched = self.lost.keys() | lost_outputs.keys()
        weights = sum(p.numel() for name in touched for p in self.original.get_submodule(name).parameters(recurse=False))
        self.row.share = weights / sum(p.numel() for p in self.original.parameters())
        self._require_removal(lost_outputs)
        outputs = silenced_outputs(self.pruned.eval(), {}, self._run)
        self.row.error = difference(outputs, silenced_outputs(self.original, self.lost, self._run))
        others = other_channels(self.original, self.lost)
        self.row.control = difference(outputs, silenced_outputs(self.original, others, self._run)) / self.tolerance

    def _run(self, model: nn.Module) -> list[torch.Tensor]:
        return outputs_of(call(model, self.example))

    def _require_removal(self, lost_outputs: Channels) -> None:
        for group in self.structure.groups:
            for layer in group.layers:
                found = len(lost_outputs.get(layer, ()))
                wanted = group.removed(RATIO) * group.width(layer)
                if found < wanted:
                    raise ValueError(f"{layer} lost {found} channels, {wanted} were to go")

    def convert(self) -> None:
        """To OpenVINO, with the weights on their 8-bit grids."""
        self.ask_for_8_bits(layers_of(self.pruned, self.example))
        simulate(self.pruned, self.policy)
        codes = settle(self.pruned)
        self.converted = Converted(convert(self.pruned, self.example), codes)

    def sample(self) -> Any:
        """The example, in NumPy."""
        if isinstance(self.example, dict):
            return {name: tensor.numpy() for name, tensor in self.example.items()}
        return tuple(tensor.numpy() for tensor in self.example)
