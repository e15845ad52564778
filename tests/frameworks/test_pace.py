"""How long a training is that has to end in time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from autocompress.frameworks import pace
from autocompress.frameworks.pace import Pace

ASKED, STEPS = 10, 4


@dataclass
class Clock:
    """A clock that is put on by hand."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def lengths(monkeypatch: pytest.MonkeyPatch, epochs: list[float], within: float | None, first: float = 0.0) -> list[int]:
    """The length after every epoch, each of which takes so many seconds, and the first step some more."""
    clock = Clock()
    monkeypatch.setattr(pace, "monotonic", clock)
    found, seen = Pace(ASKED, None if within is None else clock.now + within), list[int]()
    clock.now += first
    for seconds in epochs:
        for _ in range(STEPS):
            clock.now += seconds / STEPS
            found.end_step()
            if found.is_over():
                return seen
        found.end_epoch()
        seen.append(found.length)
        if found.is_over():
            break
    return seen


@pytest.mark.parametrize(
    ("epochs", "within", "expected"),
    [
        ([9.0] * 10, None, [10] * 10),
        ([2.0] * 10, 100.0, [10] * 10),
        ([2.0] * 10, 20.6, [10] * 10),
        ([2.0] * 10, 20.4, [9] * 9),
        ([2.0] * 10, 1.0, [1]),  # the first one is kept, however late it is
        ([2.0] * 4 + [1.0] * 6, 12.6, [6, 6, 6, 6, 6, 6]),  # it never becomes longer again
        ([2.0] * 4 + [4.0] * 6, 24.6, [10] * 4 + [9, 8, 8]),  # something else begins to run, and the eighth is cut off
        ([2.0] * 4 + [40.0], 24.6, [10] * 4),
        ([0.0] * 10, 1.0, [10] * 10),
    ],
)
def test_a_training_is_as_long_as_there_is_time_for(
    epochs: list[float], within: float | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lengths(monkeypatch, epochs, within) == expected


def test_what_the_first_step_compiles_is_not_taken_for_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lengths(monkeypatch, [2.0] * 10, 40.6, first=20.0) == [10] * 10


def test_a_training_of_single_steps_is_shortened_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pace, "monotonic", clock)
    found, seen = Pace(ASKED, clock.now + 10), list[int]()
    while not found.is_over():
        clock.now += 2
        found.end_step()
        found.end_epoch()
        seen.append(found.length)
    assert seen == [ASKED, 4, 4, 4]  # after the first step nothing is known yet
