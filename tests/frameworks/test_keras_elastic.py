"""Keras' elastic model: widths with steps of their own, ranges of the channels that are read."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import keras
import keras_models
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from test_contract import SETTINGS, KerasCases, random_policies, silent

import autocompress as ac
from autocompress.frameworks.base import SHARED_GRADIENT_NORM, Candidate
from autocompress.frameworks.keras import elastic as elastic_module
from autocompress.frameworks.keras.elastic import NO_GROUP_CAN_BE_THIN, Elastic
from autocompress.frameworks.keras.elastic_layers import WIDTHS
from autocompress.frameworks.keras.optimize import highest_shared_rate
from autocompress.frameworks.keras.shared import MOST_STEPS_OF_HEIRS
from autocompress.frameworks.keras.simulate import input_ranges
from autocompress.frameworks.schedule import SGD_RATE

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


def share(task: ac.Task) -> Any:
    return CASES.framework.share(task, "l2", SETTINGS)


def step_of(model: keras.Model) -> Any:
    """A compiled step: outputs in training mode, and the gradients of all that learns."""
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function
    def step(images: Any) -> list[Any]:
        outputs = model(images, training=True)
        return [outputs, *map(tf.convert_to_tensor, tf.gradients(tf.reduce_sum(outputs**2), variables))]

    return step


ATTENTION = "attention"
THIN = {"grouped": 0, "transposed": 1}
"""How many groups can be thin, where not all can."""


@pytest.mark.parametrize("kind", [*keras_models.CLASSIFIERS, ATTENTION])
def test_the_thin_form_gives_what_the_masked_one_gives(kind: str) -> None:
    task = CASES.again(keras_models.seeded(keras_models.attention_net)) if kind == ATTENTION else CASES.task(kind)
    elastic = elastic_of(share(task))
    assert elastic.pruning.proof.proven
    assert len(elastic.thin_groups) == THIN.get(kind, len(elastic.pruning.proof.proven))
    assert elastic.masked_because == (None if elastic.thin_groups else NO_GROUP_CAN_BE_THIN)
    step, images = step_of(elastic.model), CASES.first_digits(8)[0]
    for policy in random_policies(CASES, task, 4):
        elastic.obey(policy)
        expected = step(images)
        elastic.obey(random_policies(CASES, task, 1)[0])  # of which nothing may stay silent
        elastic.obey(policy, thin=True)
        for found, wanted in zip(step(images), expected, strict=True):
            assert np.abs(found - wanted).max() <= 1e-4 * max(np.abs(wanted).max(), 1)


@pytest.mark.parametrize("kind", keras_models.CLASSIFIERS)
def test_a_candidate_is_handed_what_the_elastic_model_has_by_now(kind: str) -> None:
    task = CASES.task(kind)
    training = share(task)
    for policy in random_policies(CASES, task, 2):
        heir = training.candidate(policy)
        for variable in training.elastic.model.trainable_variables:
            variable.assign(variable * 1.1)
        training.elastic.hand_over(heir)
        found, expected = (one.model.get_weights() for one in (heir, training.candidate(policy)))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_batch_norms_of_the_thin_form_learn_of_the_channels_that_are_kept() -> None:
    elastic = elastic_of(share(CASES.task("conv")))
    norm = next(layer for layer in elastic.model._flatten_layers() if isinstance(layer, layers.BatchNormalization))
    before, policy = norm.moving_mean.numpy(), ac.Policy({"conv1": 0.5})
    elastic.obey(policy, thin=True)
    step_of(elastic.model)(CASES.first_digits(8)[0])
    changed = np.flatnonzero(norm.moving_mean.numpy() != before)
    kept = np.setdiff1d(np.arange(len(before)), elastic.removed(policy)["conv1"])
    np.testing.assert_array_equal(changed, kept)


@keras.saving.register_keras_serializable("tests")
class Averaged(layers.Layer):
    """Has to know how many channels there are when it is traced.

    Args:
        otherwise: what it takes for their number where it is open; None to fail.
    """

    def __init__(self, otherwise: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.otherwise = otherwise

    def call(self, value: Any) -> Any:
        """The value in units of the mean of its channels, which is what it is however many of them are silent."""
        count = value.shape[-1] or self.otherwise
        return value * (0.5 * int(count) / int(value.shape[-1] or 16))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "otherwise": self.otherwise}


@pytest.mark.parametrize(
    ("otherwise", "reason"), [(None, ": Exception encountered when calling Averaged.call()"), (3, "something else")]
)
def test_a_model_that_has_to_know_its_sizes_is_only_masked(otherwise: int | None, reason: str) -> None:
    images = keras_models.image()
    value = Averaged(otherwise)(layers.ReLU()(keras_models.conv(16, 3, "conv")(images)))
    training = share(keras_models.small_task(keras.Model(images, keras_models.classified(value))))
    assert training.elastic.pruning.proof.proven
    assert not training.elastic.thin_groups
    assert reason in training.masked_because
    training.begin(20)
    training.epoch(cycle([ac.Policy({"conv": 0.5})]), silent)
    assert np.isfinite(training.elastic.model(CASES.first_digits(8)[0])).all()


def masked_sequence() -> keras.Model:
    """Rows of an image of which empty ones do not count, also in its batch norm."""
    images = keras_models.image()
    value = layers.Dense(16, name="wide")(layers.Masking()(layers.Reshape((8, 8))(images)))
    value = layers.GlobalAveragePooling1D()(layers.ReLU()(layers.BatchNormalization()(value)))
    return keras.Model(images, layers.Dense(10, name="fc")(value))


def test_a_batch_norm_with_a_mask_trains_masked() -> None:
    training = share(keras_models.small_task(keras_models.seeded(masked_sequence)))
    training.begin(20)
    training.epoch(cycle([ac.Policy({"wide": 0.5})] if training.elastic.pruning.proof.proven else [ac.Policy()]), silent)
    assert np.isfinite(training.elastic.model(CASES.first_digits(8)[0])).all()


def test_what_thin_steps_have_trained_is_inherited_and_goes_on_in_the_masked_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, policy = CASES.task("resnet"), ac.Policy({"block1_conv1": 0.5}, {"block1_conv1": ac.LayerPolicy(8, 8)})
    thin = share(task)
    monkeypatch.setattr(elastic_module, "can_be_thin", lambda: False)
    masked = share(task)
    assert thin.elastic.thin_groups
    assert thin.masked_because is None
    assert not masked.elastic.thin_groups
    assert "for a CPU" in masked.masked_because
    for training in (thin, masked):
        training.begin(20)
    thin.epoch(cycle([policy]), silent)
    thin.save(tmp_path / "checkpoint")
    masked.load(tmp_path / "checkpoint")
    inputs = CASES.first_digits(8)[:1]
    found = [CASES.outputs(training.candidate(policy).model, inputs)[0] for training in (thin, masked)]
    np.testing.assert_array_equal(*found)
    elastic_of(thin).obey(policy)
    np.testing.assert_allclose(found[0], CASES.outputs(elastic_of(thin).model, inputs)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("epochs", "is_thin"), [(20, True), (1, False)])
def test_the_steps_of_a_long_shared_training_are_thin(epochs: int, is_thin: bool) -> None:
    training = share(CASES.task("conv"))
    training.begin(epochs)
    found: list[bool] = []
    obey = training.elastic.obey
    training.elastic.obey = lambda policy, thin: (found.append(thin), obey(policy, thin=thin))
    training.epoch(cycle([ac.Policy({"conv1": 0.5})]), silent)
    assert set(found) == {is_thin}


def test_features_are_compared_at_full_size() -> None:
    training = CASES.framework.share(CASES.task("conv"), "l2", replace(SETTINGS, feature_distillation=1.0))
    assert not training.elastic.thin_groups
    assert "features" in training.masked_because
    training.begin(20)
    training.epoch(cycle([ac.Policy({"conv1": 0.5})]), silent)


def test_an_epoch_goes_on_with_the_step_that_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    training = share(CASES.task("conv"))
    training.begin(20)
    monkeypatch.setattr(tf.random, "set_seed", lambda seed: pytest.fail("TensorFlow would prepare all steps anew"))
    drawn = []
    for _ in range(2):
        training.epochs = 0
        training.epoch(cycle([ac.Policy({"conv1": 0.5})]), silent)
        drawn.append((np.random.random(), random.random()))
    assert drawn[0] == drawn[1]


SGD, ADAM = keras.optimizers.SGD, keras.optimizers.Adam


@pytest.mark.parametrize(
    ("compiled", "optimizer", "named", "highest"),
    [
        (None, None, None, 0.1),
        (None, None, 0.003, 0.01),
        (SGD, None, 0.03, 0.1),
        (SGD, None, 0.2, 0.2),
        (SGD, None, None, 0.5),
        (ADAM, None, 0.003, 0.003),
        (ADAM, None, 0.0005, 0.001),
        (keras.optimizers.AdamW, None, 0.001, 0.002),
        (keras.optimizers.RMSprop, None, 0.001, 0.001),
        (SGD, lambda variables: SGD(0.5), 0.03, 0.03),
    ],
)
def test_a_shared_training_has_a_higher_rate(
    compiled: Any, optimizer: Any, named: float | None, highest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elastic_module, "can_be_thin", lambda: False)  # whether it computes what it should takes seconds
    model = keras_models.build("resnet")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if compiled is not None:
        model.compile(compiled(0.5), loss)
    task = keras_models.small_task(model, loss=None if compiled else loss, optimizer=optimizer)
    training = CASES.framework.share(task, "l2", replace(SETTINGS, learning_rate=named))
    training.begin(20)
    assert training.trainer.rates.highest == pytest.approx(highest)


@pytest.mark.parametrize(("named", "highest"), [(None, 0.0014), (0.0005, 0.0007)])
def test_without_batch_norms_the_rate_is_lower(named: float | None, highest: float) -> None:
    task = keras_models.small_task(keras_models.build("mlp"), loss="sparse_categorical_crossentropy")
    assert highest_shared_rate(task, task.model, named) == pytest.approx(highest)


HALF = ac.Policy({"block1_conv1": 0.5}, {"block1_conv1": ac.LayerPolicy(8, 8)})
HALF_OF_4_BITS = ac.Policy({"block1_conv1": 0.5}, {"block1_conv1": ac.LayerPolicy(4), "block1_conv2": ac.LayerPolicy(8, 8)})


@pytest.fixture(scope="module")
def compiled() -> Any:
    """A shared training of a trained model whose compiled step has taken no step yet."""
    training = share(keras_models.small_task(keras_models.resnet(), batch_size=8))
    training.begin(20)
    assert training.elastic.thin_groups
    return training


def numbers_of(training: Any) -> list[Any]:
    return [variable.numpy() for variable in training._variables().values()]


class Counted:
    """A function, and how often it was called."""

    def __init__(self, function: Any) -> None:
        self.function, self.count = function, 0

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        return self.function(*arguments)


def learned_of(model: keras.Model) -> Any:
    return np.concatenate([variable.numpy().ravel() for variable in model.trainable_variables])


@pytest.mark.parametrize("policy", [HALF, HALF_OF_4_BITS])
def test_an_heir_becomes_in_the_elastic_model_what_it_becomes_by_itself(
    compiled: Any, policy: ac.Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, epochs=2, learning_rate=0.02, gradient_norm=SHARED_GRADIENT_NORM)
    before, weights, ranges = numbers_of(compiled), [], []
    monkeypatch.setattr(compiled, "tune", counted := Counted(compiled.tune))
    for heir_of, seed in ((None, 0), (compiled, 0), (None, 1)):
        heir = compiled.candidate(policy)
        CASES.framework.fine_tune(compiled.task, heir, replace(settings, seed=seed), silent, heir_of)
        weights.append(learned_of(heir.model))
        ranges.append([high for _, high in input_ranges(heir.model).values()])
    assert counted.count == 1
    np.testing.assert_allclose(*ranges[:2], rtol=0.2)
    apart, by_another_order = (np.linalg.norm(other - weights[0]) for other in weights[1:])
    assert apart < 0.25 * by_another_order  # values that lie between two levels round either way
    for found, expected in zip(numbers_of(compiled), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_training_of_an_heir_that_is_broken_off_leaves_the_shared_one_as_it_was(compiled: Any) -> None:
    def broken_off(fraction: float) -> None:
        raise KeyboardInterrupt

    before = numbers_of(compiled)
    with pytest.raises(KeyboardInterrupt):
        compiled.tune(compiled.candidate(HALF), SETTINGS, broken_off)
    for found, expected in zip(numbers_of(compiled), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_rate_of_an_heir_is_its_own_and_not_what_the_shared_training_ended_with(compiled: Any) -> None:
    compiled.trainer.student.optimizer.learning_rate = 0.0
    own = compiled.trainer.renewed(replace(SETTINGS, learning_rate=None)).rates.highest
    assert own == pytest.approx(SGD_RATE)
    assert compiled.trainer.renewed(replace(SETTINGS, learning_rate=0.5)).rates.highest == 0.5


@pytest.mark.parametrize(
    ("policy", "changed"),
    [
        (HALF, {"epochs": MOST_STEPS_OF_HEIRS // 8 + 1}),
        (HALF, {"epochs": 4, "stop_hopeless": True}),
        (HALF, {"epochs": 10, "pruning_schedule": "linear"}),
        (HALF, {"distillation": 0.25}),
        (ac.Policy({"block1_conv1": 1.0}), {}),
        (ac.Policy({}, {"block1_conv1": ac.LayerPolicy(8, sparsity=0.5)}), {}),
        (ac.Policy({}, {"block1_conv1": ac.LayerPolicy(1)}), {}),
        (ac.Policy({}, {"block1_conv1": ac.LayerPolicy(8, 4)}), {}),
    ],
)
def test_what_the_elastic_model_would_train_otherwise_is_trained_by_itself(
    compiled: Any, policy: ac.Policy, changed: dict[str, Any]
) -> None:
    assert compiled.can_tune(Candidate(None, HALF, {}), SETTINGS)
    assert not compiled.can_tune(Candidate(None, policy, {}), replace(SETTINGS, **changed))


@pytest.mark.parametrize(
    ("epochs", "options", "can"),
    [
        (20, {}, True),
        (1, {}, False),
        (20, {"callbacks": list}, False),
        (20, {"scheduler": lambda optimizer, steps: lambda step: 1e-3}, False),
        (20, {"optimizer": lambda variables: keras.optimizers.Adam(1e-3)}, True),
        (20, {"optimizer": lambda variables: keras.optimizers.Lamb(1e-3)}, False),
    ],
)
def test_heirs_are_trained_by_themselves_where_the_elastic_model_cannot(epochs: int, options: Any, can: bool) -> None:
    training = share(keras_models.small_task(keras_models.build("conv"), **options))
    training.begin(epochs)
    assert training.can_tune(Candidate(None, ac.Policy({"conv1": 0.5}), {}), SETTINGS) is can
