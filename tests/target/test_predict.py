"""The latency table is read from the cache, the predictor learns from what is measured, and the other estimates are exact."""

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import models
import numpy as np
import openvino as ov
import pytest

import autocompress as ac
from autocompress.device import Fingerprint
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.structure import Structure
from autocompress.target.cache import cache_folder, key_of, read_json, write_json
from autocompress.target.executed import kernels
from autocompress.target.layer_graphs import Signature, layer_graph, signature_of
from autocompress.target.layer_table import LayerTable, build_table
from autocompress.target.precision import heavy_nodes
from autocompress.target.predict import COMMON_FEATURES, Predictor, dataflow
from autocompress.target.runtime import compile_model, fingerprint

pytestmark = pytest.mark.timing

FRAMEWORK = TorchFramework()
INT8 = ac.LayerPolicy(8, 8)


def parts(kind: str) -> tuple[ac.Task, Structure, ov.Model]:
    task = models.small_task(models.build(kind))
    model = FRAMEWORK.to_openvino(task, FRAMEWORK.compress(task, ac.Policy(), "l2"), 1).model
    return task, FRAMEWORK.inspect(task), model


def signatures(kind: str) -> dict[str, Signature]:
    return {name: signature_of(nodes[0]) for name, nodes in heavy_nodes(parts(kind)[2]).items()}


def table_of(kind: str, folder: Path, device: Fingerprint | None = None) -> LayerTable:
    _, structure, graph = parts(kind)
    ratios = {group.name: (0.0, 0.25, 0.5) for group in structure.groups}
    return build_table(graph, structure, ratios, device or fingerprint(ac.Target()), folder=folder)


def made_up_table(graph: ov.Model) -> LayerTable:
    """Every layer takes its multiply-accumulates, in 8 bits half as long."""
    nodes = {name: tuple(map(signature_of, found)) for name, found in heavy_nodes(graph).items()}
    times = {}
    for layer in itertools.chain(*nodes.values()):
        for n, m, integer in itertools.product(range(1, layer.inputs + 1), range(1, layer.outputs + 1), (False, True)):
            if layer.inputs % layer.groups == 0 and (n == m or not layer.is_depthwise):
                times[layer.at(n, m, integer)] = n * m / 256 / (1 + integer) + 0.1
    return LayerTable(nodes, times, {}, 1e-5)


def test_a_signature_says_what_a_layer_is() -> None:
    found = signatures("separable")
    assert found["depthwise"].is_depthwise
    assert found["depthwise"].weights == 16 * 9
    assert found["pointwise"] == dataclasses.replace(
        found["stem"], inputs=16, outputs=24, kernel=(1, 1), pads_begin=(0, 0), pads_end=(0, 0)
    )
    assert found["fc"].is_linear
    assert (found["fc"].inputs, found["fc"].outputs) == (24, 10)


def test_a_grouped_layer_loses_whole_groups() -> None:
    assert signatures("separable")["depthwise"].at(8, 8, True).groups == 8
    assert signatures("grouped")["grouped"].at(8, 16, True).groups == 2


@pytest.mark.parametrize("kind", ["conv", "mlp", "separable", "grouped", "transposed", "conv1d"])
def test_the_graph_of_a_layer_holds_the_layer(kind: str) -> None:
    for layer in signatures(kind).values():
        copies = [signature_of(node) for nodes in heavy_nodes(layer_graph(layer, 2)).values() for node in nodes]
        assert copies.count(layer) == 2
        assert copies.count(layer) == len(copies) - 2  # and one layer before and one behind them


@pytest.mark.parametrize("name", ["stem", "pointwise"])
def test_an_integer_layer_is_timed_in_an_integer_kernel(name: str) -> None:
    layer = signatures("separable")[name]
    for integer in (False, True):
        graph = layer_graph(layer.at(16, layer.outputs, integer), 4)
        names = [node.get_friendly_name() for nodes in heavy_nodes(graph).values() for node in nodes]
        running = kernels(compile_model(graph, ac.Target()), names)
        assert [kernel.is_integer for kernel in running.values()].count(True) >= (4 if integer else 0)
        assert integer or not any(kernel.is_integer for kernel in running.values())


def test_a_table_is_read_from_the_cache_in_a_moment(tmp_path: Path) -> None:
    cold, warm = (table_of("conv", tmp_path) for _ in range(2))
    assert cold.timed > 0
    assert warm.timed == 0
    assert warm.times == cold.times
    assert all(value > 0 for value in warm.times.values())
    assert warm.seconds < 1


def test_times_of_another_fingerprint_are_not_used(tmp_path: Path) -> None:
    other = fingerprint(ac.Target()).model_copy(update={"openvino": "another"})
    assert table_of("mlp", tmp_path).timed == table_of("mlp", tmp_path, other).timed > 0


def test_a_damaged_cache_is_absent(tmp_path: Path) -> None:
    timed = table_of("mlp", tmp_path).timed
    (file,) = (tmp_path / "layers").iterdir()
    file.write_text(file.read_text()[:-5])
    assert table_of("mlp", tmp_path).timed == timed
    write_json(file, {"version": -1, "times": {}})
    assert table_of("mlp", tmp_path).timed == timed


def test_progress_reaches_one(tmp_path: Path) -> None:
    seen: list[float] = []
    _, structure, graph = parts("mlp")
    build_table(graph, structure, {}, fingerprint(ac.Target()), seen.append, tmp_path)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)


def test_fewer_widths_are_timed_where_there_are_too_many(tmp_path: Path) -> None:
    table = table_of("conv", tmp_path)
    assert table.timed <= 12 + 4  # the ends of each layer are always timed
    conv2 = table.nodes["conv2"][0]
    assert table.widths[conv2][0][0] == 8
    assert table.widths[conv2][0][-1] == 16


def test_widths_between_are_interpolated() -> None:
    layer = signatures("conv")["conv2"]
    corners = {(8, 12): 1.0, (8, 24): 3.0, (16, 12): 2.0, (16, 24): 6.0}
    times = {layer.at(*widths, False): value for widths, value in corners.items()}
    table = LayerTable({"conv2": (layer,)}, times, {layer: ((8, 16), (12, 24))}, 0.0)
    assert table.time(layer, 12, 18, False) == pytest.approx((1 + 3 + 2 + 6) / 4)
    assert table.time(layer, 16, 15, False) == pytest.approx(3)


def test_dataflow_of_a_residual_net() -> None:
    edges = {reader: edge for edge in dataflow(parts("resnet")[2]) for reader in edge.readers}
    assert edges["stem"].producer is None
    assert (edges["block1.conv1"].producer, edges["block1.conv1"].joined) == ("stem", ())
    assert (edges["block2.conv1"].producer, edges["block2.conv1"].joined) == ("block1.conv2", ("stem",))
    assert edges["block2.conv1"] == edges["block2.shortcut.0"]
    assert edges["block2.conv2"].elements == 32 * 4 * 4


def test_an_8_bit_sum_that_a_float_layer_reads_costs_more_than_either() -> None:
    _, structure, predictor = predictor_of("resnet")
    names = list(COMMON_FEATURES)
    everything = {layer.name: INT8 for layer in structure.layers}

    def features(*floats: str) -> dict[str, float]:
        layers = {name: layer for name, layer in everything.items() if name not in floats}
        return dict(zip(names, predictor.features(ac.Policy({}, layers)).tolist(), strict=False))

    assert features()["sum to float"] == features()["float into sum"] == 0
    assert features("block2.conv1")["sum to float"] > 0
    assert features("stem")["float into sum"] > 0
    assert features("block1.conv2")["8 bits into float sum"] > 0


def predictor_of(kind: str) -> tuple[ac.Task, Structure, Predictor]:
    task, structure, graph = parts(kind)
    return task, structure, Predictor(made_up_table(graph), structure, graph)


def random_policy(structure: Structure, seed: int) -> ac.Policy:
    draw = np.random.default_rng(seed)
    pruning = {group.name: float(draw.choice([0, 0.25, 0.5])) for group in structure.groups}
    return ac.Policy(pruning, {layer.name: INT8 for layer in structure.layers if draw.random() < 0.5})


def test_the_original_takes_as_long_as_itself() -> None:
    assert predictor_of("resnet")[2].ratio(ac.Policy()) == pytest.approx(1, abs=0.02)


def test_less_work_is_estimated_to_take_less() -> None:
    _, structure, predictor = predictor_of("resnet")
    halves = ac.Policy({group.name: 0.5 for group in structure.groups})
    int8 = ac.Policy({}, {layer.name: INT8 for layer in structure.layers})
    both = ac.Policy(halves.pruning, int8.layers)
    assert predictor.ratio(both) < min(predictor.ratio(halves), predictor.ratio(int8))
    assert max(predictor.ratio(halves), predictor.ratio(int8)) < predictor.ratio(ac.Policy())


def test_estimates_come_closer_to_what_is_measured() -> None:
    """The truth: float layers as in the table, 8-bit ones half as slow again, and a constant. Mean over four sets of policies."""
    _, structure, _ = predictor_of("resnet")
    unseen = [random_policy(structure, seed) for seed in range(100, 130)]

    def errors_of(first_seed: int) -> list[float]:
        _, _, predictor = predictor_of("resnet")

        def truth(policy: ac.Policy) -> float:
            floats, integers = predictor.features(policy)[:2]
            return float(0.7 * floats + 1.1 * integers + 0.3)

        found = []
        for seed in range(first_seed, first_seed + 21):
            found.append(float(np.mean([abs(predictor.ratio(policy) / truth(policy) - 1) for policy in unseen])))
            policy = random_policy(structure, seed)
            predictor.observe(policy, truth(policy))
        return found

    errors = np.mean([errors_of(first_seed) for first_seed in (0, 20, 40, 60)], axis=0)
    assert errors[0] > 0.05
    assert errors[8] < errors[0] / 4
    assert errors[20] < errors[0] / 10


def test_a_float_layer_between_8_bit_layers_costs_conversions() -> None:
    _, structure, predictor = predictor_of("resnet")
    layers = {layer.name: INT8 for layer in structure.layers}
    whole = predictor.features(ac.Policy({}, layers))
    broken = predictor.features(ac.Policy({}, {name: layer for name, layer in layers.items() if name != "block1.conv1"}))
    assert whole[3] > 0  # the model's own input
    assert broken[3] > whole[3]
    assert whole[4] == 0 < broken[4]


@pytest.mark.parametrize("kind", models.CLASSIFIERS)
def test_macs_are_those_of_the_candidate(kind: str) -> None:
    task, structure, predictor = predictor_of(kind)
    policy = random_policy(structure, 1)
    candidate = FRAMEWORK.compress(task, policy, "l2")
    assert predictor.estimate(policy).macs == sum(candidate.macs.values())


def test_size_and_bit_operations_follow_the_bits() -> None:
    _, structure, predictor = predictor_of("mlp")
    weights = sum(layer.macs for layer in structure.layers)

    def estimate(*bits: Any) -> Any:
        return predictor.estimate(ac.Policy({}, {layer.name: ac.LayerPolicy(*bits) for layer in structure.layers}))

    steps = 4 * (32 + 24 + 10)
    assert (estimate().size_bytes, estimate().bops) == (4 * weights, weights * 32 * 32)
    assert (estimate(8, 8).size_bytes, estimate(8, 8).bops) == (weights + steps, weights * 8 * 8)
    assert (estimate(3, 8).size_bytes, estimate(3, 8).bops) == (weights // 2 + steps, weights * 3 * 8)
    assert (estimate(2).size_bytes, estimate(2).bops) == (weights // 4 + steps, weights * 2 * 32)


def test_one_estimate_takes_little_time() -> None:
    _, structure, predictor = predictor_of("resnet")
    policies = [random_policy(structure, seed) for seed in range(50)]
    start = time.thread_time()
    for policy in policies:
        predictor.estimate(policy)
    assert (time.thread_time() - start) / len(policies) < 5e-3


def test_the_cache_folder_is_the_users_or_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AUTOCOMPRESS_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "autocompress"
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_what_is_cached_is_found_again_and_what_is_damaged_is_not(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    assert read_json(path) is None
    write_json(path, {"a": 1.5})
    assert read_json(path) == {"a": 1.5}
    path.write_bytes(b'{"a": \xff')
    assert read_json(path) is None
    assert [entry.name for entry in path.parent.iterdir()] == ["file.json"]


def test_a_key_names_one_fingerprint() -> None:
    one, two = (fingerprint(ac.Target(threads=threads)) for threads in (1, 2))
    assert key_of(one) == key_of(fingerprint(ac.Target())) != key_of(two)


def test_a_layer_that_vanishes_takes_no_time() -> None:
    task, _, predictor = predictor_of("resnet")
    policy = ac.Policy({"block1.conv1": 1.0})
    assert predictor.estimate(policy).macs == sum(FRAMEWORK.compress(task, policy, "l2").macs.values())
    one_channel = ac.Policy({"block1.conv1": 0.9375})
    assert predictor.features(policy)[0] < predictor.features(one_channel)[0] < predictor.features(ac.Policy())[0]


def test_a_table_is_built_for_whole_branches_and_grouped_layers(tmp_path: Path) -> None:
    for kind in ("resnet", "grouped"):
        _, structure, graph = parts(kind)
        ratios = {group.name: (0.0, 0.5, 1.0) for group in structure.groups}
        table = build_table(graph, structure, ratios, fingerprint(ac.Target()), folder=tmp_path)
        predictor = Predictor(table, structure, graph)
        whole = ac.Policy({group.name: 1.0 for group in structure.groups if group.removable})
        assert predictor.ratio(whole) <= predictor.ratio(ac.Policy())
