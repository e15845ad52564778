"""Estimates of many points are those of their policies, one at a time."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "target"))
from test_predict import made_up_table, parts

from autocompress.space import build_space, load_space_spec
from autocompress.strategy.costs import PointCosts
from autocompress.target.predict import Predictor

RULES = {
    "channel_step": 4,
    "pruning": [{"ratios": [0, 0.25, 0.5, 0.75, 1]}],
    "precision": [{"weights": ["float", 8, 4, 2]}],
    "sparsity": [{"levels": [0, 0.5]}],
}


@pytest.mark.parametrize("kind", ["resnet", "separable", "grouped", "mlp"])
def test_estimates_of_points_are_those_of_their_policies(kind: str) -> None:
    _, structure, graph = parts(kind)
    space = build_space(load_space_spec(RULES), structure)
    predictor = Predictor(made_up_table(graph), structure, graph)
    predictor.observe(space.policy(space.level(0.5)), 0.4)
    costs = PointCosts(space, structure, predictor, reference_ms=2.0)
    points = np.random.default_rng(0).integers(0, [len(d.choices) for d in space.decisions], (25, len(space.decisions)))
    names = [decision.name for decision in space.decisions]
    estimates = [predictor.estimate(space.policy(dict(zip(names, point.tolist(), strict=True)))) for point in points]
    assert costs.latency_ms(points) == pytest.approx([2 * one.latency_ratio for one in estimates])
    assert costs.size_bytes(points) == pytest.approx([one.size_bytes for one in estimates], rel=0.01, abs=8)


def test_zeros_shrink_only_the_compressed_size() -> None:
    _, structure, graph = parts("mlp")
    space = build_space(load_space_spec({"precision": [{"weights": [8]}], "sparsity": [{"levels": [0, 0.5, 0.9]}]}), structure)
    costs = PointCosts(space, structure, Predictor(made_up_table(graph), structure, graph), 1.0)
    points = np.array([[i] * len(space.decisions) for i in range(3)])
    sizes, compressed = costs.size_bytes(points), costs.compressed_bytes(points)
    assert len(set(sizes)) == 1
    assert (np.diff(compressed) < 0).all()
    assert compressed[2] < 0.3 * sizes[2]
