"""Any models side by side, and the files that they come from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import searches
from openvino import opset13 as ops

from autocompress.device import Target
from autocompress.errors import ConfigError, ModelError
from autocompress.target.compare import _ranks, compare
from autocompress.target.load import load_model, request_shapes

pytestmark = pytest.mark.timing


def write(path: Path, layers: int, shape: list[int]) -> Path:
    generator = np.random.default_rng(0)
    parameter = ops.parameter(shape, np.float32, name="image")
    parameter.output(0).set_names({"image"})
    node: ov.Node = parameter
    for _ in range(layers):
        weight = generator.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12
        node = ops.relu(ops.convolution(node, ops.constant(weight), [1, 1], [1, 1], [1, 1], [1, 1]))
    ov.save_model(ov.Model([node], [parameter]), path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "one": write(folder / "one.xml", 1, [1, 16, 24, 24]),
        "many": write(folder / "many.xml", 20, [1, 16, 24, 24]),
        "dynamic": write(folder / "dynamic.xml", 1, [-1, 16, -1, -1]),
        "free batch": write(folder / "batch.xml", 1, [-1, 16, 24, 24]),
    }


# Each row: the ratios of three models in three rounds (the median decides), and their ranks.
@pytest.mark.parametrize(
    ("samples", "ranks"),
    [
        ([[1.0], [2.0], [3.0]], [1, 2, 3]),
        ([[3.0], [1.0], [2.0]], [3, 1, 2]),
        ([[1.0, 1.01], [1.01, 1.0], [2.0, 2.0]], [1, 1, 3]),
        ([[1.0, 1.0], [2.0, 2.01], [2.01, 2.0]], [1, 2, 2]),
        ([[1.0], [1.004], [2.0]], [1, 1, 3]),
        ([[1.0], [1.006], [2.0]], [1, 2, 3]),
    ],
)
def test_models_that_cannot_be_told_apart_share_a_rank(samples: list[list[float]], ranks: list[int]) -> None:
    assert _ranks([np.array(one * 20) for one in samples], resolution=0.005) == ranks


def test_models_are_compared_with_the_first(models: dict[str, Path]) -> None:
    one, many, again = compare([models["one"], models["many"], models["one"]], Target(), half_width=0.1)
    assert (one.rank, many.rank) == (1, 3)
    assert many.latency.ratio > 1.5
    assert again.latency.ratio == pytest.approx(1, abs=0.3)
    assert one.samples_per_second == pytest.approx(1000 / one.latency.ms)


def test_throughput_is_time_per_request_at_full_load(models: dict[str, Path]) -> None:
    target = Target(performance_hint="THROUGHPUT", threads=2)
    one, many = compare([models["one"], models["many"]], target, half_width=0.2)
    assert many.latency.ratio > one.latency.ratio


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_dynamic_model_is_called_at_the_given_shape(models: dict[str, Path], dynamic: bool) -> None:
    target = Target(shapes={"image": (2, 16, 20, 20)}, dynamic=dynamic)
    model = load_model(models["dynamic"], target)
    assert model.input(0).partial_shape.is_dynamic == dynamic
    (compared,) = compare([models["dynamic"]], target, half_width=0.5)
    assert compared.latency.ratio > 0


def test_a_batch_fills_a_dynamic_first_dimension(models: dict[str, Path]) -> None:
    model = load_model(models["free batch"], Target(batch=4))
    assert request_shapes(model, Target(batch=4)) == [[4, 16, 24, 24]]


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("dynamic", Target(), "Add --shape"),
        ("one", Target(shapes={"foto": (1, 16, 24, 24)}), "Its inputs: image"),
        ("one", Target(shapes={"image": (1, 7, 24, 24)}), "can take the shapes"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(models: dict[str, Path], name: str, target: Target, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_model(models[name], target)


def test_no_model_is_nothing_to_compare() -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        compare([], Target())


@pytest.fixture
def broken(tmp_path: Path, models: dict[str, Path]) -> dict[str, Path]:
    alone = tmp_path / "alone.xml"
    alone.write_bytes(models["one"].read_bytes())
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"no model at all")
    (tmp_path / "empty").mkdir()
    return {"missing": tmp_path / "nothing.xml", "alone": alone, "corrupt": corrupt, "empty": tmp_path / "empty"}


@pytest.mark.parametrize("command", ["bench", "explain"])
@pytest.mark.parametrize("name", ["missing", "alone", "corrupt", "empty"])
def test_a_model_that_cannot_be_read_is_one_line_and_exit_code_2(broken: dict[str, Path], command: str, name: str) -> None:
    outcome = searches.cli(command, broken[name])
    assert outcome.code == 2
    assert re.match(r"error: .*\n$", outcome.err)


@pytest.mark.parametrize("command", ["bench", "explain"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "GPU.7"), "OpenVINO finds: "),
        (("--threads", "4096"), "OpenVINO takes"),
        (("--threads", "none"), "threads"),
        (("--precision", "int3"), "precision"),
        (("--shape", "1,x"), "--shape takes numbers"),
        (("--shape", "foto=1,16,24,24"), "Its inputs: image"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    models: dict[str, Path], command: str, options: tuple[str, ...], words: str
) -> None:
    outcome = searches.cli(command, models["one"], *options)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_bench_prints_a_table_or_json(models: dict[str, Path]) -> None:
    table = searches.cli("bench", models["one"], models["many"], models["one"])
    assert table.code == 0
    assert "× the first" in table.out
    assert "interleaved rounds" in table.out
    rows = json.loads(searches.cli("bench", models["one"], models["many"], "--json", "--hint", "throughput").out)
    assert [Path(row["model"]).name for row in rows] == ["one.xml", "many.xml"]
    assert rows[1]["ratio_low"] <= rows[1]["ratio"] <= rows[1]["ratio_high"]


def test_probe_prints_a_table_or_json() -> None:
    table = searches.cli("probe")
    assert table.code == 0
    assert "Speed-up over FP32" in table.out
    assert "Zeros in weights do not pay." in table.out
    assert json.loads(searches.cli("probe", "--json").out)["kernels"]
