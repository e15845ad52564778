"""How much of the data is looked at to take statistics anew."""

from __future__ import annotations

from itertools import repeat
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.data import Batch
from autocompress.frameworks.calibrating import (
    BATCH_NORM_BATCHES,
    BATCH_NORM_SAMPLES,
    CALIBRATION_BATCHES,
    FIRST_BATCHES,
    calibration_count,
    for_batch_norms,
)


@pytest.mark.parametrize(
    ("size", "there", "taken"),
    [
        (64, 100, BATCH_NORM_SAMPLES // 64),
        (256, 100, BATCH_NORM_SAMPLES // 256),
        (2 * BATCH_NORM_SAMPLES, 100, 1),
        (8, 100, BATCH_NORM_BATCHES),
        (64, 3, 3),
    ],
)
def test_batch_norms_see_enough_samples_in_no_more_batches_than_that_takes(size: int, there: int, taken: int) -> None:
    batches = list(repeat(Batch((np.zeros((size, 1)),), np.zeros(size)), there))
    unread = iter(batches)
    assert len(list(for_batch_norms(unread))) == taken
    assert len(list(unread)) == there - taken  # no batch is made in vain


@pytest.mark.parametrize(
    ("trains", "learned", "count"),
    [(False, [False], CALIBRATION_BATCHES), (True, [False, False], FIRST_BATCHES), (True, [False, True], CALIBRATION_BATCHES)],
)
def test_ranges_that_a_training_goes_on_observing_start_from_few_batches(trains: bool, learned: list[bool], count: int) -> None:
    assert calibration_count([SimpleNamespace(is_learned=one) for one in learned], trains) == count
