"""One Keras network through the whole chain, stage by stage."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
from coverage_chain import RATIO, NetworkChain
from networks_keras import KerasNetwork
from silencing_keras import Lost, inputs_lost, lost_channels, other_channels, perturb, silence

from autocompress.frameworks.channels import ChannelGroup
from autocompress.frameworks.keras.convert import convert
from autocompress.frameworks.keras.graph import functional, heavy_layers, layers_by_name, rebuild
from autocompress.frameworks.keras.inspect import prove
from autocompress.frameworks.keras.layers import layers_of
from autocompress.frameworks.keras.nodes import as_argument
from autocompress.frameworks.keras.one_dimensional import as_images
from autocompress.frameworks.keras.prune import remove_channels
from autocompress.frameworks.keras.simulate import settle, simulate
from autocompress.frameworks.keras.trace import channel_groups
from autocompress.frameworks.proof import Outputs, difference
from autocompress.target.precision import Converted


class KerasChain(NetworkChain):
    """The stages of a network of Keras."""

    tolerance = 1e-5

    example: Any
    original: keras.Model
    groups: dict[str, ChannelGroup]
    pruned: keras.Model
    lost: Lost

    def __init__(self, network: KerasNetwork) -> None:
        super().__init__(network.name, network.family)
        self.network = network

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
        structure = proof.structure(layers_of(self.graph, self.example), self.groups)
        self.note_structure(structure, time.process_time() - start)

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
        self.row.control = difference(outputs, self._run(self.original)) / self.tolerance

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

    def convert(self) -> None:
        """To OpenVINO, with the weights on their 8-bit grids."""
        self.ask_for_8_bits(layers_of(self.pruned, self.example))
        plain, codes = as_images(*settle(simulate(self.pruned, self.policy)))
        self.converted = Converted(convert(plain, self.example), codes)

    def sample(self) -> Any:
        """The example, in NumPy."""
        return self.example
