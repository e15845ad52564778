"""A small transformer that tells the language of a word, trained once and kept in a cache."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share
import words
from originals import trained_once

BATCH = 128
EPOCHS, LEARNING_RATE = 8, 2e-3


def batches(part: words.Pair) -> DataLoader:
    """Training batches, shuffled anew in every pass."""
    return DataLoader(TensorDataset(*part), BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))


def original(part: words.Pair) -> nn.Module:
    """The trained transformer."""
    torch.manual_seed(0)
    model = transformer.WordClassifier(1 + len(words.LETTERS), words.LONGEST, len(words.LISTS))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    return trained_once("words_transformer", model, batches(part), optimizer, EPOCHS, transformer, words)


def make_task() -> ac.Task:
    """The task of this experiment."""
    parts = words.splits()
    return ac.Task(
        original(parts["train"]),
        train=batches(parts["train"]),
        valid=parts["valid"],
        test=parts["test"],
        loss=functional.cross_entropy,
        metric="accuracy",
        preprocessing={"letters": words.LETTERS, "length": words.LONGEST, "languages": list(words.LISTS)},
        epochs=1,
        name="Language of a word",
    )
