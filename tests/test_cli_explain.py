"""`autocompress explain` on IRs, ONNX files and bundles; what is wrong with an input is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import searches
from openvino import opset13 as ops

from autocompress.target import executed

pytestmark = pytest.mark.timing

CHANNELS, SIDE = 64, 32  # enough work that the call itself does not rule, also on a busy machine


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short profiles, and nothing known about the target."""
    monkeypatch.setattr(executed, "SECONDS", 0.05)
    monkeypatch.setattr(executed, "MIN_CALLS", 20)
    monkeypatch.setattr("autocompress.hardware.capabilities", lambda *_, **__: None)


def model(levels: int = 256, batch: int = 1) -> ov.Model:
    """Two INT8 convolutions, "conv0" and "conv1"."""
    generator = np.random.default_rng(0)
    parameter = ops.parameter([batch, CHANNELS, SIDE, SIDE], np.float32)
    parameter.output(0).get_tensor().set_names({"image"})
    bounds = [ops.constant(np.float32(bound)) for bound in (0, 4)]
    node: ov.Node = parameter
    for index in range(2):
        codes = ops.constant(generator.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8))
        weight = ops.multiply(ops.convert(codes, np.float32), ops.constant(np.full((CHANNELS, 1, 1, 1), 1e-3, np.float32)))
        node = ops.fake_quantize(node, *bounds, *bounds, levels)
        node = ops.convolution(node, weight, [1, 1], [1, 1], [1, 1], [1, 1])
        node.set_friendly_name(f"conv{index}")
        node = ops.relu(node)
    return ov.Model([node], [parameter], "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a healthy model, one with a fault, and one with a dynamic shape."""
    path = tmp_path_factory.mktemp("models")
    ov.save_model(model(), path / "model.xml", compress_to_fp16=False)
    ov.save_model(model(levels=64), path / "levels.xml", compress_to_fp16=False)
    dynamic = model()
    dynamic.reshape([-1, CHANNELS, -1, -1])
    ov.save_model(dynamic, path / "dynamic.xml", compress_to_fp16=False)
    return path


def one_line(outcome: searches.Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err


def test_a_healthy_model_has_nothing_wrong(folder: Path) -> None:
    outcome = searches.cli("explain", folder / "model.xml")
    assert outcome.code == 0, outcome.err
    assert "conv1" in outcome.out
    assert "Nothing is wrong" in outcome.out


def test_a_fault_is_named_with_its_remedy(folder: Path) -> None:
    outcome = searches.cli("explain", folder / "levels.xml")
    assert outcome.code == 0, outcome.err
    assert "levels-without-kernel" in outcome.out
    assert "256-level quantizer" in " ".join(outcome.out.split())


def test_json_is_all_that_is_printed(folder: Path) -> None:
    outcome = searches.cli("explain", folder, "--json", "--precision", "f32", "--threads", "1")
    data = json.loads(outcome.out)
    assert data["healthy"] is True
    assert [(layer["name"], layer["ran"]) for layer in data["layers"]] == [("conv0", "int8"), ("conv1", "int8")]
    assert 0 < sum(layer["share"] for layer in data["layers"]) <= 1


def test_the_picture_is_written(folder: Path, tmp_path: Path) -> None:
    outcome = searches.cli("explain", folder / "model.xml", "--plot", tmp_path / "time.svg")
    assert outcome.code == 0, outcome.err
    assert "<svg" in (tmp_path / "time.svg").read_text()


@pytest.mark.parametrize("name", ["", "image="])
def test_a_dynamic_model_is_explained_at_a_given_shape(folder: Path, name: str) -> None:
    outcome = searches.cli("explain", folder / "dynamic.xml", "--json", "--shape", f"{name}2,{CHANNELS},8,8")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["layers"][0]["asked"]["macs"] == 2 * 64 * 9 * CHANNELS**2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.xml"], ["missing.xml"]),
        (["dynamic.xml"], ["--shape"]),
        (["model.xml", "--shape", "1,a"], ["--shape", "1,a"]),
        (["model.xml", "--shape", "other=1,2"], ["other"]),
        (["model.xml", "--threads", "0"], ["threads"]),
        (["model.xml", "--precision", "i8"], ["precision"]),
        (["model.xml", "--device", "TOASTER"], ["TOASTER"]),
        (["model.xml", "--plot", "missing/time.png"], ["missing/time.png"]),
        (["model.xml", "--plot", "time.words"], ["time.words"]),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    one_line(searches.cli("explain", *arguments), *words)


def test_an_onnx_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "conv.onnx").write_bytes(onnx_convolution())
    outcome = searches.cli("explain", tmp_path / "conv.onnx", "--json")
    assert outcome.code == 0, outcome.err
    (layer,) = json.loads(outcome.out)["layers"]
    assert (layer["name"], layer["asked"]["form"], layer["precision"]) == ("output", "convolution", "float")


# A small ONNX file, written by hand: the package `onnx` is not needed to read one


def onnx_convolution() -> bytes:
    """A 3×3 convolution from (1, 8, 16, 16) to (1, 8, 14, 14). OpenVINO names it after its output; fields as in onnx.proto."""
    weight = np.random.default_rng(0).standard_normal((8, 8, 3, 3)).astype(np.float32)
    shape = b"".join(number(1, size) for size in weight.shape)
    initializer = shape + number(2, 1) + block(8, b"weight") + block(9, weight.tobytes())
    node = block(1, b"image") + block(1, b"weight") + block(2, b"output") + block(3, b"conv") + block(4, b"Conv")
    image, output = (value(name, sizes) for name, sizes in ((b"image", (1, 8, 16, 16)), (b"output", (1, 8, 14, 14))))
    graph = block(1, node) + block(2, b"graph") + block(5, initializer) + block(11, image) + block(12, output)
    return number(1, 8) + block(7, graph) + block(8, number(2, 13))


def value(name: bytes, sizes: tuple[int, ...]) -> bytes:
    dimensions = b"".join(block(1, number(1, size)) for size in sizes)
    return block(1, name) + block(2, block(1, number(1, 1) + block(2, dimensions)))


def number(field: int, content: int) -> bytes:
    return varint(field << 3) + varint(content)


def block(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def varint(content: int) -> bytes:
    return bytes([content]) if content < 128 else bytes([content & 127 | 128]) + varint(content >> 7)
