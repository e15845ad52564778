"""The front's own training: which models come first, and for how long each is trained."""

from __future__ import annotations

import pytest
from records import make_record

from autocompress.finals import LONG, LONGEST, epochs_within, in_order
from autocompress.metrics import resolve_metric
from autocompress.policy import Policy
from autocompress.record import Stage, TrialRecord

ACCURACY = resolve_metric("accuracy", None)


def front(*models: tuple[float, float]) -> list[TrialRecord]:
    """Records of (accuracy, ms), numbered in order."""
    return [make_record(i, *model, policy=Policy({"stem": i / 100})) for i, model in enumerate(models)]


def numbers(records: list[TrialRecord]) -> list[int]:
    return [record.number for record in records]


def test_the_best_comes_first_then_what_is_farthest_in_latency() -> None:
    records = front((0.95, 2.0), (0.94, 1.9), (0.93, 1.1), (0.92, 0.95))
    assert numbers(in_order([*records, *front()], records[1], ACCURACY)) == [1, 3, 2, 0]


def test_what_has_lost_far_more_than_the_others_comes_last_however_fast_it_is() -> None:
    records = front((0.954, 2.0), (0.946, 1.5), (0.941, 1.3), (0.83, 1.2), (0.78, 1.0))
    assert numbers(in_order(records, None, ACCURACY)) == [0, 2, 1, 3, 4]
    assert numbers(in_order(records[:2], None, ACCURACY)) == [0, 1]


def test_the_best_comes_first_though_it_has_lost_far_more_than_the_others() -> None:
    records = front((0.95, 2.0), (0.945, 1.5), (0.94, 1.2), (0.83, 0.5))
    assert numbers(in_order(records, records[3], ACCURACY))[0] == 3
    trained_again = make_record(9, 0.9, 0.5, policy=records[3].policy)
    assert numbers(in_order(records, trained_again, ACCURACY))[0] == 3


def test_less_is_better_where_the_metric_says_so() -> None:
    records = front((0.2, 1.0), (0.1, 2.0), (0.9, 0.5))
    assert numbers(in_order(records, None, resolve_metric("mse", None))) == [1, 0, 2]


def test_an_empty_front_has_no_order() -> None:
    assert in_order([], None, ACCURACY) == []


def trained(macs: int, tuning: float, besides: float = 1.0, epochs: int | None = None) -> TrialRecord:
    """A record whose training took so many seconds."""
    record = make_record()
    record.macs, record.seconds = macs, {Stage.FINE_TUNE: tuning, Stage.EXPORT: besides}
    record.plan = record.plan.model_copy(update={"epochs": epochs})
    return record


@pytest.mark.parametrize(("seconds", "epochs"), [(6.9, None), (8.0, 3), (12.6, 5), (60.0, LONG * 3)])
def test_a_model_is_trained_for_as_long_as_the_time_allows(seconds: float, epochs: int | None) -> None:
    tuned = [trained(100, 6.0), trained(1000, 60.0)]
    model = make_record()
    model.macs = 150
    assert epochs_within(seconds, 5, model, tuned, own=3, least=3) == epochs


@pytest.mark.parametrize(("models", "epochs"), [(1, LONGEST * 3), (2, 27), (8, LONG * 3)])
def test_all_are_trained_longer_where_there_is_time_for_it(models: int, epochs: int) -> None:
    assert epochs_within(130.0, models, make_record(), [trained(100, 6.0)], own=3, least=3) == epochs


def test_what_an_epoch_takes_is_told_by_its_own_number_of_epochs() -> None:
    assert epochs_within(15.0, 1, trained(100, 0.0), [trained(100, 24.0, epochs=12)], own=3, least=3) == 6


def test_a_model_that_would_get_no_more_than_it_had_is_left_alone() -> None:
    assert epochs_within(8.5, 1, make_record(), [trained(100, 6.0)], own=3, least=4) is None


def test_heirs_that_were_trained_for_a_shorter_time_tell_nothing() -> None:
    heir = trained(100, 6.0)
    heir.done = [Stage.INHERIT, Stage.FINE_TUNE]
    assert epochs_within(40.0, 1, make_record(), [heir, trained(900, 60.0, epochs=20)], own=10, least=10) == 11


def test_without_any_training_before_a_model_gets_what_a_candidate_has() -> None:
    assert epochs_within(1.0, 1, make_record(), [make_record()], own=3, least=3) == 3
    assert epochs_within(-1.0, 1, make_record(), [make_record()], own=3, least=3) is None
