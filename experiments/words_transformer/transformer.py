"""A small transformer encoder (Vaswani et al., 2017; layer norm first) that puts a word into one of several classes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Let every letter look at every letter of (N, letters, width)."""
        query, key, value = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        found = functional.scaled_dot_product_attention(query, key, value)
        return self.output(found.transpose(1, 2).flatten(2))

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """(N, letters, width) as (N, heads, letters, width of a head)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)


class Layer(nn.Module):
    """Attention, then two linear layers for each letter, both added to their input."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.expand, self.project = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to (N, letters, width)."""
        x = x + self.attention(self.norm1(x))
        return x + self.project(functional.gelu(self.expand(self.norm2(x))))


class WordClassifier(nn.Module):
    """Letters and their places embedded, encoder layers, the average of all letters, classes."""

    def __init__(self, letters: int, length: int, classes: int, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*(Layer(width, heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of letter codes (N, length)."""
        x = self.layers(self.letters(words) + self.places)
        return self.classifier(self.norm(x).mean(1))
