"""Probing: what is scored, kept, and made of it. The network is a formula."""

import math
from pathlib import Path

import pytest

from autocompress.decision import Decision
from autocompress.metrics import METRICS
from autocompress.policy import LayerPolicy, Policy
from autocompress.strategy.sensitivity import Sensitivities, alone, probe

DECISIONS = (
    Decision("prune", "stem", (0.0, 0.25, 0.5)),
    Decision("bits", "head", ((8, 8), (2, 8))),
    Decision("sparsity", "head", (0.0, "2:4")),
)
ACCURACY = METRICS["accuracy"]


class Network:
    """Scores policies and remembers which."""

    def __init__(self) -> None:
        self.scored: list[Policy] = []

    def __call__(self, policy: Policy) -> float:
        self.scored.append(policy)
        lost = policy.pruning.get("stem", 0.0) + (policy.layer("head").weights == 2) * 0.3 + policy.layer("head").sparsity * 0.1
        return 0.9 - lost


def probed(path: Path, score: Network, limit: int = 99) -> Sensitivities:
    left = iter(range(limit))
    return probe(DECISIONS, score, ACCURACY, path / "scores.json", lambda fraction: next(left, None) is not None)


def test_every_choice_is_scored_alone_and_once(tmp_path: Path) -> None:
    network = Network()
    found = probed(tmp_path, network)
    wanted = {Policy(), Policy({"stem": 0.25}), Policy({"stem": 0.5})}
    wanted |= {Policy({}, {"head": layer}) for layer in (LayerPolicy(8, 8), LayerPolicy(2, 8), LayerPolicy(pattern="2:4"))}
    assert set(network.scored) == wanted
    assert len(network.scored) == len(wanted)
    assert found.original == 0.9
    assert found.scores["prune:stem"] == pytest.approx((0.9, 0.65, 0.4))
    assert found.probed == 1


def test_they_are_kept_on_disk(tmp_path: Path) -> None:
    first = probed(tmp_path, Network())
    again = Network()
    assert probed(tmp_path, again).scores == first.scores
    assert again.scored == []


def test_a_probe_that_ended_early_goes_on(tmp_path: Path) -> None:
    part = probed(tmp_path, Network(), limit=2)
    assert 0 < part.probed < 1
    assert any(math.isnan(damage) for damages in part.damages.values() for damage in damages)
    rest = Network()
    assert probed(tmp_path, rest).probed == 1
    assert len(rest.scored) == 3


def test_damages_rise_as_scores_fall() -> None:
    found = Sensitivities(0.9, {"a": (0.9, 0.8, 0.1), "b": (0.95, float("nan"))}, ACCURACY).damages
    assert found["a"][0] == 0
    assert 0 < found["a"][1] < 0.3 < found["a"][2] < math.inf
    assert found["b"][0] == 0  # better than the original by chance
    assert math.isnan(found["b"][1])


def test_damages_of_a_metric_that_is_minimised() -> None:
    found = Sensitivities(1.0, {"a": (1.0, 1.5, 4.0)}, METRICS["mse"]).damages["a"]
    assert found == sorted(found)
    assert found[2] > found[1] > 0


def test_a_candidate_that_cannot_be_built_is_unknown(tmp_path: Path) -> None:
    def score(policy: Policy) -> float:
        if policy.pruning:
            raise RuntimeError("no")
        return 0.9

    found = probe(DECISIONS, score, ACCURACY, tmp_path / "scores.json")
    assert [math.isnan(score) for score in found.scores["prune:stem"]] == [False, True, True]


def test_an_original_that_cannot_be_scored_is_an_error(tmp_path: Path) -> None:
    def score(policy: Policy) -> float:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        probe(DECISIONS, score, ACCURACY, tmp_path / "scores.json")


def test_a_choice_alone_leaves_the_rest() -> None:
    assert alone(DECISIONS[0], 0).is_identity
    assert alone(DECISIONS[1], 1).to_dict() == {"pruning": {}, "layers": {"head": {"weights": 2, "activations": 8}}}
