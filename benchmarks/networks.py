"""Untrained networks of timm and transformers, for the benchmarks.

timm's list is `coverage_timm.csv`: of each of its model modules the variant with the fewest parameters (no `test_` variant,
at most 30 million; where the smallest is larger, it is made narrower by the options listed, or left out), and some more of
modules that hold several architectures. The side of the images is the smallest of 64, 96, … that the variant accepts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

LIST = Path(__file__).with_name("coverage_timm.csv")
TOKENS, WORDS = 16, 1000
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: of the variant.
        family: timm's module, or "transformers".
        make: gives the module, with random weights.
        inputs: gives random inputs for one sample, positional or by name.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def packages() -> tuple[Any, Any]:
    """The packages timm and transformers. Both import torchvision, whose operators may not fit the torch at hand."""
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            OPERATORS.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    import timm
    import transformers

    return timm, transformers


def from_timm(name: str, **options: Any) -> nn.Module:
    """An untrained network with ten classes."""
    model: nn.Module = packages()[0].create_model(name, pretrained=False, num_classes=10, **options)
    return model


def timm_networks() -> list[Network]:
    """The list."""
    with LIST.open() as file:
        return [_from_row(row) for row in csv.DictReader(file)]


def _from_row(row: dict[str, str]) -> Network:
    side, options = int(row["side"]), json.loads(row["options"] or "{}")
    return Network(
        row["model"], row["family"], lambda: from_timm(row["model"], **options), lambda: (torch.randn(1, 3, side, side),)
    )


SMALL = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512, "vocab_size": WORDS}
TEXT = SMALL | {"max_position_embeddings": 64}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Albert": ("ForSequenceClassification", TEXT | {"embedding_size": 64}),
    "Bert": ("ForSequenceClassification", TEXT),
    "DebertaV2": ("ForSequenceClassification", TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "DistilBert": (
        "ForSequenceClassification",
        {"dim": 128, "n_layers": 3, "n_heads": 4, "hidden_dim": 512, "vocab_size": WORDS},
    ),
    "Electra": ("ForSequenceClassification", TEXT | {"embedding_size": 64}),
    "GPT2": (
        "ForSequenceClassification",
        {"n_embd": 128, "n_layer": 3, "n_head": 4, "vocab_size": WORDS, "n_positions": 64, "pad_token_id": 0},
    ),
    "Llama": ("ForSequenceClassification", TEXT | {"num_key_value_heads": 2, "pad_token_id": 0}),
    "Roberta": ("ForSequenceClassification", TEXT),
    "T5": ("EncoderModel", {"d_model": 128, "d_kv": 32, "d_ff": 512, "num_layers": 3, "num_heads": 4, "vocab_size": WORDS}),
    "ViT": ("ForImageClassification", SMALL | {"image_size": 64, "patch_size": 16}),
    "Wav2Vec2": (
        "ForSequenceClassification",
        SMALL
        | {
            "conv_dim": [64, 64, 64],
            "conv_kernel": [10, 3, 3],
            "conv_stride": [5, 2, 2],
            "num_conv_pos_embeddings": 16,
            "classifier_proj_size": 64,
        },
    ),
}
"""Architecture → the class's head, and a small configuration."""


def transformers_networks() -> list[Network]:
    """Small configurations of common architectures."""
    return [
        Network(name, "transformers", lambda name=name: _transformer(name), lambda name=name: _inputs(name))
        for name in TRANSFORMERS
    ]


def _transformer(name: str) -> nn.Module:
    transformers, (head, settings) = packages()[1], TRANSFORMERS[name]
    config = getattr(transformers, f"{name}Config")(**settings)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    model: nn.Module = getattr(transformers, name + head)(config)
    for module in model.modules():
        if parametrize.is_parametrized(module):  # Wav2Vec2's weight norm; the engine asks for plain weights
            parametrize.remove_parametrizations(module, "weight")
    return model


def _inputs(name: str) -> dict[str, torch.Tensor]:
    if name == "ViT":
        return {"pixel_values": torch.randn(1, 3, 64, 64)}
    if name == "Wav2Vec2":
        return {"input_values": torch.randn(1, 1600)}
    return {"input_ids": torch.randint(3, WORDS, (1, TOKENS)), "attention_mask": torch.ones(1, TOKENS, dtype=torch.long)}
