"""The latency table of a model: what each layer takes at the widths and precisions that a search can reach.

Layers are timed as small graphs (`layer_graphs.py`), in turns with the yardstick, so that drift and other load hit both. The
table's unit is therefore the yardstick's time. Its sums are estimates, to be brought to scale by whole models that were measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import openvino as ov

from autocompress.device import Fingerprint, Target
from autocompress.structure import Structure
from autocompress.target.cache import cache_folder, key_of, read_json, write_json
from autocompress.target.layer_graphs import CHAINS, Signature, chain_graph, conversion_time, layer_graph, signature_of
from autocompress.target.meter import Timer
from autocompress.target.precision import heavy_nodes
from autocompress.target.runtime import compile_model
from autocompress.target.yardstick import yardstick

MOST_GRAPHS = 480
"""Timed for one table; with more widths than that, the ones between are interpolated."""
ROUNDS, FEWEST_ROUNDS = 31, 5
"""In which every graph is run."""
MAX_SECONDS = 70.0
"""No further round begins after that, where nothing else is said."""
BETWEEN_YARDSTICKS = 5
"""Graphs that are run between one yardstick and the next."""
COMPILING = 0.6
"""Share of the progress, roughly."""
SMALLEST = 1e-4
"""Of a time, in yardsticks: what remains of a layer that is lost in the noise."""
VERSION = 2
"""Of the cached numbers; those of another version are absent."""
CONVERSION = "conversion"
"""The key of its time, among those of layers."""

Progress = Callable[[float], None]
"""Called with the finished fraction of the table."""
Widths = tuple[tuple[int, ...], tuple[int, ...]]
"""Ascending input and output channels at which a layer is timed."""

Item = TypeVar("Item")


@dataclass
class LayerTable:
    """Times of layers in yardsticks.

    Attributes:
        nodes: layer name → signatures of its nodes in the original, in float. A layer that is called twice has two.
        times: signature → time.
        widths: signature in the original → the widths that were timed.
        conversion: time of one element that goes from a float layer to an 8-bit one and back.
        seconds: how long it took to build.
        timed: how many graphs were timed and not found in the cache.
    """

    nodes: Mapping[str, tuple[Signature, ...]]
    times: dict[Signature, float]
    widths: Mapping[Signature, Widths]
    conversion: float
    seconds: float = 0.0
    timed: int = 0

    def time(self, original: Signature, inputs: int, outputs: int, integer: bool) -> float:
        """The time of a layer at other widths: from the table, or bilinear between the widths around it.

        The latter is an estimate: kernels step by 8 or 16 channels. A layer without inputs or outputs takes no time.
        """
        if inputs <= 0 or outputs <= 0:
            return 0.0
        layer = original.at(inputs, outputs, integer)
        if layer not in self.times:
            self.times[layer] = self._between(original, inputs, outputs, integer)
        return self.times[layer]

    def _between(self, original: Signature, inputs: int, outputs: int, integer: bool) -> float:
        rows, columns = self.widths[original]
        if original.groups > 1:
            return float(np.interp(inputs, rows, [self.times[original.at(n, original.beside(n), integer)] for n in rows]))
        means = [np.interp(outputs, columns, [self.times[original.at(n, m, integer)] for m in columns]) for n in rows]
        return float(np.interp(inputs, rows, means))


def build_table(
    graph: ov.Model,
    structure: Structure,
    ratios: Mapping[str, Sequence[float]],
    fingerprint: Fingerprint,
    progress: Progress | None = None,
    folder: Path | None = None,
    most_seconds: float = MAX_SECONDS,
) -> LayerTable:
    """Time a model's layers in float and in 8 bits, or read their times from the cache.

    Args:
        graph: the converted original, static, its heavy nodes named after the layers.
        structure: of the same model.
        ratios: group name → the pruning ratios that can be asked for.
        fingerprint: of the target; times of two fingerprints are never mixed.
        progress: called with the finished fraction.
        folder: of the cache; None is the user's own.
        most_seconds: no further round of timing begins after that.

    Raises:
        TargetError: the device refuses a small graph.
    """
    start = time.perf_counter()
    nodes = {name: tuple(signature_of(node) for node in found) for name, found in heavy_nodes(graph).items()}
    widths = _widths(nodes, structure, ratios)
    wanted = {layer.key: layer for original, grid in widths.items() for layer in _layers(original, grid)}
    path = (folder or cache_folder()) / "layers" / f"{key_of(fingerprint)}.json"
    known = _cached(path)
    missing = [layer for key, layer in wanted.items() if key not in known]
    if missing or CONVERSION not in known:
        times, conversion = _timed(missing, fingerprint.target, progress or (lambda fraction: None), most_seconds)
        known |= {layer.key: seconds for layer, seconds in times.items()} | {CONVERSION: conversion}
        write_json(path, {"version": VERSION, "times": known})
    entries = {layer: known[key] for key, layer in wanted.items()}
    return LayerTable(nodes, entries, widths, known[CONVERSION], time.perf_counter() - start, len(missing))


def untimed_graphs(graph: ov.Model, structure: Structure, ratios: Mapping[str, Sequence[float]], fingerprint: Fingerprint) -> int:
    """How many graphs `build_table` would have to time, those that are in the user's own cache left out."""
    nodes = {name: tuple(signature_of(node) for node in found) for name, found in heavy_nodes(graph).items()}
    wanted = {layer.key for original, grid in _widths(nodes, structure, ratios).items() for layer in _layers(original, grid)}
    return len(wanted - _cached(cache_folder() / "layers" / f"{key_of(fingerprint)}.json").keys())


def _cached(path: Path) -> dict[str, float]:
    data = read_json(path)
    return dict(data["times"]) if isinstance(data, dict) and data.get("version") == VERSION else {}


def _layers(original: Signature, grid: Widths) -> list[Signature]:
    """A layer at the widths of its grid, in both precisions."""
    inputs, outputs = grid
    pairs = [(n, original.beside(n)) for n in inputs] if original.groups > 1 else [(n, m) for n in inputs for m in outputs]
    return [original.at(n, m, integer) for n, m in pairs for integer in (False, True)]


def _widths(
    nodes: Mapping[str, tuple[Signature, ...]], structure: Structure, ratios: Mapping[str, Sequence[float]]
) -> dict[Signature, Widths]:
    """At which widths each layer is timed: the ends of what can be reached, and more where there is more work."""
    reachable = _reachable(nodes, structure, ratios)
    layers = sorted(reachable, key=lambda layer: -layer.work)
    points = dict.fromkeys(layers, 2)
    for count in (3, 4):
        for layer in layers:
            more = points | {layer: count}
            if _count(reachable, more) <= MOST_GRAPHS:
                points = more
    return {layer: _spread(reachable[layer], points[layer]) for layer in layers}


def _count(reachable: Mapping[Signature, Widths], points: Mapping[Signature, int]) -> int:
    return len({one for layer, count in points.items() for one in _layers(layer, _spread(reachable[layer], count))})


def _spread(widths: Widths, count: int) -> Widths:
    """That many of each axis, evenly spread, the ends among them."""
    inputs, outputs = widths
    return _evenly(inputs, count), _evenly(outputs, count)


def _reachable(
    nodes: Mapping[str, tuple[Signature, ...]], structure: Structure, ratios: Mapping[str, Sequence[float]]
) -> dict[Signature, Widths]:
    """Widths of each layer. Where a layer reads several groups they are taken to be pruned alike; the rest is interpolated."""
    lost: dict[str, tuple[set[int], set[int]]] = {name: ({0}, {0}) for name in nodes}
    for i in range(max((len(choices) for choices in ratios.values()), default=0)):
        alike = {name: sorted(choices)[min(i, len(choices) - 1)] for name, choices in ratios.items()}
        for axis, losses in enumerate(structure.lost_channels(alike)):
            for name, count in losses.items():
                if name in lost:
                    lost[name][axis].add(count)
    found: dict[Signature, tuple[set[int], set[int]]] = {}
    for name, signatures in nodes.items():
        for layer in signatures:
            inputs, outputs = found.setdefault(layer, (set(), set()))
            inputs |= {layer.inputs - count for count in lost[name][0] if count < layer.inputs}  # what is gone takes no time
            outputs |= {layer.outputs - count for count in lost[name][1] if count < layer.outputs}
    return {layer: (tuple(sorted(inputs)), tuple(sorted(outputs))) for layer, (inputs, outputs) in found.items()}


def _timed(
    layers: Sequence[Signature], target: Target, progress: Progress, most_seconds: float
) -> tuple[dict[Signature, float], float]:
    """Time of each layer in yardsticks: a graph with copies of it less the same graph without; and of a converted element."""
    sources = list({_source(layer): layer for layer in layers}.values())
    graphs: list[Callable[[], ov.Model]] = [partial(layer_graph, layer, layer.copies) for layer in layers]
    graphs += [partial(layer_graph, layer, 0) for layer in sources]
    graphs += [partial(chain_graph, integer) for integer in CHAINS]
    medians = _medians(graphs, target, progress, most_seconds)
    empty = {_source(layer): median for layer, median in zip(sources, medians[len(layers) :], strict=False)}
    times = {
        layer: max((whole - empty[_source(layer)]) / layer.copies, SMALLEST)
        for layer, whole in zip(layers, medians, strict=False)
    }
    return times, max(conversion_time(medians[-len(CHAINS) :]), 0.0)


def _medians(graphs: Sequence[Callable[[], ov.Model]], target: Target, progress: Progress, most_seconds: float) -> list[float]:
    """Each graph's time in yardsticks.

    All graphs are run again and again in turns, so that a phase of other load hits every one of them a little.
    """
    start = time.perf_counter()
    timers = []
    for graph in graphs:
        timers.append(Timer(compile_model(graph(), target)))
        progress(COMPILING * len(timers) / len(graphs))
    yard = Timer(yardstick(target))
    rounds: list[list[float]] = []
    while len(rounds) < ROUNDS and (len(rounds) < FEWEST_ROUNDS or time.perf_counter() - start < most_seconds):
        rounds.append(_round(timers, yard))
        progress(COMPILING + (1 - COMPILING) * len(rounds) / ROUNDS)
    return [float(median) for median in np.median(rounds, axis=0)]


def _round(timers: Sequence[Timer], yard: Timer) -> list[float]:
    """Each graph's time in yardsticks, once."""
    found: list[float] = []
    before = yard.block_seconds()
    for first in range(0, len(timers), BETWEEN_YARDSTICKS):
        seconds = [timer.block_seconds() for timer in timers[first : first + BETWEEN_YARDSTICKS]]
        after = yard.block_seconds()
        found += [2 * one / (before + after) for one in seconds]
        before = after
    return found


def _source(layer: Signature) -> tuple[object, ...]:
    """What a graph without its layer depends on."""
    return layer.is_linear, layer.positions, layer.inputs, layer.integer


def _evenly(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """That many of the items, evenly spread, the first and the last among them."""
    return tuple(items[i] for i in sorted({round(j * (len(items) - 1) / (count - 1)) for j in range(count)})) if items else ()
