import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from records import make_record

from autocompress.budget import Drop
from autocompress.config import Objective
from autocompress.front import costs, eligible, fastest, front_of, most_accurate, near_front, non_dominated, within_budget
from autocompress.metrics import METRICS, Metric
from autocompress.policy import Policy
from autocompress.record import State, TrialRecord

ACCURACY, ERROR = METRICS["accuracy"], METRICS["mse"]
TWO: list[Objective] = ["accuracy", "latency"]
THREE: list[Objective] = ["accuracy", "latency", "size"]

# Few distinct values, so that equal rows and equal columns are common.
points = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 4).map(float))
trials = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.integers(1, 3)), max_size=10)


def slow_non_dominated(rows: NDArray[np.float64]) -> list[bool]:
    """Compare every row with every other, one value after the other."""

    def dominates(a: list[float], b: list[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    listed = rows.tolist()
    return [not any(dominates(other, row) for other in listed) and row not in listed[:i] for i, row in enumerate(listed)]


def records_of(values: list[tuple[int, int, int]]) -> list[TrialRecord]:
    return [make_record(i, accuracy / 10, ms / 4, size=size) for i, (accuracy, ms, size) in enumerate(values)]


def numbers(records: list[TrialRecord]) -> list[int]:
    return [record.number for record in records]


#  y
#  4 | a . . . .      a (1, 4) kept: nothing is further left
#  3 | . . c . .      b (2, 2) kept
#  2 | . b . d .      c (3, 3) dominated by b
#  1 | . . . e f      d (4, 2) dominated by b (equal y) and e (equal x)
#    +-----------     e (4, 1) kept
#      1 2 3 4 5 x    f (5, 1) dominated by e (equal y)
#                     g (2, 2) equals b, which came first
HAND_DRAWN = {"a": (1, 4), "b": (2, 2), "c": (3, 3), "d": (4, 2), "e": (4, 1), "f": (5, 1), "g": (2, 2)}


def test_the_hand_drawn_front() -> None:
    keep = non_dominated(np.array(list(HAND_DRAWN.values())))
    assert [name for name, kept in zip(HAND_DRAWN, keep, strict=True) if kept] == ["a", "b", "e"]


@given(points)
def test_dominance_equals_comparing_every_pair(rows: NDArray[np.float64]) -> None:
    assert non_dominated(rows).tolist() == slow_non_dominated(rows)


@given(points)
def test_every_row_is_kept_or_has_a_kept_row_that_is_nowhere_larger(rows: NDArray[np.float64]) -> None:
    keep = non_dominated(rows)
    assert all(kept or (rows[keep] <= row).all(1).any() for row, kept in zip(rows, keep, strict=True))


def test_no_rows_have_no_front() -> None:
    assert non_dominated(np.zeros((0, 2))).tolist() == []


@pytest.mark.parametrize("rows", [[[np.nan, 1.0]], [[1.0, 1.0], [2.0, np.nan]]])
def test_nan_has_no_dominance(rows: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="NaN"):
        non_dominated(np.array(rows))


@pytest.mark.parametrize(("metric", "loss"), [(ACCURACY, -0.9), (ERROR, 0.9)])
def test_costs_are_all_to_be_minimised(metric: Metric, loss: float) -> None:
    record = make_record(accuracy=0.9, ms=3.0, size=1000)
    assert costs(record, ["accuracy", "latency", "size", "compressed_size"], metric) == [loss, 3.0, 1000.0, 500.0]


@pytest.mark.parametrize("state", [State.RUNNING, State.FAILED, State.OVER_BUDGET])
def test_an_incomplete_trial_has_no_costs(state: State) -> None:
    with pytest.raises(ValueError, match="Trial 3 is not complete"):
        costs(make_record(3, state=state), TWO, ACCURACY)


def test_the_front_is_sorted_by_latency_and_holds_complete_trials_only() -> None:
    records = [
        make_record(0, 0.9, 3.0),
        make_record(1, 0.7, 1.0),
        make_record(2, 0.8, 2.0),
        make_record(3, 0.6, 1.5),
        make_record(4, state=State.OVER_BUDGET, ms=0.1),
        make_record(5, state=State.FAILED),
        make_record(6, state=State.RUNNING),
    ]
    assert numbers(front_of(records, TWO, ACCURACY)) == [1, 2, 0]


def test_a_model_is_once_on_the_front_however_long_it_was_trained() -> None:
    """By noise the candidate is a little faster than the same network after a training of its own."""
    values = [(0.25, 0.9, 1.0, None), (0.25, 0.95, 1.01, 9), (0.75, 0.8, 0.5, None), (0.75, 0.7, 0.49, 9)]
    records = []
    for i, (ratio, accuracy, ms, epochs) in enumerate(values):
        record = make_record(i, accuracy, ms, policy=Policy({"stem": ratio}))
        record.plan = record.plan.model_copy(update={"epochs": epochs})
        records.append(record)
    for chosen in (front_of(records, TWO, ACCURACY), near_front(records, TWO, ACCURACY)):
        assert sorted(numbers(chosen)) == [1, 2, 3]  # what its own training made worse stays


def test_the_front_of_a_minimised_metric() -> None:
    records = [make_record(0, 0.9, 1.0), make_record(1, 0.1, 2.0), make_record(2, 0.5, 2.5)]
    assert numbers(front_of(records, TWO, ERROR)) == [0, 1]
    assert numbers(front_of(records, TWO, ACCURACY)) == [0]


def test_a_third_objective_keeps_what_is_smaller() -> None:
    records = [make_record(0, 0.9, 1.0, size=1000), make_record(1, 0.8, 1.1, size=500)]
    assert numbers(front_of(records, TWO, ACCURACY)) == [0]
    assert numbers(front_of(records, THREE, ACCURACY)) == [0, 1]


@given(trials.filter(bool), st.sampled_from([ACCURACY, ERROR]), st.sampled_from([TWO, THREE]))
def test_what_is_near_the_front_contains_the_front(
    values: list[tuple[int, int, int]], metric: Metric, objectives: list[Objective]
) -> None:
    records = records_of(values)
    near = numbers(near_front(records, objectives, metric))
    assert set(numbers(front_of(records, objectives, metric))) <= set(near)


def test_a_trial_is_near_the_front_if_a_little_speed_would_bring_it_there() -> None:
    records = [make_record(0, 0.9, 1.0), make_record(1, 0.85, 1.04), make_record(2, 0.85, 1.2)]
    assert numbers(near_front(records, TWO, ACCURACY)) == [0, 1]
    assert numbers(near_front(records, TWO, ACCURACY, slack=0.2)) == [0, 1, 2]


@pytest.mark.parametrize("records", [[], [make_record(state=State.FAILED)]], ids=["none", "failed"])
def test_without_a_complete_trial_nothing_is_on_or_near_the_front(records: list[TrialRecord]) -> None:
    assert front_of(records, TWO, ACCURACY) == []
    assert near_front(records, TWO, ACCURACY) == []


def test_the_latency_that_counts_is_the_latest() -> None:
    record = make_record(ms=1.0)
    record.latency_final = make_record(ms=2.0).latency
    assert not within_budget(record, 1.5)
    assert within_budget(record, 2.0)
    assert within_budget(record, None)
    assert not within_budget(make_record(state=State.FAILED), None)


def test_eligible_trials_keep_the_budget_and_the_drop() -> None:
    records = [
        make_record(0, 0.90, 5.0),
        make_record(1, 0.89, 1.0),
        make_record(2, 0.80, 0.5),
        make_record(3, state=State.OVER_BUDGET, ms=0.1),
        make_record(4, state=State.FAILED),
    ]
    assert numbers(eligible(records, 2.0, Drop.parse(0.02), 0.9, ACCURACY)) == [1]
    assert numbers(eligible(records, 2.0, None, 0.9, ACCURACY)) == [1, 2]
    assert numbers(eligible(records, None, Drop.parse(0.02), 0.9, ACCURACY)) == [0, 1]


def test_eligible_trials_of_a_minimised_metric_have_no_larger_error() -> None:
    records = [make_record(0, 1.0), make_record(1, 1.05), make_record(2, 1.2), make_record(3, 0.5)]
    assert numbers(eligible(records, None, Drop.parse("10%"), 1.0, ERROR)) == [0, 1, 3]


@pytest.mark.parametrize(("metric", "best", "quickest"), [(ACCURACY, 2, 4), (ERROR, 1, 1)])
def test_the_choice_of_one_breaks_ties_by_the_other_objective(metric: Metric, best: int, quickest: int) -> None:
    values = [(0.9, 3.0), (0.0, 1.0), (0.9, 2.0), (0.5, 2.0), (0.5, 1.0), (0.0, 3.0)]
    records = [make_record(number, accuracy, ms) for number, (accuracy, ms) in enumerate(values)]
    chosen = most_accurate(records, metric), fastest(records, metric)
    assert [record.number for record in chosen if record] == [best, quickest]


def test_of_no_trials_none_is_chosen() -> None:
    assert most_accurate([], ACCURACY) is None
    assert fastest([], ACCURACY) is None
