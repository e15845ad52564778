"""How much of the data is looked at to take statistics anew."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest

from autocompress.data import Batch
from autocompress.frameworks.calibrating import BATCH_NORM_BATCHES, BATCH_NORM_SAMPLES, for_batch_norms


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
