"""Modules, data and training that are not as most are: they work, or are refused in one line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

import autocompress as ac
from autocompress.errors import ConfigError, PolicyError, TaskError
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.frameworks.torch.losses import default_loss, distillation
from autocompress.frameworks.torch.script import structure_of
from autocompress.prepared import task_of

INT8 = {"layers": {"*": {"weights": 8, "activations": 8}}}
SETTINGS = TuneSettings(epochs=1, learning_rate=1e-2, distillation=0.5)


class Encoder(nn.Module):
    """PyTorch's own encoder, which in evaluation computes past its layers where it may."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1))


class Edited(nn.Module):
    """A network whose forward pass can be changed without a change of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)
        self.joined = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = torch.relu(self.a(x)), torch.relu(self.b(x))
        return self.c(a + b) if self.joined else self.c(a) + b.sum()


class Auxiliary(nn.Module):
    """A second head while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.extra = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> Any:
        inner = torch.relu(self.body(x))
        return (self.head(inner), self.extra(inner)) if self.training else self.head(inner)


def small(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(8)] if norm else []
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *norms, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def task(model: nn.Module, *shape: int, **options: Any) -> ac.Task:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(16, *shape, generator=generator), torch.randint(0, 3, (16,), generator=generator)
    return ac.Task(model, **{"train": data, "valid": data, "loss": nn.functional.cross_entropy} | options)


def tuned(one: ac.Task, policy: ac.Policy, settings: TuneSettings = SETTINGS) -> Any:
    framework = TorchFramework()
    candidate = framework.compress(one, policy, "l2")
    framework.fine_tune(one, candidate, settings, lambda fraction: None)
    return candidate


def test_an_encoder_of_pytorch_runs_in_int8(tmp_path: Path) -> None:
    model = ac.torch.prepare(Encoder(), INT8, torch.randn(8, 5, 16))
    promise = ac.torch.export(model, tmp_path / "out") / "promise.json"
    assert "does not" not in promise.read_text()


def test_an_encoder_with_a_padding_mask_is_calibrated_and_evaluated() -> None:
    inputs = {"x": torch.randn(8, 5, 16), "mask": torch.arange(5).expand(8, 5) > 3}
    model = ac.torch.prepare(Encoder(), INT8, inputs).eval()
    with torch.no_grad():
        assert model(**inputs).isfinite().all()


def test_the_proof_is_of_the_forward_pass_that_is_there() -> None:
    model = Edited()
    apart = {group.name for group in TorchFramework().inspect(task(model, 4)).groups}
    model.joined = True
    together = TorchFramework().inspect(task(model, 4)).groups
    assert [group.name for group in together] == ["a"]
    assert apart != {"a"} or together[0].layers != ("a",)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(4, 3), r"bare Linear.*Sequential"),
        (nn.Sequential(nn.Linear(4, 3)).bfloat16(), r"bfloat16 in 0.*float\(\)"),
        (nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3))), r"0, whose weight is computed.*remove_spectral_norm"),
    ],
    ids=["bare", "half", "hooked"],
)
def test_a_model_that_cannot_be_compressed_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        structure_of(task_of(model, torch.randn(4, 4)), prunable=True)


def test_a_layer_that_is_called_by_name_is_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(input=x)

    with pytest.raises(TaskError, match=r"first argument.*fc called with input"):
        ac.torch.prepare(Named(), INT8, torch.randn(4, 4))


def test_a_compiled_module_is_not_what_prepare_returned(tmp_path: Path) -> None:
    prepared = ac.torch.prepare(small(), INT8, images())
    with pytest.raises(TaskError, match=r"Export the module itself"):
        ac.torch.export(torch.compile(prepared, backend="eager"), tmp_path / "out")  # type: ignore[arg-type]


def test_one_sample_leaves_the_statistics_as_they_were() -> None:
    model = small()
    model[1].running_mean.fill_(3.0)
    prepared = ac.torch.prepare(model, {"pruning": {"*": 0.5}}, images(1))
    assert (prepared.get_submodule("1").running_mean == 3).all()


def test_batches_of_one_from_a_sampler_train_without_statistics() -> None:
    data = TensorDataset(images(6), torch.zeros(6, dtype=torch.int64))
    loader = DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 1, drop_last=False))
    one = task(small(), 3, 8, 8, train=loader)
    assert (tuned(one, ac.Policy()).model[0].weight != one.model[0].weight).any()


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(TaskError, match=r"parameter that may change"):
        tuned(task(small().requires_grad_(False), 3, 8, 8), ac.Policy())


def test_heads_that_only_train_are_not_taught() -> None:
    def loss(outputs: Any, classes: torch.Tensor) -> torch.Tensor:
        return sum(nn.functional.cross_entropy(one, classes) for one in outputs)  # type: ignore[return-value]

    one = task(Auxiliary(), 4, loss=loss)
    assert (tuned(one, ac.Policy()).model.head.weight != one.model.head.weight).any()
    taught = torch.randn(5, 3)
    assert distillation((taught, torch.randn(5, 3)), [taught], torch.zeros(5, dtype=torch.int64)) < 1e-6


def test_the_default_loss_of_tokens_looks_along_their_last_axis() -> None:
    classes = torch.tensor([[0, 1, 2], [2, 1, 0]])
    right = 100.0 * nn.functional.one_hot(classes, 3)
    assert default_loss(right, classes) < 1e-6
    assert default_loss(right[:, :, [1, 2, 0]], classes) > 1


def test_gradual_pruning_is_the_same_with_the_same_seed() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    settings = TuneSettings(epochs=3, learning_rate=1e-2, distillation=0.5, pruning_schedule="linear")
    first, second = (tuned(task(copy.deepcopy(model), 4), ac.Policy({"0": 0.5}), settings).model for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach(), other.detach())


def test_a_criterion_of_gradients_needs_targets() -> None:
    with pytest.raises(ConfigError, match=r"taylor needs targets"):
        ac.torch.prepare(small(), {"pruning": {"*": 0.5}}, images(), criterion="taylor")


def test_a_name_that_yaml_reads_as_a_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("layers:\n  1.10: {weights: 8, activations: 8}\n")
    with pytest.raises(PolicyError, match=r"quotes.*1\.1"):
        ac.torch.prepare(small(), path, images())


def test_volumes_are_trained_in_the_fastest_arithmetic() -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 3))
    one = task(model, 1, 4, 4, 4, batch_size=2)
    settings = TuneSettings(epochs=20, learning_rate=1e-3, distillation=0.5, arithmetic="fastest")
    assert tuned(one, ac.Policy(), settings).model[0].weight.isfinite().all()


def test_a_bundle_that_is_loaded_and_exported_keeps_its_settings(tmp_path: Path) -> None:
    options = {"storage": "fast", "preprocessing": {"scale": "x / 255"}, "name": "mine"}
    prepared = ac.torch.prepare(small(), {"layers": {"*": {"weights": 4, "activations": 8}}}, images(), **options)
    first = ac.torch.export(prepared, tmp_path / "first")
    second = ac.torch.export(ac.load(first, small()), tmp_path / "second")
    for name in ("contract.json", "policy.json"):
        assert (first / name).read_text() == (second / name).read_text()
    assert (first / "model.bin").stat().st_size == (second / "model.bin").stat().st_size
    assert '"mine"' in (second / "promise.json").read_text()
