"""What follows from what was probed."""

from __future__ import annotations

import probed
import pytest

from autocompress.capabilities import Form, form_of


@pytest.mark.parametrize(
    ("shape", "groups", "linear", "form"),
    [
        ((64, 32, 3, 3), 1, False, "convolution"),
        ((64, 32, 3), 1, False, "convolution"),
        ((64, 32, 1, 1), 1, False, "pointwise"),
        ((64, 1, 3, 3), 64, False, "depthwise"),
        ((64, 16, 3, 3), 4, False, "grouped"),
        ((10, 64), 1, True, "linear"),
    ],
)
def test_the_form_of_a_layer(shape: tuple[int, ...], groups: int, linear: bool, form: Form) -> None:
    assert form_of(shape, groups, linear=linear) == form


@pytest.mark.parametrize(("numerics", "saturates"), [(probed.RIGHT, False), (probed.SATURATING, True)])
def test_weights_saturate_where_8_bits_are_wrong_and_7_are_right(numerics: object, saturates: bool) -> None:
    assert probed.capabilities(numerics=numerics).saturates == saturates


@pytest.mark.parametrize(("speedup", "pays"), [(4.0, True), (2.05, False)])
def test_binary_layers_pay_where_they_are_faster_than_int8(speedup: float, pays: bool) -> None:
    can = probed.capabilities(binary=speedup)
    assert can.binary_pays("convolution") == pays
    assert not can.binary_pays("linear")


@pytest.mark.parametrize("error", [None, 1.4])
def test_a_wrong_binary_kernel_does_not_pay(error: float | None) -> None:
    numerics = probed.RIGHT.model_copy(update={"binary_zero_one": error})
    assert not probed.capabilities(numerics=numerics).binary_pays("convolution")


def test_zeros_pay_from_the_level_at_which_they_did() -> None:
    can = probed.capabilities(zeros=1.3)
    assert can.zeros_pay("depthwise", 0.9)
    assert not can.zeros_pay("depthwise", 0.5)
    assert not probed.capabilities(zeros=1.03).zeros_pay("linear", 0.95)


def test_the_step_of_what_was_not_probed_is_one() -> None:
    assert probed.capabilities(step=16).channel_step("linear", "int8") == 16
    assert probed.capabilities(step=16).channel_step("linear", "bf16") == 1
