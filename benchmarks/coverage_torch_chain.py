"""One PyTorch network through the whole chain, stage by stage."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import openvino as ov
import torch
from coverage_check import LONGEST_REASON, Row
from networks import Network
from silencing import Channels, difference, lost_channels, other_channels, perturbed, silenced_outputs
from torch import nn

from autocompress.device import Target
from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.proof import Proof
from autocompress.frameworks.torch.calls import call, outputs_of
from autocompress.frameworks.torch.channels import channel_groups
from autocompress.frameworks.torch.convert import convert
from autocompress.frameworks.torch.inspect import prove
from autocompress.frameworks.torch.layers import layers_of
from autocompress.frameworks.torch.prune import remove_channels
from autocompress.frameworks.torch.simulate import settle, simulate
from autocompress.policy import LayerPolicy, Policy
from autocompress.structure import Structure
from autocompress.target.executed import kernels
from autocompress.target.precision import Converted, place_precision
from autocompress.target.runtime import compile_model

CPU_SECONDS = 60
RATIO = 0.3
TOLERANCE = 1e-4
"""Of outputs, relative to their range."""
LEAST_CONTROL = 100
"""How many tolerances the outputs must move by if other channels are zeroed."""


class TorchChain:
    """The stages, in order; each leaves what the next one needs."""

    model: nn.Module
    example: Any
    groups: dict[str, ChannelGroup]
    proof: Proof
    structure: Structure
    pruned: nn.Module
    lost: Channels
    converted: Converted
    policy: Policy
    placed: ov.Model

    def __init__(self, network: Network) -> None:
        torch.set_num_threads(1)
        logging.getLogger("nncf").setLevel(logging.ERROR)
        self.network, self.row = network, Row(network.name, network.family)

    def stages(self) -> Sequence[Callable[[], None]]:
        """In order."""
        return (self.build, self.inspect, self.prune, self.check, self.convert, self.quantize, self.compile)

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
        self.structure = self.proof.structure(layers_of(self.model, self.example), self.groups)
        self.row.inspect_seconds = time.process_time() - start
        self.row.proven, self.row.frozen = len(self.structure.groups), len(self.structure.frozen)
        reasons = Counter(group.reason for group in self.structure.frozen).most_common(2)
        self.row.reason = "; ".join(f"{count} × {reason}" for reason, count in reasons)[:LONGEST_REASON]

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
        self.row.control = difference(outputs, silenced_outputs(self.original, others, self._run)) / TOLERANCE

    def _run(self, model: nn.Module) -> list[torch.Tensor]:
        return outputs_of(call(model, self.example))

    def _require_removal(self, lost_outputs: Channels) -> None:
        for group in self.structure.groups:
            for layer in group.layers:
                found = len(lost_outputs.get(layer, ()))
                wanted = group.removed(RATIO) * group.width(layer)
                if found < wanted:
                    raise ValueError(f"{layer} lost {found} channels, {wanted} were to go")

    def verdict(self) -> str:
        """The status of a network that came to the end."""
        if not self.lost:
            return "frozen"
        return "ok" if self.row.error <= TOLERANCE and self.row.control > LEAST_CONTROL else "wrong"  # a NaN is wrong

    def convert(self) -> None:
        """To OpenVINO, with the weights on their 8-bit grids."""
        layers = [layer.name for layer in layers_of(self.pruned, self.example)]
        self.policy, self.row.asked = Policy({}, dict.fromkeys(layers, LayerPolicy(8, 8))), len(layers)
        simulate(self.pruned, self.policy)
        codes = settle(self.pruned)
        self.converted = Converted(convert(self.pruned, self.example), codes)

    def quantize(self) -> None:
        """Place INT8."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.placed = place_precision(self.converted, self.policy, [self._sample()])

    def compile(self) -> None:
        """Compile and run once."""
        compiled = compile_model(self.placed, Target())
        found = kernels(compiled, self.policy.layers)
        self.row.int8 = sum(kernel.is_integer for kernel in found.values())
        results = compiled(self._sample())
        if not all(np.isfinite(results[i]).all() for i in range(len(compiled.outputs))):
            raise ValueError("the INT8 model's outputs are not finite")

    def _sample(self) -> Any:
        if isinstance(self.example, dict):
            return {name: tensor.numpy() for name, tensor in self.example.items()}
        return tuple(tensor.numpy() for tensor in self.example)
