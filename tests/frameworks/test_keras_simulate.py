"""The simulation in Keras: the same numbers and gradients as PyTorch's, and a plain model at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

keras = pytest.importorskip("keras")
keras_models = pytest.importorskip("keras_models")

import autocompress as ac  # noqa: E402
from autocompress.data import MERGED  # noqa: E402
from autocompress.frameworks.keras import reestimate  # noqa: E402
from autocompress.frameworks.keras.calls import call  # noqa: E402
from autocompress.frameworks.keras.graph import functional, heavy_layers  # noqa: E402
from autocompress.frameworks.keras.inputs import SimulatedInput  # noqa: E402
from autocompress.frameworks.keras.kernels import kernel_axes  # noqa: E402
from autocompress.frameworks.keras.resting import predicted  # noqa: E402
from autocompress.frameworks.keras.simulate import Simulated, input_ranges, set_progress, settle, simulate  # noqa: E402
from autocompress.frameworks.keras.weights import SimulatedWeight  # noqa: E402
from autocompress.frameworks.torch.inputs import SimulatedInput as TorchInput  # noqa: E402
from autocompress.frameworks.torch.weights import SimulatedWeight as TorchWeight  # noqa: E402
from autocompress.policy import LayerPolicy  # noqa: E402

LAYERS = {
    "conv": (keras.layers.Conv2D(6, 3), (1, 8, 8, 8)),
    "depthwise": (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), (1, 8, 8, 8)),
    "transposed": (keras.layers.Conv2DTranspose(6, 3), (1, 8, 8, 8)),
    "dense": (keras.layers.Dense(6), (1, 8)),
    "einsum": (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (1, 5, 8)),
}
POLICIES = [
    LayerPolicy(8, 8),
    LayerPolicy(7, 8),
    LayerPolicy(4, 8),
    LayerPolicy(2, 8, 0.5),
    LayerPolicy(1, 1),
    LayerPolicy(1, 1, 0.5),
    LayerPolicy(sparsity=0.5),
    LayerPolicy(8, 8, pattern="2:4"),
]


def gradients(function: Any, *values: Any) -> tuple[Any, list[Any]]:
    """A function's value, and the gradients of the sum of its cubes."""
    import tensorflow as tf

    tensors = [tf.constant(value) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
        total = tf.reduce_sum(value**3)
    return value.numpy(), [gradient.numpy() for gradient in tape.gradient(total, tensors)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_kernel_is_deployed_as_pytorch_deploys_it(kind: str, policy: LayerPolicy) -> None:
    layer, shape = LAYERS[kind]
    if not layer.built:
        layer.build(shape)
    axes = kernel_axes(layer)
    kernel = np.random.default_rng(0).normal(size=axes.shape).astype(np.float32)
    mine = SimulatedWeight(policy, axes)
    mine.start(kernel)
    theirs = TorchWeight(torch.tensor(axes.rows(kernel)), policy, axis=0)
    value, (gradient,) = gradients(mine, kernel)
    rows = torch.tensor(axes.rows(kernel), requires_grad=True)
    expected = theirs(rows)
    (expected**3).sum().backward()
    np.testing.assert_allclose(axes.rows(value), expected.detach().numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(axes.rows(gradient), rows.grad.numpy(), rtol=1e-5, atol=1e-6)
    if policy.weights != "float":
        np.testing.assert_array_equal(mine.codes(kernel), theirs.codes(torch.tensor(axes.rows(kernel))).numpy())


def test_a_learned_step_has_pytorchs_gradient() -> None:
    import tensorflow as tf

    layer, _ = LAYERS["conv"]
    if not layer.built:
        layer.build(LAYERS["conv"][1])
    axes = kernel_axes(layer)
    kernel = np.random.default_rng(0).normal(size=axes.shape).astype(np.float32)
    mine = SimulatedWeight(LayerPolicy(4, 8), axes)
    mine.start(kernel)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(mine(tf.constant(kernel)) ** 3)
    gradient = tape.gradient(total, mine.factor.value)
    theirs = TorchWeight(torch.tensor(axes.rows(kernel)), LayerPolicy(4, 8), axis=0)
    (theirs(torch.tensor(axes.rows(kernel))) ** 3).sum().backward()
    assert theirs.factor is not None
    np.testing.assert_allclose(gradient.numpy().reshape(-1), theirs.factor.grad.numpy().reshape(-1), rtol=1e-4)


@pytest.mark.parametrize("low", [0.0, -0.7])
@pytest.mark.parametrize("bits", [8, 4, 1])
def test_an_input_is_quantized_as_in_pytorch(bits: int, low: float) -> None:
    generator = np.random.default_rng(0)
    batches = [np.maximum(generator.normal(size=(16, 5, 3)), low).astype(np.float32) for _ in range(4)]
    mine, theirs = SimulatedInput(bits), TorchInput(bits)
    mine.is_calibrating = theirs.is_calibrating = True
    for batch in batches[:2]:
        mine(batch)
        theirs(torch.tensor(batch))
    mine.is_calibrating = theirs.is_calibrating = False
    mine(batches[2], training=True)
    theirs.train()(torch.tensor(batches[2]))
    value, (gradient,) = gradients(mine, batches[3])
    values = torch.tensor(batches[3], requires_grad=True)
    expected = theirs.eval()(values)
    (expected**3).sum().backward()
    assert mine.bounds == pytest.approx(theirs.bounds, rel=1e-5)
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, values.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_what_is_not_a_number_stays_so() -> None:
    quantizer, value = SimulatedInput(8), np.ones((4, 1001), np.float32)
    quantizer.is_calibrating = True
    quantizer(value)
    quantizer.is_calibrating = False
    value[1, ::100] = np.nan
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(quantizer(value)), value)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_gradients_pass_inside_of_a_range_of_8_bits(low: float) -> None:
    quantizer = SimulatedInput(8)
    quantizer.is_calibrating = True
    quantizer(np.array([[low, 1.0]], np.float32))
    quantizer.is_calibrating = False
    lowest, highest = quantizer.bounds
    values = np.array([[lowest - 0.1, lowest + 1e-3, highest - 1e-3, highest + 0.1]], np.float32)
    found, (gradient,) = gradients(quantizer, values)
    np.testing.assert_allclose(found, np.clip(values, lowest, highest), atol=(highest - lowest) / 255)
    assert (gradient != 0).tolist() == [[False, bool(found[0, 1]), True, False]]  # that of a cube is zero at zero


def test_zeros_grow_and_binary_weights_wait() -> None:
    model = simulate(keras_models.build("conv"), ac.Policy({}, {"conv2": LayerPolicy(4, 8, 0.8), "fc": LayerPolicy(1, 1)}))
    layers = {layer.name: layer for layer in model.layers if isinstance(layer, Simulated)}
    shares, binary = [], []
    for fraction in (0.0, 0.1, 0.3, 1.0):
        set_progress(model, fraction)
        shares.append(float(np.mean(layers["conv2"].weight.mask.numpy() == 0)))
        kernel = layers["fc"].weight(layers["fc"].layer.kernel.value)
        binary.append(len(np.unique(np.abs(kernel.numpy()).round(6))) == 10)
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.8, abs=0.01)
    assert binary == [False, False, False, True]


@pytest.mark.parametrize("kind", ["separable", "transposed", "shared"])
def test_a_settled_model_is_plain_and_gives_the_simulations_outputs(kind: str, tmp_path: Path) -> None:
    original = keras_models.build(kind)
    policy = ac.Policy({}, {name: LayerPolicy(4, sparsity=0.5) for name in heavy_layers(original)})
    model = simulate(original, policy)
    plain, grids = settle(model)
    images = keras_models.digits()["valid"][0][:8]
    np.testing.assert_allclose(predicted(plain, [(images,)])[0], predicted(model, [(images,)])[0], rtol=1e-5, atol=1e-6)
    assert grids.keys() == policy.layers.keys()
    plain.save(tmp_path / "plain.keras")
    with keras.saving.custom_object_scope({}):
        again = keras.saving.load_model(tmp_path / "plain.keras")
    assert not [layer for layer in again._flatten_layers() if type(layer).__module__.startswith("autocompress")]


def test_a_simulated_model_is_saved_and_loaded_by_keras(tmp_path: Path) -> None:
    model = simulate(keras_models.build("conv"), ac.Policy({}, {"conv2": LayerPolicy(4, 4, 0.5), "fc": LayerPolicy(1, 1)}))
    images = keras_models.digits()["valid"][0][:8]
    for layer in model.layers:
        if isinstance(layer, Simulated):
            layer.input_quantizer.is_calibrating = True
    predicted(model, [(images,)])
    for layer in model.layers:
        if isinstance(layer, Simulated):
            layer.input_quantizer.is_calibrating = False
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predicted(again, [(images,)])[0], predicted(model, [(images,)])[0])


@pytest.mark.parametrize("samples", [40, 56, 70])
@pytest.mark.parametrize("activations", [8, 4])
def test_merged_batches_give_the_same_ranges(activations: int, samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).standard_normal((samples, 4, 4, 3)).astype(np.float32)
    images *= np.linspace(1, 9, samples).reshape(-1, 1, 1, 1)
    images += np.linspace(-9, 9, samples, dtype=np.float32).reshape(-1, 1, 1, 1)  # some batches lie above zero
    layers = [keras.layers.Conv2D(5, 3, name="conv"), keras.layers.Flatten(), keras.layers.Dense(1, name="dense")]
    model = keras.Sequential([keras.Input((4, 4, 3)), *layers])
    data = (images, images[:, 0, 0, :1])
    task = ac.Task(model, train=data, valid=data, batch_size=10, metric="mse")
    bounds, calls = [], []
    for most in (1, 3):
        monkeypatch.setattr("autocompress.data.MERGED", most)
        layer = LayerPolicy(8, activations)
        simulated = simulate(functional(model, (images[:1],)), ac.Policy({}, dict.fromkeys(("conv", "dense"), layer)))

        def counted(*given: Any, most: int = most) -> Any:
            calls.append(most)
            return call(*given)

        monkeypatch.setattr(reestimate, "call", counted)
        reestimate.calibrate_ranges(task, simulated)
        bounds.append([found for pair in input_ranges(simulated).values() for found in pair])
    np.testing.assert_allclose(*bounds, rtol=1e-6)
    assert calls.count(3) < calls.count(1)


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_of_a_larger_model_do_not_spoil_the_first_ranges(frozen: bool) -> None:
    task = keras_models.small_task(keras_models.conv_net())
    model = simulate(task.model, ac.Policy({}, dict.fromkeys(("conv1", "conv2", "fc"), LayerPolicy(8, 8))))
    norms = [model.get_layer(name) for name in ("bn1", "bn2")]
    for norm in norms:
        norm.moving_variance.assign(np.full(norm.moving_variance.shape, 1e-30))
    norms[1].trainable = not frozen
    reestimate.calibrate_ranges(task, model, trains=True)
    highest = {name: high for name, (_, high) in input_ranges(model).items()}
    assert highest["conv2"] < 8
    assert (highest["fc"] > 8) == frozen
    assert (float(keras.ops.max(norms[1].moving_variance)) < 1e-20) == frozen


def test_merged_batches_give_the_same_outputs_and_better_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).standard_normal((60, 4, 4, 3)).astype(np.float32) + 1
    conv, norm = keras.layers.Conv2D(5, 3), keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((4, 4, 3)), conv, norm])
    task = ac.Task(model, train=(images, images[:, 0, 0, :1]), valid=(images, images[:, 0, 0, :1]), batch_size=10, metric="mse")
    outputs, means, variances = [], [], []
    for most in (1, MERGED):
        monkeypatch.setattr("autocompress.data.MERGED", most)
        outputs += predicted(model, [(images[i : i + 10],) for i in range(0, 60, 10)])
        reestimate.reestimate_batch_norm(model, task)
        means.append(keras.ops.convert_to_numpy(norm.moving_mean))
        variances.append(keras.ops.convert_to_numpy(norm.moving_variance))
        norm.moving_mean.assign(np.zeros(5))
        norm.moving_variance.assign(np.ones(5))
    whole = keras.ops.convert_to_numpy(conv(images)).var((0, 1, 2))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    np.testing.assert_allclose(means[0], means[1], atol=1e-5)
    assert (variances[0] <= variances[1] + 1e-5).all()  # what small batches miss lies between their means
    assert (variances[1] <= whole + 1e-5).all()
