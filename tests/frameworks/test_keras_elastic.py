"""Keras' elastic model: widths with steps of their own, ranges of the channels that are read."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_contract import SETTINGS, KerasCases, silent

import autocompress as ac
from autocompress.frameworks.base import SHARED_GRADIENT_NORM
from autocompress.frameworks.keras.elastic import Elastic
from autocompress.frameworks.keras.elastic_layers import WIDTHS

CASES = KerasCases()


def elastic_of(training: Any) -> Elastic:
    return training.elastic


@pytest.fixture(scope="module")
def trained() -> Any:
    """A shared training after an epoch under one policy."""
    training = CASES.framework.share(CASES.task("conv"), "l2", SETTINGS)
    training.begin(1)
    training.epoch(cycle([ac.Policy({}, {"conv2": ac.LayerPolicy(4)})]), silent)
    return training


def test_every_width_has_a_step_of_its_own_that_learns(trained: Any) -> None:
    moved = {
        (name, bits)
        for name, (_, weight, _) in elastic_of(trained)._parts.items()
        for bits in WIDTHS
        if (weight.steps(bits)[1] != 1).any()
    }
    assert moved == {("conv2", 4)}


def test_gradients_of_a_shared_training_are_clipped_harder(trained: Any) -> None:
    assert trained.trainer.student.optimizer.global_clipnorm == SHARED_GRADIENT_NORM


def test_a_candidate_goes_on_with_the_learned_steps_of_the_channels_that_it_keeps(trained: Any) -> None:
    policy = ac.Policy({"conv2": 0.5}, {"conv2": ac.LayerPolicy(4)})
    candidate = trained.candidate(policy)
    kept = np.setdiff1d(np.arange(candidate.model.get_layer("conv2").layer.filters * 2), candidate.removed["conv2"])
    learned = elastic_of(trained)._parts["conv2"][1].steps(4)[1]
    np.testing.assert_array_equal(candidate.model.get_layer("conv2").weight.factor.numpy(), learned[..., kept])


def test_a_policy_that_came_with_a_checkpoint_leaves_no_trace_either(trained: Any, tmp_path: Path) -> None:
    elastic, images = elastic_of(trained), CASES.first_digits(8)[0]
    elastic.obey(ac.Policy({"conv1": 0.5}, {"conv2": ac.LayerPolicy(2, 8, 0.5)}))
    trained.save(tmp_path / "checkpoint")
    elastic.obey(ac.Policy())
    expected = elastic.model(images, training=False).numpy()
    trained.load(tmp_path / "checkpoint")
    elastic.obey(ac.Policy())
    np.testing.assert_array_equal(elastic.model(images, training=False).numpy(), expected)


def test_a_policy_leaves_no_trace_in_the_next(trained: Any) -> None:
    elastic, images = elastic_of(trained), CASES.first_digits(8)[0]
    elastic.obey(ac.Policy())
    before = elastic.model(images, training=False).numpy()
    elastic.obey(ac.Policy({"conv1": 0.5}, {"conv2": ac.LayerPolicy(2, 8, 0.5), "fc": ac.LayerPolicy(3, 8)}))
    assert np.abs(elastic.model(images, training=False).numpy() - before).max() > 1e-3
    elastic.obey(ac.Policy())
    np.testing.assert_array_equal(elastic.model(images, training=False).numpy(), before)
