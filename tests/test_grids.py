import numpy as np
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from openvino import opset13 as ops

from autocompress.grids import block_magnitudes, largest_code, largest_magnitudes, mask, pack, quantize, steps

BITS = (2, 3, 4, 7, 8)
Array = NDArray[np.float32]

weights = arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-100, 100, width=32))


def squared_error(weight: Array, step: Array, bits: int) -> Array:
    """Squared error of each output channel, one channel and one weight after the other."""
    errors = []
    for channel, channel_step in zip(weight, step.reshape(-1), strict=True):
        limit = 2 ** (bits - 1) - 1
        codes = [min(limit, max(-limit, round(float(w) / float(channel_step)))) for w in channel.reshape(-1)]
        errors.append(sum((c * float(channel_step) - float(w)) ** 2 for c, w in zip(codes, channel.reshape(-1), strict=True)))
    return np.array(errors)


def slow_pack(codes: NDArray[np.int8], bits: int) -> list[int]:
    """Write the bits of one code after the other, lowest first, and read whole bytes; single bits fill a byte from the top."""
    stream = [(int(code) >> i) & 1 for code in codes.reshape(-1) for i in range(bits)]
    stream += [0] * (-len(stream) % 8)
    if bits == 1:
        stream = [bit for start in range(0, len(stream), 8) for bit in reversed(stream[start : start + 8])]
    return [sum(bit << i for i, bit in enumerate(stream[start : start + 8])) for start in range(0, len(stream), 8)]


def read_by_openvino(packed: NDArray[np.uint8], kind: ov.Type, shape: tuple[int, ...]) -> Array:
    """What the CPU plugin takes the bytes for."""
    tensor = ov.Tensor(kind, ov.Shape(shape))
    tensor.data.view(np.uint8).reshape(-1)[:] = packed
    model = ov.Model([ops.convert(ops.constant(tensor), "f32")], [])
    return np.array(ov.Core().compile_model(model, "CPU")([])[0])


@pytest.mark.parametrize(("bits", "largest"), [(1, 1), (2, 1), (3, 3), (4, 7), (7, 63), (8, 127)])
def test_the_largest_code_leaves_room_for_a_change_of_sign(bits: int, largest: int) -> None:
    assert largest_code(bits) == largest


@given(weights, st.sampled_from(BITS), st.floats(2**-10, 8, width=32))
def test_codes_lie_on_the_grid_whatever_the_step(weight: Array, bits: int, step: float) -> None:
    assert np.abs(quantize(weight, np.float32(step), bits).astype(int)).max() <= 2 ** (bits - 1) - 1


def test_two_bits_are_ternary() -> None:
    weight = np.array([[-1.0, -0.9, 0.1, 0.9, 1.0, 0.0]], np.float32)
    assert quantize(weight, steps(weight, 2), 2).tolist() == [[-1, -1, 0, 1, 1, 0]]


def test_one_bit_is_a_sign_and_the_sign_of_zero_is_plus() -> None:
    weight = np.array([[-2.0, -0.1, 0.0, 0.1, 3.0]], np.float32)
    assert quantize(weight, steps(weight, 1), 1).tolist() == [[-1, -1, 1, 1, 1]]


@given(weights)
def test_no_other_step_of_one_bit_has_less_error(weight: Array) -> None:
    """For signs the error of a channel is least at its mean magnitude (Rastegari et al. 2016, equation 6)."""
    signs = np.where(weight < 0, -1, 1)
    kept = weight != 0

    def error(step: Array) -> Array:
        return ((kept * (signs * step - weight).astype(float)) ** 2).sum(tuple(range(1, weight.ndim)))

    best = steps(weight, 1).astype(float)
    for factor in (0.9, 1.1):
        assert (error(best) <= error(best * factor) * (1 + 1e-6) + 1e-9).all()


def test_zeros_do_not_count_for_the_step_of_one_bit() -> None:
    np.testing.assert_allclose(steps(np.array([[0.0, 1.0, 0.0, -3.0]], np.float32), 1), [[2.0]])
    assert steps(np.zeros((1, 3), np.float32), 1) > 0


@given(weights, st.sampled_from(BITS))
def test_a_negated_channel_keeps_its_grid(weight: Array, bits: int) -> None:
    step = steps(weight, bits)
    np.testing.assert_array_equal(steps(-weight, bits), step)
    np.testing.assert_array_equal(quantize(-weight, step, bits), -quantize(weight, step, bits))


@given(weights, st.sampled_from([7, 8]))
def test_at_7_and_8_bits_no_weight_moves_by_more_than_half_a_step(weight: Array, bits: int) -> None:
    step = steps(weight, bits).astype(float)
    moved = np.abs(quantize(weight, step, bits) * step - weight.astype(float))
    assert (moved <= step * (0.5 + 1e-4)).all()  # the step itself is rounded to float32


@given(weights, st.sampled_from([2, 3, 4]))
def test_a_clipped_grid_is_never_worse_than_one_that_reaches_the_largest_weight(weight: Array, bits: int) -> None:
    reaching = np.abs(weight).reshape(len(weight), -1).max(1) / largest_code(bits) + 1e-12
    chosen = squared_error(weight, steps(weight, bits), bits)
    assert (chosen <= squared_error(weight, reaching, bits) * 1.001 + 1e-9).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_one_outlier_among_many_small_weights_is_clipped(bits: int) -> None:
    weight = np.append(np.linspace(-0.5, 0.5, 1000), 1.0).astype(np.float32)[None]
    reaching = np.float32([[1 / largest_code(bits)]])
    assert steps(weight, bits).item() < reaching.item()
    assert squared_error(weight, steps(weight, bits), bits) < 0.9 * squared_error(weight, reaching, bits)


def test_each_channel_of_the_axis_has_its_own_step() -> None:
    weight = np.array([[1.0, 10.0, 100.0], [0.5, 5.0, 50.0]], np.float32)
    np.testing.assert_allclose(steps(weight, 8, axis=0), [[100 / 127], [50 / 127]], rtol=1e-6)
    np.testing.assert_allclose(steps(weight, 8, axis=1), [[1 / 127, 10 / 127, 100 / 127]], rtol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_a_channel_of_zeros_stays_zero(bits: int) -> None:
    weight = np.zeros((2, 3), np.float32)
    assert (steps(weight, bits) > 0).all()
    assert not quantize(weight, steps(weight, bits), bits).any()


@given(weights, st.floats(0, 0.99))
def test_exactly_the_smallest_magnitudes_are_masked(weight: Array, sparsity: float) -> None:
    mask = largest_magnitudes(weight, sparsity)
    assert mask.shape == weight.shape
    assert (~mask).sum() == round(sparsity * weight.size)
    removed, kept = np.abs(weight[~mask]), np.abs(weight[mask])
    assert removed.max(initial=0) <= kept.min(initial=np.inf)


def test_of_equal_magnitudes_exactly_as_many_as_asked_are_masked() -> None:
    assert (~largest_magnitudes(np.ones((4, 5), np.float32), 0.35)).sum() == 7


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -7, 7), (2, 0, 2), (1, 0, 1)])
@given(data=st.data())
def test_packing_equals_writing_bit_after_bit(bits: int, low: int, high: int, data: st.DataObject) -> None:
    codes = data.draw(arrays(np.int8, array_shapes(max_dims=3, max_side=6), elements=st.integers(low, high)))
    assert pack(codes, bits).tolist() == slow_pack(codes, bits)


@pytest.mark.parametrize("shape", [(15,), (3, 5), (2, 3, 4)])
def test_openvino_reads_4_bit_codes_as_they_were_packed(shape: tuple[int, ...]) -> None:
    codes = (np.arange(np.prod(shape)) % 15 - 7).reshape(shape).astype(np.int8)
    np.testing.assert_array_equal(read_by_openvino(pack(codes, 4), ov.Type.i4, shape), codes)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_openvino_reads_2_bit_codes_as_they_were_packed(shape: tuple[int, ...]) -> None:
    codes = (np.arange(np.prod(shape)) * 7 % 3).reshape(shape).astype(np.int8)
    np.testing.assert_array_equal(read_by_openvino(pack(codes, 2), ov.Type.u2, shape), codes)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_openvino_reads_1_bit_codes_as_they_were_packed(shape: tuple[int, ...]) -> None:
    codes = (np.arange(np.prod(shape)) * 5 % 3 == 0).reshape(shape).astype(np.int8)
    np.testing.assert_array_equal(read_by_openvino(pack(codes, 1), ov.Type.u1, shape), codes)


def slow_block_mask(weight: Array, keep: int, block: int) -> NDArray[np.bool_]:
    """One row of channels after the other, one block after the other."""
    found = np.zeros(weight.shape, bool)
    for row in np.ndindex(weight.shape[0], *weight.shape[2:]):
        for start in range(0, weight.shape[1], block):
            channels = range(start, min(start + block, weight.shape[1]))
            for channel in sorted(channels, key=lambda c: -abs(weight[(row[0], c, *row[1:])]))[:keep]:
                found[(row[0], channel, *row[1:])] = True
    return found


@given(weights, st.sampled_from([(2, 4), (1, 2), (1, 4), (3, 8)]))
def test_of_every_block_of_input_channels_the_largest_are_kept(weight: Array, pattern: tuple[int, int]) -> None:
    np.testing.assert_array_equal(block_magnitudes(weight, *pattern), slow_block_mask(weight, *pattern))


def test_a_block_pattern_has_its_sparsity_and_gets_there_step_by_step() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 8, 3, 3)).astype(np.float32)
    shares = [1 - mask(weight, sparsity, (2, 4)).mean() for sparsity in (0, 0.2, 0.25, 0.45, 0.5)]
    assert shares == [0, 0.25, 0.25, 0.5, 0.5]


def test_blocks_lie_along_the_axis_of_the_input_channels() -> None:
    weight = np.arange(1.0, 33.0, dtype=np.float32).reshape(8, 4)
    assert block_magnitudes(weight, 2, 4, axis=0).sum(0).tolist() == [4] * 4
    assert block_magnitudes(weight, 2, 4, axis=0)[:4].tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
