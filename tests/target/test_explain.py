"""Each prepared model has one fault, and `explain` names that one and no other; on healthy models it names none."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from openvino import opset13 as ops
from rich.console import Console
from torch import nn

from autocompress import grids
from autocompress.capabilities import Capabilities, KernelFact, Numerics, SparsityFact, StepFact
from autocompress.device import Target
from autocompress.policy import FLOAT
from autocompress.report.explanation import explanation_table, plot_explanation
from autocompress.target import executed
from autocompress.target import explain as module
from autocompress.target.explain import Explanation, explain
from autocompress.target.requested import requested_layers
from autocompress.target.runtime import fingerprint

pytestmark = [pytest.mark.timing, pytest.mark.usefixtures("_short_profile")]

TARGET = Target()
CHANNELS, SIDE, LAYERS = 64, 28, 6
Weight = Callable[[NDArray[np.float32]], ov.Node]


# Prepared models: chains of 3×3 convolutions with biases and ReLUs


def plain(weight: NDArray[np.float32]) -> ov.Node:
    return ops.constant(weight)


def fake_quantized(weight: NDArray[np.float32]) -> ov.Node:
    """255 levels per output channel."""
    high = np.abs(weight).max((1, 2, 3), keepdims=True)
    bounds = [ops.constant(bound) for bound in (-high, high)]
    return ops.fake_quantize(ops.constant(weight), *bounds, *bounds, 255)


def four_bits(weight: NDArray[np.float32], through_i8: bool = False) -> ov.Node:
    """An i4 constant that is converted straight to float, as OpenVINO's converter writes it, or to i8 first."""
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 7
    codes = ov.Tensor(ov.Type.i4, ov.Shape(weight.shape))
    codes.data.view(np.uint8).reshape(-1)[:] = grids.pack(grids.quantize(weight, step, 4), 4)
    constant = ops.convert(ops.constant(codes), np.int8) if through_i8 else ops.constant(codes)
    return ops.multiply(ops.convert(constant, np.float32), ops.constant(step))


def four_bits_through_i8(weight: NDArray[np.float32]) -> ov.Node:
    return four_bits(weight, through_i8=True)


def three_bits(weight: NDArray[np.float32]) -> ov.Node:
    """A 3-bit grid in an i8 constant. 0 is its most frequent code."""
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 3
    return ops.multiply(ops.convert(ops.constant(grids.quantize(weight, step, 3)), np.float32), ops.constant(step))


def zeroed(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The 70 % smallest weights become zero."""
    return weight * grids.largest_magnitudes(weight, 0.7)


def mostly_zero(weight: NDArray[np.float32]) -> ov.Node:
    return fake_quantized(zeroed(weight))


def quantized(node: ov.Node, levels: int) -> ov.Node:
    bounds = [ops.constant(np.float32(bound)) for bound in (0, 4)]
    return ops.fake_quantize(node, *bounds, *bounds, levels)


def half(weight: NDArray[np.float32]) -> ov.Node:
    """A float weight that is stored in 16 bits, as `ov.save_model` does by default."""
    return ops.convert(ops.constant(weight.astype(np.float16)), np.float32)


def chain(
    weight: Weight = fake_quantized,
    levels: tuple[int, ...] = (256,),
    float_layers: Sequence[int] = (),
    channels: int = CHANNELS,
    side: int = SIDE,
    layers: int = LAYERS,
) -> ov.Model:
    """Layers "conv0", "conv1" …, each with quantizers of these levels in front, but for the float ones."""
    generator = np.random.default_rng(0)
    parameter = ops.parameter([1, channels, side, side], np.float32)
    node: ov.Node = parameter
    for index in range(layers):
        values = (generator.standard_normal((channels, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
        for count in () if index in float_layers else levels:
            node = quantized(node, count)
        convolution = ops.convolution(
            node, plain(values) if index in float_layers else weight(values), [1, 1], [1, 1], [1, 1], [1, 1]
        )
        convolution.set_friendly_name(f"conv{index}")
        bias = generator.standard_normal((1, channels, 1, 1)).astype(np.float32)
        node = ops.relu(ops.add(convolution, ops.constant(bias)))
    return ov.Model([node], [parameter], "chain")


PREPARED: dict[str, tuple[Callable[[], ov.Model], str]] = {
    "activations of 64 levels": (lambda: chain(levels=(64,)), "levels-without-kernel"),
    "i4 straight to float": (lambda: chain(four_bits), "i4-fell-to-float"),
    "66 channels": (lambda: chain(channels=CHANNELS + 2), "channels-over-a-step"),
    "66 channels in float": (lambda: chain(plain, (), channels=CHANNELS + 2), "channels-over-a-step"),
    "one float layer amid INT8": (lambda: chain(float_layers=[3]), "float-island"),
    "70 % zeros in INT8": (lambda: chain(mostly_zero), "zeros-do-not-pay"),
    "70 % zeros in float": (lambda: chain(lambda w: plain(zeroed(w)), ()), "zeros-do-not-pay"),
    "tiny layers": (lambda: chain(channels=8, side=4, layers=2), "overhead-rules"),
}
"""Name → a model, and the one reason for which it is not faster."""

NOTED: dict[str, tuple[Callable[[], ov.Model], str]] = {
    "float": (lambda: chain(plain, ()), "baseline-already-bf16"),
    "float, stored in f16": (lambda: chain(half, ()), "baseline-already-bf16"),
}
"""Name → a model with which nothing is wrong, and what is worth knowing of it."""

HEALTHY: dict[str, Callable[[], ov.Model]] = {
    "INT8": chain,
    "float": lambda: chain(plain, ()),
    "i4 through i8": lambda: chain(four_bits_through_i8),
    "64 levels, then 256": lambda: chain(levels=(64, 256)),
    "first and last layer in float": lambda: chain(float_layers=[0, LAYERS - 1]),
    "weights of 3 bits, with the zeros of their grid": lambda: chain(three_bits),
}


def knowledge(step: int = 16, float_precision: str = "bf16", zeros_gain: float = 1.0) -> Capabilities:
    """What a probe could have found: steps of channels, INT8 twice as fast as float, zeros that do not pay."""
    found = fingerprint(TARGET).model_copy(update={"default_precision": float_precision})
    facts = {"form": "convolution", "scheme": "i8", "graph": "", "kernel": "", "speedup_low": 1.0, "speedup_high": 4.0, "ms": 1.0}
    kinds = found.float_precision, "int8"
    return Capabilities(
        fingerprint=found,
        kernels=(
            KernelFact(**facts, weights=8, activations=8, integer=True, speedup=4.0, speedup_default=2.0),
            KernelFact(**facts, weights=FLOAT, activations=FLOAT, integer=False, speedup=2.0, speedup_default=1.0),
        ),
        steps=tuple(StepFact(form="convolution", precision=kind, step=step, widths=(), ratios=()) for kind in kinds),
        sparsity=tuple(
            SparsityFact(
                form="convolution",
                pattern="unstructured",
                level=0.5,
                precision=kind,
                speedup=zeros_gain,
                speedup_low=zeros_gain - 0.02,
                speedup_high=zeros_gain + 0.02,
            )
            for kind in kinds
        ),
        numerics=Numerics(binary_zero_one=None, binary_plus_minus=None, weights_8=0.0, weights_7=0.0),
        seconds=0.0,
    )


def faults(explanation: Explanation) -> list[str]:
    return [finding.reason for finding in explanation.faults]


@pytest.fixture
def _short_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executed, "SECONDS", 0.05)
    monkeypatch.setattr(executed, "MIN_CALLS", 20)


@pytest.fixture
def _steps_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer with channels over a step takes 1.3 times as long. `benchmarks/check_explain.py` measures it."""
    monkeypatch.setattr(module, "_time_ratio", lambda *_: (1.3, 1.29))


# Reasons


@pytest.mark.usefixtures("_steps_cost")
@pytest.mark.parametrize("name", PREPARED)
def test_the_one_fault_is_named_and_no_other(name: str) -> None:
    build, reason = PREPARED[name]
    explanation = explain(build(), TARGET, knowledge())
    assert faults(explanation) == [reason]
    assert not explanation.healthy
    assert explanation.summary.startswith("1 fault: ")


@pytest.mark.usefixtures("_steps_cost")
@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong_with_a_healthy_model(name: str) -> None:
    explanation = explain(HEALTHY[name](), TARGET, knowledge())
    assert faults(explanation) == []
    assert explanation.healthy
    assert explanation.summary.startswith("Nothing is wrong")


@pytest.mark.parametrize("name", NOTED)
def test_that_the_baseline_is_fast_already_is_a_note(name: str) -> None:
    build, reason = NOTED[name]
    explanation = explain(build(), TARGET, knowledge())
    assert explanation.healthy
    assert [finding.reason for finding in explanation.findings] == [reason]
    assert "2× as fast as FP32" in explanation.findings[0].words
    assert ("stored in 16 bits" in explanation.findings[0].words) == ("f16" in name)


@pytest.mark.parametrize("name", ["activations of 64 levels", "i4 straight to float"])
def test_what_needs_no_knowledge_of_the_target_is_named_without_it(name: str) -> None:
    build, reason = PREPARED[name]
    assert faults(explain(build(), TARGET, None)) == [reason]


@pytest.mark.parametrize("name", ["66 channels", "70 % zeros in INT8", "float, stored in f16"])
def test_what_needs_knowledge_of_the_target_is_left_out_without_it(name: str) -> None:
    build, _ = (PREPARED | NOTED)[name]
    assert explain(build(), TARGET, None).findings == ()


def test_a_finding_says_which_layers_and_what_to_do() -> None:
    finding = explain(chain(float_layers=[3]), TARGET, knowledge()).findings[0]
    assert finding.layers == ("conv3",)
    assert "between integer layers" in finding.words
    assert finding.remedy.startswith("Quantize it")
    assert finding.share is not None
    assert 0.03 < finding.share < 0.5


def test_channels_that_cost_no_more_than_their_share_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_time_ratio", lambda *_: (66 / 64, 65 / 64))
    assert explain(chain(channels=66), TARGET, knowledge()).findings == ()


def test_a_layer_with_more_channels_takes_longer() -> None:
    node = chain(channels=16, side=8, layers=1).get_result().input_value(0).get_node()
    while node.get_type_name() != "Convolution":
        node = node.input_value(0).get_node()
    layer = module.signature_of(node)
    ratio, low = module._time_ratio(Target(precision="f32"), layer.at(64, 256, True), layer.at(64, 32, True))
    assert 1.5 < low <= ratio


def test_channels_on_a_step_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_time_ratio", lambda *_: pytest.fail("it was timed"))
    assert explain(chain(channels=CHANNELS), TARGET, knowledge()).findings == ()
    assert explain(chain(channels=66), TARGET, knowledge(step=1)).findings == ()


def test_zeros_that_pay_are_no_fault() -> None:
    assert explain(chain(mostly_zero), TARGET, knowledge(zeros_gain=1.5)).findings == ()


def test_float_weights_in_16_bits_are_no_fault_where_floats_run_in_32() -> None:
    assert explain(chain(half, ()), Target(precision="f32"), knowledge(float_precision="f32")).findings == ()


def test_a_fault_that_costs_next_to_nothing_is_a_note() -> None:
    body = chain(side=4 * SIDE)
    node = body.get_results()[0].input_value(0)
    pooled = ops.avg_pool(quantized(node, 64), [112, 112], [0, 0], [0, 0], [112, 112], False)
    weight = np.random.default_rng(0).standard_normal((1, CHANNELS, 1, 1)).astype(np.float32)
    end = ops.convolution(pooled, fake_quantized(weight), [1, 1], [0, 0], [0, 0], [1, 1])
    explanation = explain(ov.Model([end], body.get_parameters(), "small end"), TARGET, knowledge())
    assert [(finding.reason, finding.severity) for finding in explanation.findings] == [("levels-without-kernel", "note")]


# What was asked and what ran


@pytest.mark.parametrize(
    ("weight", "levels", "words"),
    [
        (plain, (), "float"),
        (half, (), "float, f16 stored"),
        (fake_quantized, (256,), "8 bits / 256 levels"),
        (fake_quantized, (), "8 bits / float"),
        (fake_quantized, (16, 256), "8 bits / 256 levels"),
        (four_bits, (16,), "4 bits (i4) / 16 levels"),
        (three_bits, (255,), "8 bits (i8) / 255 levels"),
    ],
)
def test_the_requested_precision_is_read_from_the_graph(weight: Weight, levels: tuple[int, ...], words: str) -> None:
    layers = requested_layers(chain(weight, levels, layers=2))
    assert [layer.words for layer in layers] == [words, words]
    assert [(layer.is_first, layer.is_last) for layer in layers] == [(True, False), (False, True)]


def test_zeros_and_codes_are_counted_in_packed_constants() -> None:
    weight = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 24
    step = np.abs(weight).max((1, 2, 3), keepdims=True) / 7
    codes = grids.quantize(weight, step, 4)
    parameter = ops.parameter([1, CHANNELS, SIDE, SIDE], np.float32)
    node = ops.convolution(parameter, four_bits(weight), [1, 1], [1, 1], [1, 1], [1, 1])
    layer = requested_layers(ov.Model([node], [parameter], "one"))[0]
    assert layer.zeros == pytest.approx(np.mean(codes == 0))
    assert layer.ones == pytest.approx(np.mean(np.abs(codes) == 1))
    assert layer.macs == CHANNELS * CHANNELS * 9 * SIDE * SIDE
    assert (layer.inputs, layer.outputs, layer.form) == (CHANNELS, CHANNELS, "convolution")


def test_the_time_is_shared_out_without_rest_and_conversions_go_to_the_island() -> None:
    explanation = explain(chain(float_layers=[3]), Target(precision="f32"), None)
    spent = sum(layer.share for layer in explanation.layers) + sum(one.share for one in explanation.conversions)
    assert spent + explanation.other + explanation.overhead == pytest.approx(1)
    assert [layer.precision for layer in explanation.layers] == ["int8", "int8", "int8", "float", "int8", "int8"]
    assert "f32 → u8" in [one.change for one in explanation.conversions if one.layers == ("conv3",)]
    charged = sum(layer.conversions for layer in explanation.layers)
    assert charged == pytest.approx(sum(one.share for one in explanation.conversions))
    assert explanation.integer_share == pytest.approx(5 / 6)


def test_a_matrix_product_is_found_under_the_name_of_its_bias() -> None:
    parameter = ops.parameter([64, 256], np.float32)
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    node = ops.matmul(parameter, ops.constant(weight), False, True)
    node.set_friendly_name("fc")
    model = ov.Model([ops.relu(ops.add(node, ops.constant(weight[:1])))], [parameter], "linear")
    (layer,) = explain(model, TARGET, None).layers
    assert (layer.name, layer.asked.form, layer.precision) == ("fc", "linear", "float")
    assert layer.share > 0.1


def test_a_binary_layer_is_recognised_though_its_name_is_lost() -> None:
    parameter = ops.parameter([1, CHANNELS, SIDE, SIDE], np.float32)
    weight = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    scale, zero = np.abs(weight).mean((1, 2, 3), keepdims=True), np.zeros((CHANNELS, 1, 1, 1), np.float32)
    signs = ops.fake_quantize(ops.constant(weight), *map(ops.constant, (zero, zero, -scale, scale)), 2)
    bounds = (np.full((1, CHANNELS, 1, 1), value, np.float32) for value in (0.5, 0.5, 0, 1))
    bits = ops.fake_quantize(parameter, *map(ops.constant, bounds), 2)
    node = ops.convolution(bits, signs, [1, 1], [1, 1], [1, 1], [1, 1])
    node.set_friendly_name("binary")
    explanation = explain(ov.Model([ops.relu(node)], [parameter], "binary"), TARGET, knowledge())
    assert [(layer.name, layer.precision) for layer in explanation.layers] == [("binary", "binary")]
    assert "not-integer" not in [finding.reason for finding in explanation.findings]


# A network from PyTorch


class Network(nn.Module):
    """A residual block, an inverted residual with squeeze-and-excite, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.conv1 = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32))
        self.expand = nn.Sequential(nn.Conv2d(32, 128, 1), nn.ReLU6(), nn.Conv2d(128, 128, 3, 1, 1, groups=128), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(128, 32, 1), nn.Conv2d(32, 128, 1)
        self.project, self.fc = nn.Conv2d(128, 32, 1), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.conv2(self.conv1(x)))
        wide = self.expand(x)
        scale = torch.sigmoid(self.excite(torch.relu(self.squeeze(wide.mean((2, 3), keepdim=True)))))
        return self.fc(torch.relu(x + self.project(wide * scale)).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_network_is_healthy_in_float_and_after_post_training_quantization() -> None:
    import nncf

    torch.manual_seed(0)
    shape = (1, 3, 96, 96)
    model = ov.convert_model(Network().eval(), example_input=torch.zeros(shape), input=[list(shape)])
    assert faults(explain(model, TARGET, knowledge(step=8))) == []
    samples = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    explanation = explain(nncf.quantize(model, nncf.Dataset(list(samples)), subset_size=2), TARGET, knowledge(step=8))
    assert faults(explanation) == []
    assert explanation.integer_share > 0.9
    assert "absent" not in {layer.precision for layer in explanation.layers}


# For people and for scripts


def test_an_explanation_is_json() -> None:
    data = json.loads(json.dumps(explain(chain(four_bits), TARGET, knowledge()).to_dict()))
    assert data["healthy"] is False
    assert data["findings"][0]["reason"] == "i4-fell-to-float"
    assert data["layers"][0]["asked"]["storage"] == "i4"
    assert data["layers"][0]["precision"] == "float"
    assert data["latency_ms"] > 0


@pytest.mark.parametrize("every", [True, False])
def test_the_table_fits_into_100_columns_and_shows_the_dearest_layers(every: bool) -> None:
    model = chain(channels=8, side=8, layers=24)
    console = Console(width=100, file=io.StringIO())
    console.print(explanation_table(explain(model, TARGET, None), every))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("8 / 256") == (24 if every else 20)
    assert ("4 more layers (--all)" in text) is not every
    assert "overhead of the call" in text


@pytest.mark.parametrize("name", ["one float layer amid INT8", "tiny layers"])
def test_the_picture_is_drawn(name: str, tmp_path: Path) -> None:
    plot_explanation(explain(PREPARED[name][0](), TARGET, knowledge()), tmp_path / "time.png", name)
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")
