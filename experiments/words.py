"""Words of six languages from Debian's word lists. Which language a word is of can be told from its letters, mostly.

A word that stands in several lists is left out. Words that begin alike (inflections of one stem) fall into the same split.
"""

from __future__ import annotations

import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch

from autocompress.errors import TaskError

FOLDER = Path("/usr/share/dict")
LISTS = {  # file → package
    "american-english": "wamerican",
    "dutch": "wdutch",
    "french": "wfrench",
    "italian": "witalian",
    "ngerman": "wngerman",
    "spanish": "wspanish",
}
SHORTEST, LONGEST, STEM = 4, 16, 5
"""Letters of a word, and of the beginning that decides in which split it falls."""
PARTS = {"valid": (0, 1, 800), "test": (1, 2, 800), "train": (2, 10, 8000)}
"""Which tenths of the beginnings, and how many words of each language."""
LETTERS = "abcdefghijklmnopqrstuvwxyzßàáâäåçèéêëìíîïñòóôöùúûü"
CODES = {letter: code for code, letter in enumerate(LETTERS, 1)}
"""0 fills up short words."""
Pair = tuple[torch.Tensor, torch.Tensor]


@cache
def splits() -> dict[str, Pair]:
    """Words (N, 16) as letter codes, and their languages (N), of each split.

    Raises:
        TaskError: a word list is not installed.
    """
    lists = [words_of(name) for name in LISTS]
    known = Counter(word for words in lists for word in words)
    unique = [sorted(word for word in words if known[word] == 1) for words in lists]
    return {part: sample(unique, *limits) for part, limits in PARTS.items()}


def words_of(name: str) -> set[str]:
    """The words of a list that are written with the letters above, in small letters."""
    path = FOLDER / name
    if not path.is_file():
        raise TaskError("The words come from Debian's word lists", f"no {path}", f"apt-get install {' '.join(LISTS.values())}")
    words = {word.lower() for word in path.read_text(encoding="utf-8").split()}
    return {word for word in words if SHORTEST <= len(word) <= LONGEST and CODES.keys() >= set(word)}


def sample(languages: list[list[str]], low: int, high: int, count: int) -> Pair:
    """`count` words of each language whose beginnings fall into the tenths [low, high)."""
    generator = np.random.default_rng(low)
    chosen: list[str] = []
    for words in languages:
        here = [word for word in words if low <= zlib.crc32(word[:STEM].encode()) % 10 < high]
        chosen += [here[i] for i in generator.choice(len(here), count, replace=False)]
    return encoded(chosen), torch.arange(len(languages)).repeat_interleave(count)


def encoded(words: list[str]) -> torch.Tensor:
    """Words as letter codes (N, 16)."""
    return torch.tensor([[CODES[letter] for letter in word] + [0] * (LONGEST - len(word)) for word in words])
