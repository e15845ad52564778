"""SGD by TensorFlow's own operation is that of Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from autocompress.frameworks.keras.optimize import FusedSGD, _like

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "decay and clipping": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "global_clipnorm": 0.5},
    "average": {"momentum": 0.9, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
}


def trained(kind: type[keras.optimizers.Optimizer], eagerly: bool, options: dict[str, Any]) -> list[Any]:
    """All variables after some steps of a model that has an embedding, whose gradients are sparse."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,), dtype="int32")
    outputs = layers.Dense(2)(layers.Flatten()(layers.Embedding(7, 3)(inputs)))
    model = keras.Model(inputs, outputs)
    optimizer = kind(0.1, **options)
    model.compile(optimizer, "mse", run_eagerly=eagerly, jit_compile=False)
    generator = np.random.default_rng(0)
    model.fit(generator.integers(0, 7, (32, 5)), generator.normal(size=(32, 2)), 8, epochs=2, shuffle=False, verbose=0)
    return [variable.numpy() for variable in (*model.variables, *optimizer.variables)]


@pytest.mark.parametrize("eagerly", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_a_fused_step_is_that_of_keras(options: dict[str, Any], eagerly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own, calls = tf.raw_ops.ResourceApplyKerasMomentum, []
    monkeypatch.setattr(tf.raw_ops, "ResourceApplyKerasMomentum", lambda **given: calls.append(own(**given)))
    expected = trained(keras.optimizers.SGD, eagerly, options)
    for fused, plain in zip(trained(FusedSGD, eagerly, options), expected, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=1e-5, atol=1e-6)
    assert bool(calls) == ("momentum" in options)


def test_only_keras_own_sgd_is_replaced() -> None:
    class Own(keras.optimizers.SGD):
        pass

    kinds = (keras.optimizers.SGD, Own, keras.optimizers.Adam)
    assert [type(_like(kind(0.1), None, 1.0, keeps_schedule=True)) for kind in kinds] == [FusedSGD, Own, keras.optimizers.Adam]
