"""Compression in a user's own training script: prepare, their loop, export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import openvino as ov
import pytest
import searches
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac
from autocompress.bundle import promise_of
from autocompress.errors import BundleError, ConfigError, ModelError, PolicyError, TaskError
from autocompress.frameworks.torch import script
from autocompress.frameworks.torch.simulate import input_ranges
from autocompress.frameworks.torch.state import load_weights, save_weights

MIXED = {"pruning": {"*": 0.3}, "layers": {"*": {"weights": 8, "activations": 8}, "type:Linear": {"weights": 4}}}


def images(count: int = 256) -> torch.Tensor:
    return models.digits()["train"][0][:count]


def train(model: nn.Module, steps: int = 3) -> None:
    """A user's own loop, written without a thought of this product."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    loader = DataLoader(TensorDataset(*models.digits()["train"]), batch_size=64)
    model.train()
    for _, (inputs, classes) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), classes).backward()
        optimizer.step()


def simulated(model: nn.Module) -> np.ndarray[Any, Any]:
    model.eval()
    with torch.no_grad():
        return model(models.digits()["valid"][0]).numpy()


def deployed(bundle: Path) -> np.ndarray[Any, Any]:
    compiled = ov.Core().compile_model(bundle / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([next(iter(compiled([image[None]]).values())) for image in models.digits()["valid"][0].numpy()])


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = ac.torch.prepare(models.resnet(), MIXED, images())
    train(model)
    return model


@pytest.fixture(scope="module")
def exported(trained: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ac.torch.export(trained, tmp_path_factory.mktemp("script") / "out")


def test_what_is_deployed_agrees_with_what_was_trained(trained: nn.Module, exported: Path) -> None:
    same = deployed(exported).argmax(1) == simulated(trained).argmax(1)
    assert same.mean() >= 0.97


def test_training_recovers_what_pruning_lost() -> None:
    model = ac.torch.prepare(models.resnet(), {"pruning": {"*": 0.5}}, images())
    classes = models.digits()["valid"][1].numpy()
    before = (simulated(model).argmax(1) == classes).mean()
    for _ in range(4):
        train(model, 12)
    assert before < 0.8 < 0.85 < (simulated(model).argmax(1) == classes).mean()


def test_the_users_model_is_not_changed() -> None:
    original = models.resnet()
    before = copy.deepcopy(original.state_dict())
    train(ac.torch.prepare(original, MIXED, images()))
    assert not original.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in original.state_dict().items())


def test_the_prepared_module_is_a_plain_smaller_one_in_training_mode() -> None:
    model = ac.torch.prepare(models.resnet(), MIXED, images())
    assert type(model) is models.ResNet
    assert model.training
    assert model.stem.weight.shape == (11, 1, 3, 3)
    assert input_ranges(model).keys() == {name for name, part in model.named_modules() if hasattr(part, "simulated_input")}


def test_ranges_and_statistics_come_from_the_calibration_data() -> None:
    dark, bright = (ac.torch.prepare(models.resnet(), MIXED, scale * images()) for scale in (0.1, 1.0))
    assert input_ranges(dark)["stem"][1] == pytest.approx(0.1 * input_ranges(bright)["stem"][1], rel=1e-4)
    assert dark.bn.running_var.max() < bright.bn.running_var.max()


def test_without_pruning_the_statistics_are_the_originals() -> None:
    original = models.resnet()
    model = ac.torch.prepare(original, "qat-int8", images())
    assert torch.equal(model.bn.running_mean, original.bn.running_mean)


def test_a_copy_and_a_state_are_the_whole_module(trained: nn.Module, tmp_path: Path) -> None:
    duplicate = copy.deepcopy(trained)
    np.testing.assert_array_equal(simulated(duplicate), simulated(trained))
    other = ac.torch.prepare(models.resnet(), MIXED, images())
    other.load_state_dict(trained.state_dict())
    np.testing.assert_array_equal(simulated(other), simulated(trained))
    train(duplicate)
    assert (simulated(duplicate) != simulated(trained)).any()
    np.testing.assert_array_equal(
        simulated(ac.load(ac.torch.export(duplicate, tmp_path / "copy"), models.ResNet())), simulated(duplicate)
    )


@pytest.mark.parametrize("form", ["pair", "loader", "dict loader", "array", "one sample"])
def test_calibration_data_come_in_any_form(form: str) -> None:
    data: dict[str, Any] = {
        "pair": tuple(array[:64] for array in models.digits()["train"]),
        "loader": DataLoader(TensorDataset(*(array[:64] for array in models.digits()["train"])), batch_size=16),
        "dict loader": DataLoader([{"x": image, "label": 0} for image in images(64)], batch_size=16),
        "array": images(64).numpy(),
        "one sample": images(1),
    }
    model = ac.torch.prepare(models.resnet(), "qat-int8", data[form], target_key="label")
    assert input_ranges(model)["stem"][1] > 0


def test_named_inputs_are_calibrated_and_exported(tmp_path: Path) -> None:
    inputs, _ = models.halves(tuple(array[:32] for array in models.digits()["train"]), named=True)
    model = ac.torch.prepare(models.seeded(models.TwoInputs), "qat-int8", inputs)
    path = ac.torch.export(model, tmp_path / "out")
    contract = json.loads((path / "contract.json").read_text())
    assert [port["sample"] for port in contract["inputs"]] == ["upper", "lower"]
    assert all(check.kept for check in ac.verify(path))


def test_the_policy_may_come_from_a_search(finished: Path) -> None:
    record = next(record for record in searches.records(finished) if record.policy.pruning)
    by_file = ac.torch.prepare(models.resnet(), finished / "trials" / f"{record.number:04d}" / "policy.json", images(64))
    by_object = ac.torch.prepare(models.resnet(), record.policy, images(64))
    np.testing.assert_array_equal(simulated(by_file), simulated(by_object))


def test_schedules_follow_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[float] = []
    monkeypatch.setattr(script, "set_progress", lambda model, fraction: seen.append(fraction))
    model = ac.torch.prepare(models.resnet(), MIXED, images(64), steps=4)
    simulated(model)
    train(model, 2)
    resumed = ac.torch.prepare(models.resnet(), MIXED, images(64), steps=4)
    resumed.load_state_dict(model.state_dict())
    train(copy.deepcopy(resumed), 3)
    assert seen == [0, 0.25, 0.5, 0.75, 1.0]
    path = ac.torch.export(resumed, tmp_path / "out")
    np.testing.assert_array_equal(simulated(ac.load(path, models.ResNet())), simulated(resumed))


# What was exported


def test_a_promise_says_what_was_not_measured(exported: Path, finished: Path) -> None:
    promise = json.loads((exported / "promise.json").read_text())
    record = next(record for record in searches.records(finished) if record.latency_final)
    assert promise.keys() == promise_of(record, searches.run_json(finished)).keys()
    assert promise["latency_ms"] is promise["accuracy_valid"] is promise["trial"] is None
    assert promise["int8_share"] == 1.0
    assert promise["task"] == "ResNet"
    assert promise["size_bytes"] == sum((exported / name).stat().st_size for name in ("model.xml", "model.bin"))


def test_an_export_is_verified_benched_and_explained(exported: Path, task_file: Path) -> None:
    outcome = searches.cli("verify", exported, "--task", task_file, "--json")
    assert outcome.code == 0, outcome.err
    checks = {check["name"]: check for check in json.loads(outcome.out)}
    assert set(checks) == {"outputs of the samples", "latency", "valid accuracy", "test accuracy"}
    assert checks["latency"]["promised"] == "nothing, it was not measured"
    assert 0.5 < float(checks["valid accuracy"]["found"]) <= 1
    assert searches.cli("bench", exported, exported, "--json").code == 0
    assert searches.cli("explain", exported, "--json").code == 0


def test_the_module_trains_on_after_an_export(exported: Path, trained: nn.Module) -> None:
    before = simulated(copy.deepcopy(trained))
    duplicate = copy.deepcopy(trained)
    train(duplicate)
    assert (simulated(duplicate) != before).any()


# What is refused


REFUSED = {
    "unknown layer": ({"policy": {"layers": {"nowhere": {"weights": 8}}}}, PolicyError, r"'nowhere'.*It has: stem"),
    "unknown pattern": ({"policy": {"pruning": {"layer9.*": 0.5}}}, PolicyError, r"'layer9\.\*'"),
    "frozen group": ({"policy": {"pruning": {"fc": 0.5}}}, PolicyError, "the model's output"),
    "no file": ({"policy": "nowhere.yaml"}, PolicyError, "Templates: mixed"),
    "no model": ({"model": {}}, TaskError, r"torch\.nn\.Module"),
    "no data": ({"calibration_data": torch.zeros(0, 1, 8, 8)}, TaskError, "calibration data holds at least one sample"),
    "a generator": ({"calibration_data": iter([])}, TaskError, "again and again"),
    "samples, not batches": ({"calibration_data": TensorDataset(torch.zeros(3, 1, 8, 8))}, TaskError, "DataLoader"),
    "unknown criterion": ({"criterion": "luck"}, ConfigError, "criterion.*'luck'"),
    "no step": ({"steps": 0}, ConfigError, "at least 1"),
    "unknown option": ({"epochs": 3}, ConfigError, "Unknown key 'epochs'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_prepared_is_said(case: str) -> None:
    changes, error, words = REFUSED[case]
    arguments = {"model": models.resnet(), "policy": "qat-int8", "calibration_data": images(8), **changes}
    with pytest.raises(error, match=words):
        ac.torch.prepare(**arguments)


def test_a_prepared_module_is_not_prepared_again(trained: nn.Module) -> None:
    with pytest.raises(TaskError, match="plain parameters"):
        ac.torch.prepare(trained, "qat-int8", images(8))


def test_a_module_that_does_not_know_its_policy_is_not_exported(trained: nn.Module, tmp_path: Path) -> None:
    for model in (models.resnet(), nn.Sequential(trained)):
        with pytest.raises(TaskError, match=r"prepare\(\) or load\(\)"):
            ac.torch.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_goes_into_an_empty_folder_only(trained: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match="new or empty folder"):
        ac.torch.export(trained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# Weights on disk


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(models.build("conv"), tmp_path / "conv.safetensors")
    with pytest.raises(ModelError, match="weights of a file are those of the model"):
        load_weights(models.build("resnet"), tmp_path / "conv.safetensors")
    with pytest.raises(ModelError, match="complete safetensors"):
        load_weights(models.build("conv"), tmp_path / "missing.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "conv.safetensors").read_bytes()[:-4])
    with pytest.raises(ModelError, match="complete safetensors"):
        load_weights(models.build("conv"), tmp_path / "cut.safetensors")


def test_parts_of_one_memory_are_stored_as_they_are(tmp_path: Path) -> None:
    """Views that overlap without being the same tensor, and one that is not contiguous."""

    def build() -> nn.Module:
        model, whole = nn.Module(), torch.arange(12.0).reshape(3, 4)
        for name, part in {"whole": whole, "rows": whole[:2], "turned": whole.T, "again": whole, "empty": whole[:0]}.items():
            model.register_buffer(name, part)
        return model

    save_weights(build(), tmp_path / "views.safetensors")
    loaded = build()
    loaded.whole.zero_()
    load_weights(loaded, tmp_path / "views.safetensors")
    assert all(torch.equal(tensor, build().state_dict()[name]) for name, tensor in loaded.state_dict().items())
