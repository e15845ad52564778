"""A small one-dimensional convolutional network that tells the language of a word, trained once and kept in a cache."""

from __future__ import annotations

import sys
from pathlib import Path

import convolution

import autocompress as ac

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share
from keras_words import task_of


def make_task() -> ac.Task:
    """The task of this experiment."""
    return task_of("words_keras_convolution", convolution.word_classifier, convolution)
