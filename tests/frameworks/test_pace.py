"""How long a training is that has to end in time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autocompress.frameworks import pace
from autocompress.frameworks.base import TuneSettings
from autocompress.frameworks.pace import Pace

SETTINGS = TuneSettings(epochs=10, learning_rate=None, distillation=0.5)


def lengths(monkeypatch: pytest.MonkeyPatch, epochs: list[float], deadline: float | None) -> list[int]:
    """The length after every epoch, each of which takes so many seconds."""
    now = 100.0
    monkeypatch.setattr(pace, "monotonic", lambda: now)
    found, seen = Pace(replace(SETTINGS, deadline=None if deadline is None else now + deadline)), list[int]()
    for done, seconds in enumerate(epochs, start=1):
        now += seconds
        seen.append(found.epochs(done))
        if seen[-1] == done:
            break
    return seen


@pytest.mark.parametrize(
    ("epochs", "deadline", "expected"),
    [
        ([9.0] * 10, None, [10] * 10),
        ([2.0] * 10, 100.0, [10] * 10),
        ([2.0] * 10, 21.0, [10] * 10),
        ([2.0] * 10, 20.9, [9] * 9),
        ([2.0] * 10, 1.0, [1]),  # one that is done is kept, however late it is
        ([8.0] + [2.0] * 9, 27.0, [2] + [10] * 9),  # the first compiles something
        ([2.0] * 4 + [4.0] * 6, 24.0, [10] * 4 + [7] * 3),  # something else begins to run
        ([0.0] * 10, 1.0, [10] * 10),
    ],
)
def test_a_training_is_as_long_as_there_is_time_for(
    epochs: list[float], deadline: float | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = lengths(monkeypatch, epochs, deadline)
    assert seen == expected
    if deadline is not None and len(seen) > 1:
        assert sum(epochs[: len(seen)]) <= deadline
