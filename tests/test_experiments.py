"""What the experiments do by themselves: their data, and a training loop of Hugging Face's in the `fine_tune` hook."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from autocompress.errors import TaskError
from autocompress.frameworks.base import TuneSettings, framework_of
from autocompress.policy import LayerPolicy, Policy
from autocompress.task import load_task

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
WORDS = EXPERIMENTS / "words_transformer"
OWN = ["words", "transformer", "task", "originals"]


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The data of the word experiment, imported as its task imports it."""
    monkeypatch.setattr(sys, "path", [str(WORDS), str(EXPERIMENTS), *sys.path])
    for name in OWN:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import words

    return words


@pytest.fixture
def few_words(words: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Word lists of 400 made-up words each; every language has letters of its own."""
    generator = np.random.default_rng(0)
    for index, name in enumerate(words.LISTS):
        letters = list("abcdefghijklmnopqrstuvwx"[4 * index : 4 * index + 4])
        made_up = {"".join(generator.choice(letters, 8)) for _ in range(400)}
        (tmp_path / name).write_text("\n".join([*made_up, "Everywhere", "it's", "of"]), encoding="utf-8")
    monkeypatch.setattr(words, "FOLDER", tmp_path)
    monkeypatch.setattr(words, "PARTS", {part: (*limits[:2], 20) for part, limits in words.PARTS.items()})
    return words


def test_a_missing_word_list_is_named_with_the_packages(
    words: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "FOLDER", tmp_path)
    with pytest.raises(TaskError, match=r"no .*american-english.*apt-get install wamerican wdutch"):
        words.splits()


def test_splits_share_no_beginning_of_a_word(few_words: ModuleType) -> None:
    splits = few_words.splits()
    beginnings = [{tuple(word[: few_words.STEM]) for word in inputs.tolist()} for inputs, _ in splits.values()]
    assert sum(map(len, beginnings)) == len(set.union(*beginnings))
    assert all(torch.bincount(languages).tolist() == [20] * len(few_words.LISTS) for _, languages in splits.values())


def test_words_of_several_languages_and_with_other_signs_are_left_out(few_words: ModuleType) -> None:
    absent = few_words.encoded(["everywhere"])[0]
    assert not any((inputs == absent).all(1).any() for inputs, _ in few_words.splits().values())
    assert few_words.words_of("dutch").isdisjoint({"it's", "of"})


def test_a_trainer_of_hugging_face_fine_tunes_a_candidate(few_words: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as the task itself does, but for this test alone
    task = load_task(WORDS / "task_hf.py")
    framework = framework_of(task.model)
    structure = framework.inspect(task)
    layers = {layer.name: LayerPolicy(weights=4, activations=8) for layer in structure.layers}
    candidate = framework.compress(task, Policy({"layers.0.expand": 0.5}, layers), "l2")
    before = loss_of(candidate.model, task)
    framework.fine_tune(task, candidate, TuneSettings(epochs=20, learning_rate=None, distillation=0.7), lambda fraction: None)
    assert loss_of(candidate.model, task) < 0.5 * before
    assert framework.to_openvino(task, candidate, 1).grids["layers.0.expand"].codes.shape == (128, 64)


def loss_of(model: Any, task: Any) -> float:
    """On validation words, which were not trained on."""
    words, languages = task.valid
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(words), languages))


def test_the_keras_resnet_is_the_one_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [EXPERIMENTS.parent / "benchmarks", EXPERIMENTS / "mnist_resnet8", EXPERIMENTS / "mnist_keras_resnet8", EXPERIMENTS]
    monkeypatch.setattr(sys, "path", [*map(str, folders), *sys.path])
    import check_keras
    import resnet

    torch.manual_seed(0)
    model = resnet.ResNet8(check_keras.WIDTH).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)  # of batch norms: as they begin, they do next to nothing
    images = torch.rand(4, 1, 28, 28)
    theirs = model(images).detach().numpy()
    ours = check_keras.transferred(model)(np.moveaxis(images.numpy(), 1, -1), training=False)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.ptp(theirs))


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("convolution", ["conv1", "conv2", "conv3"]),
        ("transformer", [f"layer{i}_{part}" for i in range(2) for part in ("attention/query", "expand")]),
    ],
)
def test_the_keras_networks_of_words_have_channels_to_lose(
    name: str, groups: list[str], few_words: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shared in ("keras_originals", "keras_words"):
        monkeypatch.delitem(sys.modules, shared, raising=False)
    task = load_task(EXPERIMENTS / f"words_keras_{name}/task.py")
    assert [group.name for group in framework_of(task.model).inspect(task).groups] == groups
    assert task.splits["train"].is_arrays
