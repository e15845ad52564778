"""One Keras network through the whole chain, stage by stage."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import openvino as ov
from coverage_check import LONGEST_REASON, Row
from networks_keras import KerasNetwork
from silencing_keras import Lost, inputs_lost, lost_channels, other_channels, perturb, silence

from autocompress.device import Target
from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.keras.convert import convert
from autocompress.frameworks.keras.graph import functional, heavy_layers, layers_by_name, rebuild
from autocompress.frameworks.keras.inspect import prove
from autocompress.frameworks.keras.layers import layers_of
from autocompress.frameworks.keras.nodes import as_argument
from autocompress.frameworks.keras.prune import remove_channels
from autocompress.frameworks.keras.simulate import settle, simulate
from autocompress.frameworks.keras.trace import channel_groups
from autocompress.frameworks.proof import Outputs, difference
from autocompress.policy import LayerPolicy, Policy
from autocompress.structure import Structure
from autocompress.target.executed import kernels
from autocompress.target.precision import Converted, place_precision
from autocompress.target.runtime import compile_model

RATIO = 0.3
TOLERANCE = 1e-5
"""Of outputs, relative to their range."""
LEAST_CONTROL = 100
"""How many tolerances the outputs must move by if other channels are zeroed."""


class KerasChain:
    """The stages, in order; each leaves what the next one needs."""

    example: Any
    original: keras.Model
    groups: dict[str, ChannelGroup]
    structure: Structure
    pruned: keras.Model
    lost: Lost
    policy: Policy
    converted: Converted
    placed: ov.Model

    def __init__(self, network: KerasNetwork) -> None:
        logging.getLogger("nncf").setLevel(logging.ERROR)
        self.network, self.row = network, Row(network.name, network.family)

    def stages(self) -> Sequence[Callable[[], None]]:
        """In order."""
        return (self.build, self.inspect, self.prune, self.check, self.convert, self.quantize, self.compile)

    def build(self) -> None:
        """Make the model, its inputs, and the perturbed copy that everything but the engine's own proof is done with."""
        keras.utils.set_random_seed(0)
        self.example = self.network.inputs()
        self.graph = functional(self.network.make(), self.example)
        self.original = rebuild(self.graph, lambda name, layer: None)
        perturb(layers_by_name(self.original))

    def inspect(self) -> None:
        """Trace and prove."""
        start = time.process_time()
        self.groups = channel_groups(self.graph, self.example)
        proof = prove(self.graph, self.example, self.groups)
        self.structure = proof.structure(layers_of(self.graph, self.example), self.groups)
        self.row.inspect_seconds = time.process_time() - start
        self.row.proven, self.row.frozen = len(self.structure.groups), len(self.structure.frozen)
        reasons = Counter(group.reason for group in self.structure.frozen).most_common(2)
        self.row.reason = "; ".join(f"{count} × {reason}" for reason, count in reasons)[:LONGEST_REASON]

    def prune(self) -> None:
        """Remove a share of the channels of all proven groups, any of them."""
        generator, removed = np.random.default_rng(3), {}
        for group in self.structure.groups:
            removed[group.name] = sorted(generator.permutation(group.channels)[: group.removed(RATIO)].tolist())
        self.pruned = remove_channels(self.original, self.groups, removed)

    def check(self) -> None:
        """Run it beside the silenced original."""
        before, after = heavy_layers(self.original), heavy_layers(self.pruned)
        self.lost = lost_channels(before, after)
        self.row.share = sum(before[name].count_params() for name in self.lost) / self.original.count_params()
        self._require_removal()
        read, outputs = inputs_lost(before, self.lost), self._run(self.pruned)
        others = other_channels(before, read)
        weights = self.original.get_weights()
        silence(before, read)
        self.row.error = difference(outputs, self._run(self.original))
        self.original.set_weights(weights)
        silence(before, others)
        self.row.control = difference(outputs, self._run(self.original)) / TOLERANCE

    def _run(self, model: keras.Model) -> Outputs:
        outputs = model(as_argument(self.example), training=False)
        return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]

    def _require_removal(self) -> None:
        kept = {layer.name: layer.channels[1] for layer in layers_of(self.pruned, self.example)}
        gone = {layer.name: layer.channels[1] - kept[layer.name] for layer in layers_of(self.original, self.example)}
        for group in self.structure.groups:
            for layer in group.layers:
                if gone[layer] < group.removed(RATIO) * group.width(layer):
                    raise ValueError(
                        f"{layer} lost {gone[layer]} channels, {group.removed(RATIO)} × {group.width(layer)} were to go"
                    )

    def verdict(self) -> str:
        """The status of a network that came to the end."""
        if not self.lost:
            return "frozen"
        return "ok" if self.row.error <= TOLERANCE and self.row.control > LEAST_CONTROL else "wrong"  # a NaN is wrong

    def convert(self) -> None:
        """To OpenVINO, with the weights on their 8-bit grids."""
        layers = [layer.name for layer in layers_of(self.pruned, self.example)]
        self.policy, self.row.asked = Policy({}, dict.fromkeys(layers, LayerPolicy(8, 8))), len(layers)
        plain, codes = settle(simulate(self.pruned, self.policy))
        self.converted = Converted(convert(plain, self.example), codes)

    def quantize(self) -> None:
        """Place INT8."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.placed = place_precision(self.converted, self.policy, [self.example])

    def compile(self) -> None:
        """Compile and run once."""
        compiled = compile_model(self.placed, Target())
        found = kernels(compiled, self.policy.layers)
        self.row.int8 = sum(kernel.is_integer for kernel in found.values())
        results = compiled(self.example)
        if not all(np.isfinite(results[i]).all() for i in range(len(compiled.outputs))):
            raise ValueError("the INT8 model's outputs are not finite")
