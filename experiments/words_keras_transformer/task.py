"""A small transformer that tells the language of a word, trained once and kept in a cache."""

from __future__ import annotations

import sys
from pathlib import Path

import keras_transformer

import autocompress as ac

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what the experiments share
from keras_words import task_of


def make_task() -> ac.Task:
    """The task of this experiment."""
    return task_of("words_keras_transformer", keras_transformer.word_classifier, keras_transformer)
