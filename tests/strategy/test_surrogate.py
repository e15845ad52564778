"""The regression finds what generated the data, trusts sensitivities as far as they are right, and knows its limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from autocompress.decision import Decision
from autocompress.strategy.damages import blended, generic_damages, probed_damages
from autocompress.strategy.surrogate import Features, Sample, Scale, Surrogate, best_belief

DECISIONS = [Decision("prune", f"l{i}", (0.0, 0.25, 0.5, 0.75)) for i in range(6)]
DECISIONS += [Decision("bits", f"l{i}", (("float", "float"), (8, 8), (4, 8))) for i in range(6)]
SCALE = Scale(0.9, 0.1)
GENERIC = generic_damages(DECISIONS)
Points = NDArray[np.int64]


def points_of(count: int, seed: int = 0) -> Points:
    return np.random.default_rng(seed).integers(0, [len(d.choices) for d in DECISIONS], (count, len(DECISIONS)))


def truth(points: Points, strengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """z of independent damages, with a strength for each decision."""
    return sum(s * GENERIC[i][points[:, i]] for i, s in enumerate(strengths)) * 0.3


def fitted(points: Points, z: NDArray[np.float64], alternatives: list[Features], noise: float | None = None) -> Surrogate:
    seen = sample(points, z)
    return Surrogate(best_belief(alternatives, seen), seen, noise)


def sample(points: Points, z: NDArray[np.float64], is_apart: NDArray[np.bool_] | None = None) -> Sample:
    """Observations of one fidelity, or of two."""
    apart = np.empty((len(points), 0)) if is_apart is None else is_apart[:, None].astype(float)
    return Sample(points, z, np.exp(-z), apart)


def test_a_gain_and_its_z_are_the_same_thing() -> None:
    gains = np.array([0.9, 0.5, 0.3])
    assert 0.1 + 0.8 * np.exp(-SCALE.z(gains)) == pytest.approx(gains)
    assert np.isfinite(SCALE.z(np.array([0.0, 0.1])).max())


def test_unseen_policies_are_predicted() -> None:
    draw = np.random.default_rng(1)
    strengths = draw.lognormal(0, 0.7, len(DECISIONS))
    seen, unseen = points_of(60), points_of(200, 1)
    z = truth(seen, strengths) + draw.normal(0, 0.003, 60)
    mean, spread = fitted(seen, z, [Features(DECISIONS, GENERIC)]).predict(unseen)
    wanted = truth(unseen, strengths)
    assert np.corrcoef(mean, wanted)[0, 1] > 0.95
    assert np.mean(np.abs(mean - wanted) < 2 * spread) > 0.85


def test_right_sensitivities_are_trusted_and_wrong_ones_are_not() -> None:
    draw = np.random.default_rng(2)
    strengths = draw.lognormal(0, 1, len(DECISIONS))
    seen = points_of(40)
    z = truth(seen, strengths) + draw.normal(0, 0.003, 40)
    right = {d.name: list(5 * s * g) for d, s, g in zip(DECISIONS, strengths, GENERIC, strict=True)}
    wrong = {d.name: list(s * g) for d, s, g in zip(DECISIONS, draw.permutation(strengths) ** 3, GENERIC, strict=True)}
    for probes, trusted in ((right, 1.0), (wrong, 0.0)):
        trusts = (0.0, 1.0)
        alternatives = [Features(DECISIONS, blended(GENERIC, probed_damages(DECISIONS, probes), trust)) for trust in trusts]
        belief = best_belief(alternatives, sample(seen, z))
        assert trusts[alternatives.index(belief.features)] == trusted


def test_nothing_observed_means_the_belief_and_a_wide_spread() -> None:
    mean, spread = fitted(points_of(0), np.empty(0), [Features(DECISIONS, GENERIC)]).predict(points_of(5))
    assert mean == pytest.approx(np.zeros(5))
    assert (spread > 0.1).all()


def test_a_repeated_policy_is_between_its_average_and_the_regression() -> None:
    draw = np.random.default_rng(3)
    seen = points_of(40)
    z = truth(seen, np.ones(len(DECISIONS))) + draw.normal(0, 0.02, 40)
    z[0] += 0.2  # an outlier
    surrogate = fitted(seen, z, [Features(DECISIONS, GENERIC)])
    once, often = (surrogate.mean_at(sample(seen[:1], z[:1]), np.array([float(count)]))[0] for count in (1, 50))
    assert surrogate.predict(seen[:1])[0][0] < once < often < z[0]


def test_noise_that_is_known_to_be_all_leaves_nothing_to_the_policy_itself() -> None:
    seen = points_of(40)
    z = truth(seen, np.ones(len(DECISIONS))) + np.random.default_rng(0).normal(0, 0.02, 40)
    surrogate = fitted(seen, z, [Features(DECISIONS, GENERIC)], noise=1.0)
    assert surrogate.mean_at(sample(seen, z), np.ones(40)) == pytest.approx(surrogate.predict(seen)[0])


LACKS = 0.04
"""z that a model of the lower fidelity has for want of training."""


def two_fidelities(noise: float, lower_noise: float) -> tuple[Sample, NDArray[np.float64]]:
    """Policies that take the last decision are of the higher fidelity, as few others are; and what all of them have at that."""
    draw = np.random.default_rng(4)
    points = points_of(80)
    wanted = truth(points, draw.lognormal(0, 0.7, len(DECISIONS)))
    is_apart = (points[:, -1] == 0) & (draw.random(80) < 0.8)
    z = wanted + np.where(is_apart, LACKS + draw.normal(0, lower_noise, 80), draw.normal(0, noise, 80))
    return sample(points, z, is_apart), wanted


@pytest.mark.parametrize("lower_noise", [0.003, 0.02])
def test_what_less_training_costs_is_learned_and_not_taken_for_damage(lower_noise: float) -> None:
    seen, wanted = two_fidelities(0.003, lower_noise)
    features = [Features(DECISIONS, GENERIC)]
    belief = best_belief(features, seen)
    assert (belief.noise_ratio > 1) == (lower_noise > 0.003)
    as_one = sample(seen.points, seen.z)
    mixed = Surrogate(best_belief(features, as_one), as_one, None).mean_at(as_one, np.ones(80)) - wanted
    error = Surrogate(belief, seen, None).mean_at(seen, np.ones(80)) - wanted
    assert np.abs(error[seen.is_apart]).mean() < 0.4 * np.abs(mixed[seen.is_apart]).mean()


def test_ruined_models_that_were_trained_further_say_little_of_the_others() -> None:
    draw = np.random.default_rng(5)
    points = points_of(40)
    z = truth(points, np.ones(len(DECISIONS))) + draw.normal(0, 0.003, 40)
    ruined = np.array([len(d.choices) - 1 for d in DECISIONS])
    seen = sample(np.vstack([points, [ruined] * 3]), np.append(z, [1.0] * 3), np.arange(43) >= 40)
    features = [Features(DECISIONS, GENERIC)]
    belief = best_belief(features, seen)
    assert belief.noise_ratio == 1  # three are too few to tell
    unseen = points_of(100, 1)
    error = Surrogate(belief, seen, None).predict(unseen)[0] - truth(unseen, np.ones(len(DECISIONS)))
    assert abs(error.mean()) < 0.005


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.0]))
def test_damages_of_a_space_are_finite_and_on_one_scale(seed: int, trust: float) -> None:
    draw = np.random.default_rng(seed)
    probes = {d.name: list(draw.lognormal(0, 3, len(d.choices))) for d in DECISIONS[::2]}
    probes[DECISIONS[0].name][1] = float("nan")
    found = blended(GENERIC, probed_damages(DECISIONS, probes), trust)
    assert sum(float(one.mean()) for one in found) == pytest.approx(1)
    assert all(one[0] == 0 and (one >= 0).all() and np.isfinite(one).all() for one in found)


def test_what_a_probe_says_of_a_whole_branch_is_not_believed() -> None:
    branch = [Decision("prune", "branch", (0.0, 0.5, 1.0)), DECISIONS[0]]
    (of_branch, of_other) = probed_damages(branch, {"prune:branch": [0.0, 0.1, 30.0], "prune:l0": [0.0, 0.1, 0.2, 0.4]})
    assert np.isnan(of_branch).tolist() == [False, False, True]
    assert of_other[3] == pytest.approx(0.4)
