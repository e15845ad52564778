"""The same task, fine-tuned by the `Trainer` of Hugging Face's transformers. Needs transformers and accelerate."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from typing import Any

import task as plain
import torch
import words
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import autocompress as ac

# transformers imports torchvision where it is installed, also a build that does not fit this torch; words need no images.
sys.modules.setdefault("torchvision", None)
from transformers import Trainer, TrainingArguments  # noqa: E402

DISTILLATION, TEMPERATURE = 0.7, 3.0


class DistillingTrainer(Trainer):
    """Learns from the classes and from the original's softened outputs (Hinton et al., 2015)."""

    def __init__(self, teacher: nn.Module, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.teacher = teacher

    def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        """The loss of a batch of words."""
        logits = model(inputs["words"])
        with torch.no_grad():
            taught = self.teacher(inputs["words"])
        mine, theirs = (functional.log_softmax(each / TEMPERATURE, dim=-1) for each in (logits, taught))
        distillation = TEMPERATURE**2 * functional.kl_div(mine, theirs, reduction="batchmean", log_target=True)
        return (1 - DISTILLATION) * functional.cross_entropy(logits, inputs["labels"]) + DISTILLATION * distillation


def collate(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch as the Trainer wants it."""
    letters, languages = zip(*samples, strict=True)
    return {"words": torch.stack(letters), "labels": torch.stack(languages)}


def fine_tune(model: nn.Module, teacher: nn.Module, epochs: int) -> None:
    """Train a candidate in place. Its pruned channels, low bits and zeros are part of the model; the Trainer need not know."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=plain.BATCH,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,  # of all steps
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        data = TensorDataset(*words.splits()["train"])
        DistillingTrainer(teacher, model=model, args=arguments, train_dataset=data, data_collator=collate).train()


def make_task() -> ac.Task:
    """The task of `task.py` with this training loop."""
    return dataclasses.replace(plain.make_task(), fine_tune=fine_tune, name="Language of a word, fine-tuned by the Trainer")
