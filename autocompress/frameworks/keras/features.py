"""Where the original looks: its attention maps, compared with a candidate's.

Zagoruyko & Komodakis, Paying More Attention to Attention (2017), section 3.1: the squares of a layer's outputs, summed over the
channels and normalized. Channels may therefore be pruned, and the maps still have one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from autocompress.frameworks.keras.calls import calls_replaced
from autocompress.frameworks.keras.graph import heavy_layers, layers_by_name
from autocompress.frameworks.keras.nodes import innermost


class FeaturePairs:
    """The outputs of equal layers of a model and its teacher, kept while both are called on one batch.

    Compared are the layers that see more than one position; of those with one shape of map the last.
    """

    def __init__(self, model: keras.Model, teacher: keras.Model) -> None:
        theirs, mine = heavy_layers(teacher), layers_by_name(model)
        self.names = {id(layer): name for name in theirs if name in mine for layer in (mine[name], theirs[name])}
        self.layers = [layer for name in theirs if name in mine for layer in (mine[name], theirs[name])]
        self.maps: dict[str, list[Any]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, the outputs are kept."""
        with calls_replaced(self.layers, self._keep):
            yield

    def distance(self) -> Any:
        """The squared distance of the maps of both calls, averaged over samples and summed over layers."""
        both = [maps for maps in self.maps.values() if len(maps) == 2 and maps[0].shape == maps[1].shape]
        last = {tuple(maps[0].shape): maps for maps in both}
        self.maps.clear()
        distances = [ops.mean(ops.sum(ops.square(mine - theirs), 1)) for mine, theirs in last.values()]
        return sum(distances) if distances else 0.0

    def _keep(self, layer: keras.layers.Layer, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if len(output.shape) > 2:
                squares = ops.sum(ops.square(output), _channel_axis(layer))
                flat = ops.reshape(squares, (ops.shape(squares)[0], -1))
                self.maps.setdefault(self.names[id(layer)], []).append(ops.normalize(flat, axis=1))
            return output

        return called


def _channel_axis(layer: keras.layers.Layer) -> int:
    return 1 if getattr(innermost(layer), "data_format", None) == "channels_first" else -1
