"""The simulation of low bits and zeros against the NumPy grids, and its removal."""

from __future__ import annotations

import copy
import itertools

import models
import numpy as np
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress import grids
from autocompress.frameworks.calibrating import calibrating
from autocompress.frameworks.torch.inputs import SimulatedInput
from autocompress.frameworks.torch.layers import HEAVY
from autocompress.frameworks.torch.simulate import (
    input_ranges,
    set_progress,
    settle,
    share_binary_scales,
    simulate,
    simulated_inputs,
)
from autocompress.frameworks.torch.weights import LEARNED_BITS, SimulatedWeight

IMAGES = models.digits()["valid"][0][:16]
BITS = [8, 7, 4, 3, 2, 1]


def simulated(name: str, layer: ac.LayerPolicy) -> nn.Module:
    """A model with one policy for all its layers, its input ranges seen on one batch."""
    model = models.build(name)
    heavy = {name: layer for name, module in model.named_modules() if isinstance(module, HEAVY)}
    simulate(model, ac.Policy({}, heavy))
    model.train()
    for module in model.modules():
        module.training = isinstance(module, SimulatedInput)  # only these look at the batch
    model(IMAGES)
    return model.eval()


def oracle(weight: np.ndarray, bits: int, sparsity: float, axis: int = 0) -> np.ndarray:
    """The grid in NumPy: zeros first, then codes times steps."""
    kept = weight * grids.largest_magnitudes(weight, sparsity)
    step = grids.steps(kept, bits, axis)
    return grids.quantize(kept, step, bits) * step * (kept != 0 if bits == 1 else 1)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("bits", BITS)
def test_the_simulated_weight_is_the_oracles(bits: int, sparsity: float) -> None:
    weight = torch.randn(12, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    simulation = SimulatedWeight(weight, ac.LayerPolicy(bits, 8, sparsity), axis=0)
    simulated_weight = simulation(weight).detach().numpy()
    np.testing.assert_allclose(simulated_weight, oracle(weight.numpy(), bits, sparsity), rtol=1e-5, atol=1e-7)
    codes = simulation.codes(weight).numpy()
    assert np.abs(codes).max() == grids.largest_code(bits)
    assert np.mean(codes == 0) >= sparsity


@pytest.mark.parametrize("bits", BITS)
def test_a_transposed_convolution_has_a_step_per_output_channel(bits: int) -> None:
    weight = models.build("transposed").up.weight.detach()  # (inputs, outputs, height, width)
    simulation = SimulatedWeight(weight, ac.LayerPolicy(bits, 8), axis=1, input_axis=0)
    simulated_weight = simulation(weight).detach().numpy()
    np.testing.assert_allclose(simulated_weight, oracle(weight.numpy(), bits, 0.0, axis=1), rtol=1e-5, atol=1e-7)
    assert simulation.step(weight).shape == (1, 8, 1, 1)


@pytest.mark.parametrize("bits", [8, 7, 1])
def test_a_wide_grid_and_one_bit_follow_the_weight_while_it_trains(bits: int) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    simulation = SimulatedWeight(weight, ac.LayerPolicy(bits, 8), axis=0)
    torch.testing.assert_close(simulation(3 * weight), 3 * simulation(weight))
    assert torch.equal(simulation.codes(3 * weight), simulation.codes(weight))


@pytest.mark.parametrize("weight", [torch.zeros(4, 3), torch.eye(4)[:, :3], torch.tensor([[1e-20, -1e-20], [1e15, 1.0]])])
def test_weights_of_zero_or_of_extreme_size_stay_finite(weight: torch.Tensor) -> None:
    simulation = SimulatedWeight(weight, ac.LayerPolicy(4, 8), axis=0)
    assert torch.isfinite(simulation(weight)).all()
    assert (simulation(torch.zeros_like(weight)) == 0).all()


@pytest.mark.parametrize("bits", ["float", *BITS])
def test_the_gradient_passes_straight_through_where_a_weight_is_kept(bits: int | str) -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(1)).requires_grad_()
    simulation = SimulatedWeight(weight, ac.LayerPolicy(bits, sparsity=0.4), axis=0)
    upstream = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))
    (simulation(weight) * upstream).sum().backward()
    passed = grids.largest_magnitudes(weight.detach().numpy(), 0.4)
    if bits in LEARNED_BITS:  # a learned step clips
        passed &= (weight.detach() / simulation.clip).abs().numpy() <= grids.largest_code(bits)
    np.testing.assert_allclose(weight.grad.numpy(), upstream.numpy() * passed, rtol=1e-6)


@pytest.mark.parametrize("bits", LEARNED_BITS)
def test_the_gradient_of_a_learned_step_is_the_papers(bits: int) -> None:
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    upstream = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))
    simulation = SimulatedWeight(weight, ac.LayerPolicy(bits, 8), axis=0)
    with torch.no_grad():
        simulation.factor.fill_(0.9)  # at 1 the largest weight lies on the very end of the grid
    (simulation(weight) * upstream).sum().backward()
    limit = grids.largest_code(bits)
    for channel in range(6):  # Esser et al. (2020), equation 3 and section 2.2, one weight after the other
        step, expected = 0.9 * float(simulation.clip[channel]), 0.0
        for w, g in zip(weight[channel].tolist(), upstream[channel].tolist(), strict=True):
            scaled = w / step
            expected += g * (round(scaled) - scaled if abs(scaled) <= limit else np.sign(scaled) * limit)
        expected /= np.sqrt(10 * limit)
        assert float(simulation.factor.grad[channel] * simulation.clip[channel]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_learned_step_comes_nearer_to_the_step_of_least_error() -> None:
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(1))
    simulation = SimulatedWeight(weight, ac.LayerPolicy(3, 8), axis=0)
    with torch.no_grad():
        simulation.factor.fill_(2.0)
    optimizer = torch.optim.Adam(simulation.parameters(), 0.02)

    def error() -> torch.Tensor:
        return (simulation(weight) - weight).square().mean()

    before = error().item()
    for _ in range(100):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    assert error().item() < 0.6 * before
    assert (simulation.factor - 1).abs().max() < 0.25
    assert torch.equal(simulation.codes(weight).float() * simulation.step(weight), simulation(weight))


@pytest.mark.parametrize("bits", ["float", 8, 2])
def test_zeros_stay_zeros_through_training_steps(bits: int | str) -> None:
    model = models.build("conv")
    simulate(model, ac.Policy({}, {"conv2": ac.LayerPolicy(bits, sparsity=0.5)}))
    before = model.conv2.weight.detach().clone()
    zero = grids.largest_magnitudes(model.conv2.parametrizations["weight"].original.detach().numpy(), 0.5) == 0
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(IMAGES), models.digits()["valid"][1][:16]).backward()
        optimizer.step()
    after = model.conv2.weight.detach()
    assert zero.mean() == 0.5
    assert (after.numpy()[zero] == 0).all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("bits", ["float", *BITS])
@pytest.mark.parametrize("name", ["conv", "transposed", "grouped", "conv1d", "sequential"])
def test_a_settled_model_is_plain_and_gives_the_same_outputs(name: str, bits: int | str) -> None:
    model = simulated(name, ac.LayerPolicy(bits, "float", 0.25))
    plain = copy.deepcopy(model)
    codes = settle(plain)
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), model(IMAGES))
    reference = models.build(name)
    assert plain.state_dict().keys() == reference.state_dict().keys()
    assert [type(module) for module in plain.modules()] == [type(module) for module in reference.modules()]
    assert set(codes) == (set() if bits == "float" else {n for n, m in reference.named_modules() if isinstance(m, HEAVY)})


def test_the_returned_codes_times_a_step_are_the_settled_weights() -> None:
    plain = simulated("separable", ac.LayerPolicy(4, 8))
    for name, grid in settle(plain).items():
        weight = plain.get_submodule(name).weight.detach().numpy()
        flat, codes = weight.reshape(len(weight), -1), grid.codes.reshape(len(weight), -1).astype(np.float32)
        step = np.abs(flat).max(1) / np.maximum(np.abs(codes).max(1), 1)
        np.testing.assert_allclose(codes * step[:, None], flat, rtol=1e-5, atol=1e-7)


def test_settling_a_copy_leaves_the_source_alone() -> None:
    model = simulated("conv", ac.LayerPolicy(2, 8, 0.5))
    with torch.no_grad():
        before, state = model(IMAGES), {name: tensor.clone() for name, tensor in model.state_dict().items()}
        settle(copy.deepcopy(model))
        assert torch.equal(model(IMAGES), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    model.train()
    model(IMAGES).sum().backward()
    assert model.conv1.parametrizations["weight"].original.grad is not None


def test_settling_takes_the_input_quantizers_off() -> None:
    model = simulated("conv", ac.LayerPolicy(8, 8))
    plain = copy.deepcopy(model)
    settle(plain)
    assert not any(isinstance(module, SimulatedInput) for module in plain.modules())
    large = 100 * IMAGES  # far outside the quantizers' ranges, which would clip it
    with torch.no_grad():
        assert (plain(large) - model(large)).abs().max() > 1


def test_a_range_moves_in_training_and_stands_still_in_evaluation() -> None:
    quantizer = SimulatedInput()
    quantizer.train()(torch.tensor([-1.0, 3.0]))
    assert (quantizer.low.item(), quantizer.high.item()) == (-1.0, 3.0)
    quantizer(torch.tensor([-1.0, 23.0]))
    assert quantizer.high.item() == pytest.approx((3 + 23) / 2)  # the first batches are averaged
    quantizer.batches.fill_(1000)
    quantizer(torch.tensor([-1.0, 33.0]))
    assert quantizer.high.item() == pytest.approx(13 + 0.05 * 20)
    seen = quantizer.high.item()
    quantizer.eval()(torch.tensor([-50.0, 50.0]))
    assert (quantizer.low.item(), quantizer.high.item()) == (-1.0, seen)


def test_an_input_lies_on_256_levels_that_hold_zero() -> None:
    quantizer = SimulatedInput()
    value = torch.linspace(-1.3, 2.7, 5001)
    result = quantizer.train()(value)
    step = 4.0 / 255
    assert len(result.unique()) <= 256
    assert (result - value).abs().max() <= step * 0.501 + 0.5 * step  # half a step, and the shift that puts zero on a level
    assert quantizer(torch.zeros(1)).item() == 0


def test_an_input_that_was_never_seen_passes_unchanged() -> None:
    value = torch.randn(7)
    assert torch.equal(SimulatedInput().eval()(value), value)


def test_the_gradient_of_an_input_passes_inside_the_range_only() -> None:
    quantizer = SimulatedInput()
    quantizer.train()(torch.tensor([-1.0, 1.0]))
    value = torch.tensor([-5.0, 0.5, 5.0], requires_grad=True)
    quantizer.eval()(value).sum().backward()
    assert value.grad.tolist() == [0.0, 1.0, 0.0]


def test_16_levels_hold_zero_and_lie_in_the_bounds() -> None:
    quantizer = SimulatedInput(4)
    result = quantizer.train()(torch.linspace(-1.3, 2.7, 5001))
    assert len(result.unique()) == 16
    assert (result == 0).any()
    assert quantizer.bounds == pytest.approx((result.min().item(), result.max().item()))


def test_one_bit_has_the_levels_0_and_the_mean_of_what_is_nearer_to_the_upper_one() -> None:
    value = torch.tensor([-3.0, 0.0, 0.1, 0.2, 0.9, 1.0, 1.1])
    quantizer = SimulatedInput(1)
    result = quantizer.train()(value)
    assert quantizer.bounds == pytest.approx((0.0, 1.0))
    torch.testing.assert_close(result, torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))


def test_no_other_upper_level_has_less_error_on_a_half_normal_input() -> None:
    value = torch.relu(torch.randn(20000, generator=torch.Generator().manual_seed(0)))
    quantizer = SimulatedInput(1)
    quantizer.train()(value)
    high = quantizer.bounds[1]

    def error(level: float) -> float:
        return float(((value > level / 2) * level - value).square().mean())

    assert error(high) <= min(error(factor * high) for factor in (0.8, 0.9, 1.1, 1.25))


@pytest.mark.parametrize("value", [torch.zeros(4), -torch.ones(4)])
@pytest.mark.parametrize("bits", [8, 4, 1])
def test_an_input_without_positive_values_stays_finite(bits: int, value: torch.Tensor) -> None:
    quantizer = SimulatedInput(bits)
    assert torch.isfinite(quantizer.train()(value)).all()
    assert np.isfinite(quantizer.bounds).all()


def test_only_inputs_that_have_seen_a_batch_have_a_range() -> None:
    assert set(input_ranges(simulated("conv", ac.LayerPolicy(4, 4)))) == {"conv1", "conv2", "fc"}
    unseen = models.build("conv")
    simulate(unseen, ac.Policy({}, {"conv1": ac.LayerPolicy(4, 4)}))
    assert input_ranges(unseen) == {}


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_calibration_averages_its_batches_in_whatever_mode(bits: int) -> None:
    model = models.build("conv")
    simulate(model, ac.Policy({}, {"conv1": ac.LayerPolicy(8, bits)}))
    with torch.no_grad(), calibrating(simulated_inputs(model.eval())):
        model(IMAGES)
        model(2 * IMAGES)
    once, twice = (SimulatedInput(bits).train() for _ in range(2))
    once(IMAGES), twice(2 * IMAGES)
    assert model.conv1.simulated_input.high.item() == pytest.approx((once.high.item() + twice.high.item()) / 2, rel=1e-5)
    before = input_ranges(model)
    model(5 * IMAGES)
    assert input_ranges(model) == before


def test_a_learned_range_is_observed_once_and_then_learns() -> None:
    quantizer = SimulatedInput(4).train()
    value = torch.linspace(0, 3, 1001)
    quantizer(value)
    start = quantizer.bounds
    quantizer(10 * value)
    assert quantizer.bounds == start
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.1)
    for _ in range(60):  # with a few values of 10 times the size the best range is wider
        optimizer.zero_grad()
        (quantizer(10 * value)[None] - 10 * value).square().mean().backward()
        optimizer.step()
    assert quantizer.bounds[1] > 2 * start[1]


def test_the_gradient_of_a_learned_range_is_the_papers() -> None:
    quantizer = SimulatedInput(4).train()
    value = 1.5 * torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    quantizer(torch.linspace(-1, 2, 300))
    upstream = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    value.requires_grad_()
    (quantizer(value) * upstream).sum().backward()
    low, high = quantizer.bounds
    step, expected = (high - low) / 15, 0.0
    for v, g in zip(value.flatten().tolist(), upstream.flatten().tolist(), strict=True):
        scaled = v / step
        code = min(max(round(scaled), round(low / step)), round(high / step))
        expected += g * (code - scaled if round(scaled) == code else code)
    assert quantizer.factor.grad.item() * step == pytest.approx(expected / np.sqrt(50 * 15), rel=1e-3)
    outside = (value < low - step / 2) | (value > high + step / 2)
    torch.testing.assert_close(value.grad, upstream * ~outside)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:8"])
def test_a_mask_grows_until_the_middle_of_a_training_and_then_stays(pattern: str) -> None:
    model = models.build("conv")
    simulate(model, ac.Policy({}, {"conv2": ac.LayerPolicy(8, 8, 0.75 if pattern == "unstructured" else 0.0, pattern)}))
    final = 1 - 2 / 4 if pattern == "2:4" else 7 / 8 if pattern == "1:8" else 0.75
    shares, masks = [], []
    assert (model.conv2.weight == 0).float().mean().item() == pytest.approx(final)
    for fraction in (0, 0.1, 0.3, 0.5, 0.7, 1):
        set_progress(model, fraction)
        masks.append(model.conv2.parametrizations["weight"][0].mask.clone())
        shares.append(1 - masks[-1].float().mean().item())
        with torch.no_grad():
            model.conv2.parametrizations["weight"].original.add_(0.01 * torch.randn(24, 16, 3, 3))
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[3:] == pytest.approx([final] * 3)
    assert 0 < shares[1] < final
    assert all((after <= before).all() for before, after in itertools.pairwise(masks))  # a zero stays a zero
    assert torch.equal(masks[3], masks[5])


def test_one_bit_weights_wait_for_their_activations() -> None:
    model = models.build("conv")
    simulate(model, ac.Policy({}, {"conv2": ac.LayerPolicy(1, 1)}))
    original = model.conv2.parametrizations["weight"].original
    assert len(model.conv2.weight[0].unique()) == 2
    set_progress(model, 0.2)
    assert torch.equal(model.conv2.weight, original)
    model.train()(IMAGES)  # the activations are binary all the time
    assert len(model.conv2.simulated_input(IMAGES).unique()) == 2
    set_progress(model, 0.5)
    assert len(model.conv2.weight[0].unique()) == 2
    set_progress(model, 0.0)
    settle(model)  # what is settled is binary, wherever a training ended
    assert len(model.conv2.weight[0].unique()) == 2


def test_a_binary_scale_is_the_mean_magnitude_of_a_channel_or_of_the_layer() -> None:
    model = models.build("conv")
    weight = model.conv2.weight.detach().clone()
    simulate(model, ac.Policy({}, {"conv2": ac.LayerPolicy(1, 1)}))
    per_channel = weight.abs().mean((1, 2, 3))
    torch.testing.assert_close(model.conv2.weight.abs().amax((1, 2, 3)), per_channel)
    share_binary_scales(model, True)
    torch.testing.assert_close(model.conv2.weight.abs(), weight.abs().mean().expand_as(weight))
    torch.testing.assert_close(model.conv2.weight.sign(), torch.where(weight < 0, -1.0, 1.0))


def test_a_half_grown_mask_is_saved_with_how_far_it_has_grown() -> None:
    model, other = (models.build("conv") for _ in range(2))
    for one in (model, other):
        simulate(one, ac.Policy({}, {"conv2": ac.LayerPolicy(8, 8, 0.75)}))
    set_progress(model, 0.1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.conv2.weight, model.conv2.weight)
    settle(model), settle(other)
    assert (model.conv2.weight == 0).float().mean() >= 0.75
    assert torch.equal(other.conv2.weight, model.conv2.weight)
