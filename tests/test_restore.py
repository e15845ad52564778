"""Saved and loaded: a bundle gives back the trainable module exactly, and says what does not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import models
import numpy as np
import openvino as ov
import pytest
import searches
import torch
from safetensors.torch import load_file
from test_bundle import rewrite
from torch import nn
from torch.nn import functional

import autocompress as ac
from autocompress.errors import BundleError, TaskError
from autocompress.frameworks.torch.framework import TorchFramework
from autocompress.history import History
from autocompress.record import State

INT8 = {"weights": 8, "activations": 8}


class Transformer(nn.Module):
    """Attention over the eight rows of an image, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, 16), nn.Parameter(0.1 * torch.randn(1, 8, 16))
        self.norm1, self.attention = nn.LayerNorm(16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm2, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x[:, 0]) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Tied(nn.Module):
    """Brightness as words: an embedding whose weight is that of the layer behind it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(17, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.unembed, self.head = nn.Linear(16, 17, bias=False), nn.Linear(17, 10)
        self.unembed.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed((16 * x.flatten(1)).long())
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(self.unembed(x).mean(1))


MAKE = {"transformer": Transformer, "tied": Tied, **models.CLASSIFIERS}
PRUNED = {"pruning": {"*": 0.5}, "layers": {"*": {"weights": 4, "activations": 8, "sparsity": 0.5}}}
BINARY = {"layers": {"*": INT8, "conv2": {"weights": 1, "activations": 1}, "conv1": {"activations": 4}}}
CASES = {
    **{kind: (kind, PRUNED) for kind in ("conv", "separable", "mlp", "transposed", "squeeze-excite", "transformer", "tied")},
    "binary": ("conv", BINARY),
    "only pruned": ("resnet", {"pruning": {"*": 0.3}}),
    "nothing": ("conv", {}),
}


def prepared(kind: str, policy: Any) -> nn.Module:
    return ac.torch.prepare(models.seeded(MAKE[kind]), policy, models.digits()["train"][0][:64])


def train(model: nn.Module, steps: int = 3) -> None:
    """A user's own loop."""
    images, classes = models.digits()["train"]
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    model.train()
    for step in range(steps):
        part = slice(32 * step, 32 * step + 32)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[part]), classes[part]).backward()
        optimizer.step()


def outputs(model: nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(models.digits()["valid"][0])


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = prepared("conv", PRUNED)
    train(model)
    return model


@pytest.fixture
def bundle(trained: nn.Module, tmp_path: Path) -> Path:
    return ac.torch.export(trained, tmp_path / "bundle")


def conv() -> nn.Module:
    """The original's architecture with weights of its own."""
    torch.manual_seed(7)
    return models.ConvNet()


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_module_gives_the_very_outputs(case: str, tmp_path: Path) -> None:
    kind, policy = CASES[case]
    model = prepared(kind, policy)
    train(model)
    path = ac.torch.export(model, tmp_path / "bundle")
    torch.manual_seed(7)
    other = MAKE[kind]()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    loaded = ac.load(path, other)
    assert torch.equal(outputs(loaded), outputs(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    assert not torch.equal(outputs(loaded), outputs(other))


def test_a_loaded_module_trains_on_as_the_saved_one_does(bundle: Path, trained: nn.Module) -> None:
    loaded = ac.load(bundle, conv())
    train(loaded)
    again = ac.load(bundle, conv())
    train(again)
    assert torch.equal(outputs(loaded), outputs(again))
    assert not torch.equal(outputs(loaded), outputs(trained))


def test_a_loaded_module_is_exported_again(bundle: Path, trained: nn.Module, tmp_path: Path) -> None:
    images = models.digits()["train"][0][:64]
    again = ac.torch.export(ac.load(bundle, conv(), images), tmp_path / "again")
    assert searches.picture(again).keys() == searches.picture(bundle).keys()
    assert torch.equal(outputs(ac.load(again, conv())), outputs(trained))
    assert ac.torch.export(ac.load(bundle, conv()), tmp_path / "without data").is_dir()


def test_tied_weights_stay_tied_and_are_stored_once(tmp_path: Path) -> None:
    model = prepared("tied", {"pruning": {"up": 0.5}, "layers": {"*": INT8}})
    train(model)
    path = ac.torch.export(model, tmp_path / "bundle")
    loaded = ac.load(path, Tied())
    assert loaded.unembed.parametrizations.weight.original is loaded.embed.weight
    assert torch.equal(loaded.embed.weight, model.embed.weight)
    header = (path / "weights.safetensors").read_bytes()[:4000]
    assert header.count(b"embed.weight") == 1
    assert b"unembed.parametrizations.weight.original" not in header


def test_a_model_whose_weights_are_not_tied_is_another_one(tmp_path: Path) -> None:
    path = ac.torch.export(prepared("tied", {"layers": {"*": INT8}}), tmp_path / "bundle")
    model = Tied()
    model.unembed.weight = nn.Parameter(model.unembed.weight.detach().clone())
    with pytest.raises(BundleError, match=r"unembed\.weight is float32 \[17, 16\], was the same tensor as embed\.weight"):
        ac.load(path, model)


def _widened() -> nn.Module:
    model = conv()
    model.conv2, model.bn2, model.fc = nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.Linear(32, 10)
    return model


def _without_head() -> nn.Module:
    model = conv()
    del model.fc
    return model


def _with_a_stride() -> nn.Module:
    model = conv()
    model.conv1.stride = (2, 2)
    return model


def _with_a_layer_more() -> nn.Module:
    model = conv()
    model.extra = nn.Linear(3, 3)
    return model


MISFITS = {
    "wider": (_widened, r"conv2\.weight is float32 \[32, 16, 3, 3\], was float32 \[24, 16, 3, 3\]; bn2\.weight .*; fc\.weight"),
    "without a layer": (_without_head, r"got fc is missing \(Linear\(in_features=24, out_features=10, bias=True\)\)\. "),
    "with another stride": (_with_a_stride, r"got conv1 is Conv2d\(.*stride=\(2, 2\).*was Conv2d\(.*stride=\(1, 1\)"),
    "with a layer more": (_with_a_layer_more, r"got extra is new \(Linear\(in_features=3, out_features=3, bias=True\)\)\. "),
    "another one": (models.ResNet, r"conv1 is missing .*; and \d+ more\. Any weights will do"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_model_that_is_built_differently_is_told_what_differs(case: str, bundle: Path) -> None:
    make, words = MISFITS[case]
    with pytest.raises(BundleError, match=words):
        ac.load(bundle, make())


def test_a_model_of_no_framework_is_refused(bundle: Path) -> None:
    with pytest.raises(TaskError, match=r"torch\.nn\.Module"):
        ac.load(bundle, {})


@pytest.mark.parametrize("name", ["weights.safetensors", "history.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_bundle_is_not_loaded(name: str, damage: str, bundle: Path) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).unlink() if damage == "missing" else (bundle / name).write_bytes(content[:-9])
    with pytest.raises(BundleError, match=rf"{name}, which is {damage}"):
        ac.load(bundle, conv())


def _history(bundle: Path, **changes: Any) -> None:
    """Another history with a digest and a checksum that fit, as someone would write who means harm."""
    history = History.read(bundle / "history.json")
    history.model_copy(update=changes).write(bundle / "history.json")
    rewrite(bundle, "history.json", (bundle / "history.json").read_bytes())


@pytest.mark.parametrize(
    "changes",
    [
        {"removed": {"conv1": [99]}},
        {"removed": {"conv1": [0, 1, 2]}},
        {"removed": {"__class__": [0]}},
        {"policy": {"layers": {"conv1": {"weights": 5}}}},
        {"policy": {"layers": {"nowhere": {"weights": 8}}}},
        {"policy": {}},
        {"framework": "keras"},
    ],
    ids=repr,
)
def test_a_history_that_cannot_be_replayed_is_refused(changes: dict[str, Any], bundle: Path) -> None:
    _history(bundle, **changes)
    with pytest.raises(BundleError):
        ac.load(bundle, conv())


class _Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize("name", ["weights.safetensors", "samples.npz", "history.json", "promise.json"])
def test_a_pickle_is_never_opened(name: str, bundle: Path, tmp_path: Path) -> None:
    content = pickle.dumps(_Bomb())
    if name == "samples.npz":
        np.savez(tmp_path / "bomb.npz", np.array([_Bomb()], dtype=object))
        content = (tmp_path / "bomb.npz").read_bytes()
    rewrite(bundle, name, content)
    with pytest.raises(BundleError):
        ac.load(bundle, conv())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"digest": 3}', b"\xff\xfe"])
def test_a_history_that_cannot_be_read_is_a_damaged_bundle(content: bytes, bundle: Path) -> None:
    rewrite(bundle, "history.json", content)
    with pytest.raises(BundleError, match=r"history\.json is readable"):
        ac.load(bundle, conv())


def test_a_history_with_a_digest_of_another_original_is_refused(bundle: Path) -> None:
    data = json.loads((bundle / "history.json").read_text())
    rewrite(bundle, "history.json", json.dumps(data | {"digest": "0" * 16}).encode())
    with pytest.raises(BundleError, match="names its original"):
        ac.load(bundle, conv())


def test_a_bundle_of_an_older_version_is_verified_but_not_loaded(bundle: Path) -> None:
    lines = (bundle / "SHA256SUMS").read_text().splitlines()
    for name in ("history.json", "weights.safetensors"):
        (bundle / name).unlink()
        lines = [line for line in lines if not line.endswith(name)]
    (bundle / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    assert all(check.kept for check in ac.verify(bundle))
    with pytest.raises(BundleError, match=r"without history\.json, weights\.safetensors"):
        ac.load(bundle, conv())


def test_every_model_of_a_search_can_be_loaded(finished: Path, tmp_path: Path) -> None:
    """Baselines that were not fine-tuned as well."""
    complete = [record for record in searches.records(finished) if record.state == State.COMPLETE]
    assert {record.plan.tune for record in complete} == {True, False}
    task, framework = models.search_task(), TorchFramework()
    for record in complete:
        path = ac.Result(finished).trial(record.number).export(tmp_path / str(record.number))
        candidate = framework.compress(task, record.policy, "l2")
        if record.plan.tune:
            candidate.model.load_state_dict(load_file(finished / "trials" / f"{record.number:04d}" / "weights.safetensors"))
        loaded = outputs(ac.load(path, models.ResNet()))
        assert torch.equal(loaded, outputs(candidate.model)), record.source
        compiled = ov.Core().compile_model(path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        deployed = [next(iter(compiled([image[None]]).values())) for image in models.digits()["valid"][0].numpy()]
        assert np.corrcoef(np.concatenate(deployed).ravel(), loaded.numpy().ravel())[0, 1] > 0.95, record.source


def test_a_trial_goes_on_with_the_channels_that_it_lost(tmp_path: Path, steady_meter: None) -> None:
    """As after a kill, if the ranking would now be another one."""
    task, policy, out = models.small_task(models.build("conv")), ac.Policy({"conv1": 0.5}), tmp_path / "run"
    record = ac.compress(task, policy, out=out, calibration_samples=2).record
    trial = out / "trials" / f"{record.number:04d}"
    lost = json.loads((trial / "removed.json").read_text())["conv1"]
    others = [channel for channel in range(16) if channel not in lost]
    (trial / "removed.json").write_text(json.dumps({"conv1": others}))
    stopped = record.model_copy(update={"state": State.RUNNING, "done": [], "latency_final": None})
    (trial / "record.json").write_text(stopped.model_dump_json())
    choice = ac.compress(task, policy, out=out, calibration_samples=2, resume=True)
    assert History.read(choice.export(tmp_path / "bundle") / "history.json").removed == {"conv1": others}
    ac.load(tmp_path / "bundle", models.build("conv"))
