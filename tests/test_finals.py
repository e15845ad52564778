"""The front's own training: which model comes next, and for how long."""

from __future__ import annotations

import time

import numpy as np
import pytest
from records import make_record

from autocompress.baselines import ORIGINAL
from autocompress.config import Objective
from autocompress.finals import LEARNING, LONGEST, MARGIN, Final, Finals, Lengths, Value
from autocompress.front import eligible
from autocompress.metrics import resolve_metric
from autocompress.policy import Policy
from autocompress.record import Stage, TrialRecord

ACCURACY = resolve_metric("accuracy", None)
OWN = 3


def model(number: int, accuracy: float, ms: float, tuning: float = 6.0, epochs: int | None = OWN) -> TrialRecord:
    """A candidate whose training took so many seconds and all else one; its MACs follow its latency."""
    record = make_record(number, accuracy, ms, policy=Policy({"stem": number / 100}))
    record.macs, record.epochs = round(1000 * ms), epochs
    record.seconds = {Stage.FINE_TUNE: tuning, Stage.EXPORT: 1.0}
    return record


def front(*models: tuple[float, float]) -> list[TrialRecord]:
    """Candidates of (accuracy, ms), numbered in order."""
    return [model(i, *one) for i, one in enumerate(models)]


def finals(records: list[TrialRecord], metric: str = "accuracy", budget_ms: float = 9.0, **lengths: object) -> Finals:
    """The finals of a search whose original has an accuracy of .96 or an error of .05, and 2 ms."""
    original = make_record(99, 0.96 if metric == "accuracy" else 0.05, 2.0, policy=Policy(), source=ORIGINAL)
    complete, measure = [original, *records], resolve_metric(metric, None)
    useful = eligible(complete, budget_ms, None, None, measure)
    return Finals(complete, useful, ["accuracy", "latency"], measure, Lengths(OWN, **lengths))  # type: ignore[arg-type]


def alone(records: list[TrialRecord]) -> Finals:
    """The finals of a search that has these records and no others."""
    return Finals(records, records, ["accuracy", "latency"], ACCURACY, Lengths(OWN))


def all_of(models: list[TrialRecord], seconds: float | None, metric: str = "accuracy", budget_ms: float = 9.0) -> list[Final]:
    """One final after the other, each foretold rightly."""
    known, found = list(models), []
    while models and (final := finals(known, metric, budget_ms).next(models, seconds)) is not None:
        models = [one for one in models if one is not final.record]
        trained = model(50 + len(known), final.gain, final.record.latency.ms, 2.0 * final.epochs)  # type: ignore[union-attr]
        trained.plan = trained.plan.model_copy(update={"epochs": final.epochs})
        known.append(trained)
        found.append(final)
        seconds = None if seconds is None else seconds - trained.total_seconds
    return found


def numbers(found: list[Final]) -> list[int]:
    return [final.record.number for final in found]


def test_a_fast_model_that_has_lost_something_comes_before_a_slow_one_that_has_lost_nothing() -> None:
    found = all_of(front((0.958, 1.8), (0.952, 1.4), (0.94, 0.6)), 1000.0)
    assert numbers(found) == [2, 1, 0]


def test_what_will_be_delivered_comes_first() -> None:
    models = front((0.952, 1.4), (0.94, 0.6))
    assert numbers(all_of(models, 1000.0, budget_ms=1.5)) == [0, 1]
    assert numbers(all_of(models, 1000.0)) == [1, 0]  # without a budget that will be the original


def test_accuracy_counts_from_the_originals_latency_on() -> None:
    found = all_of(front((0.945, 0.9), (0.944, 0.89), (0.943, 0.88)), 60.0)
    assert numbers(found)[0] == 0


def test_few_models_are_trained_for_long_where_time_is_short() -> None:
    models = front((0.955, 1.8), (0.95, 1.5), (0.945, 1.2), (0.94, 0.9), (0.93, 0.6))
    few, all_five = all_of(models, 60.0), all_of(models, 1000.0)
    assert len(few) < 5
    assert few[0].epochs >= 3 * OWN
    assert len(all_five) == 5
    assert {final.epochs for final in all_five} == {LONGEST * OWN}


@pytest.mark.parametrize("seconds", [15.0, 30.0, 75.0, 200.0])
def test_no_plan_takes_longer_than_there_is_time(seconds: float) -> None:
    found = all_of(front((0.955, 1.8), (0.95, 1.5), (0.945, 1.2), (0.94, 0.9), (0.93, 0.6)), seconds)
    assert found
    assert sum(MARGIN * 2.0 * final.epochs + 1.0 for final in found) <= seconds + (MARGIN - 1) * seconds


def test_what_has_lost_far_more_than_the_others_comes_last_however_fast_it_is() -> None:
    models = front((0.954, 2.0), (0.946, 1.5), (0.941, 1.3), (0.83, 1.2), (0.24, 0.5))
    promising, others = alone(models).promising_and_others(models)
    assert promising == models[:3]
    assert others == models[3:]
    assert alone(models).promising_and_others([]) == ([], [])


def test_destroyed_models_are_not_promising_however_many_there_are() -> None:
    models = front((0.942, 0.6), (0.26, 0.41), (0.24, 0.4))
    assert finals(models).promising_and_others(models) == (models[:1], models[1:])
    assert finals(models[:2]).promising_and_others(models[:2]) == (models[:1], models[1:2])


def test_all_are_promising_where_most_have_lost_nothing() -> None:
    models = front((0.95, 2.0), (0.95, 1.5), (0.95, 1.3), (0.93, 1.2))
    assert alone(models).promising_and_others(models) == (models, [])
    assert alone(models).next(models, 1000.0) is not None


def test_a_fast_model_is_promising_beside_many_that_are_alike() -> None:
    """They all have lost about as much against the original, which is the most accurate."""
    models = front((0.9552, 1.2), (0.9538, 1.18), (0.9534, 1.1), (0.953, 1.05), (0.9522, 0.9), (0.9456, 0.8), (0.93, 0.65))
    original = make_record(99, 0.9696, 2.0, policy=Policy())
    assert alone([original, *models]).promising_and_others(models) == (models, [])


def test_less_is_better_where_the_metric_says_so() -> None:
    models = front((0.055, 1.8), (0.06, 1.2), (0.9, 0.5))
    promising, _ = finals(models, "mse").promising_and_others(models)
    found = all_of(promising, 1000.0, "mse")
    assert numbers(found) == [1, 0]
    assert -0.06 < found[0].gain < -0.05


def test_half_of_a_loss_and_half_of_a_latency_count_alike_wherever_they_are() -> None:
    value = Value(most_accurate=0.96, smallest=0.0, largest=0.08, limit=2.0)
    known = np.array([[0.88, 0.4]])
    large, small, slow = value.added(np.array([[0.92, 0.5], [0.94, 0.5], [0.92, 1.0]]), known)
    assert large == pytest.approx(np.log(2) * np.log(4))
    assert small == pytest.approx(2 * large)
    assert slow == pytest.approx(large / 2)


def test_an_empty_front_has_no_next_model() -> None:
    assert finals([]).next([], 100.0) is None


def test_a_loss_falls_with_a_power_of_the_epochs() -> None:
    (final,) = all_of(front((0.92, 1.0)), 25.0)
    assert final.epochs == 10
    assert final.gain == pytest.approx(0.96 - 0.04 * (10 / OWN) ** -LEARNING)


@pytest.mark.parametrize(("seconds", "epochs"), [(10.1, None), (10.3, 4), (24.1, 10), (500.0, LONGEST * OWN)])
def test_a_model_is_trained_for_as_long_as_the_time_allows(seconds: float, epochs: int | None) -> None:
    one = model(0, 0.94, 1.0)
    final = finals([one, model(1, 0.95, 2.0, tuning=600.0)]).next([one], seconds)
    assert (final and final.epochs) == epochs


def test_what_an_heir_inherited_counts_as_a_candidates_training() -> None:
    heir = model(0, 0.94, 1.0, tuning=0.0, epochs=0)
    final = finals([heir, model(1, 0.93, 1.1)]).next([heir], 8.0)
    assert final is not None
    assert final.epochs == OWN
    assert final.gain == pytest.approx(0.96 - 0.02 * 2**-LEARNING)


def test_a_model_that_had_a_long_training_gets_a_longer_one() -> None:
    final = finals([one := model(0, 0.94, 1.0, epochs=LONGEST * OWN + 5)]).next([one], 1000.0)
    assert final is not None
    assert final.epochs == LONGEST * OWN + 6


@pytest.mark.parametrize(("had", "epochs"), [(0, OWN), (1, OWN), (OWN, OWN + 1), (5, 6), (None, OWN + 1)])
def test_a_model_gets_as_many_epochs_as_a_candidate_and_more_than_it_had(had: int | None, epochs: int) -> None:
    final = finals([one := model(0, 0.94, 1.0, epochs=had)]).next([one], None)
    assert final is not None
    assert final.epochs == epochs


def test_what_finals_are_spared_takes_no_time() -> None:
    one = model(0, 0.94, 1.0)
    one.seconds |= {Stage.EXPORT_UNTRAINED: 20.0, Stage.MEASURE_UNTRAINED: 20.0}
    final = finals([one]).next([one], 24.1)
    assert final is not None
    assert final.epochs == 10


@pytest.mark.parametrize("objectives", [["accuracy", "latency", "size"], ["accuracy", "latency", "size", "compressed_size"]])
def test_many_models_with_many_costs_are_planned_at_once(objectives: list[Objective]) -> None:
    records = [model(i, 0.96 - i * 2e-4, 2.0 - i * 0.01) for i in range(100)]
    for i, record in enumerate(records):
        record.size_bytes = record.compressed_bytes = 1000 + (i * 37) % 100
    start = time.process_time()
    assert Finals(records, records, objectives, ACCURACY, Lengths(OWN)).next(records[::5], 500.0) is not None
    assert time.process_time() - start < 2.0


def test_without_anything_that_keeps_the_limits_the_others_are_planned() -> None:
    one = model(0, 0.94, 1.0)
    assert finals([one], budget_ms=0.1).next([one], 100.0) is not None


def test_heirs_that_were_trained_for_a_shorter_time_tell_nothing_of_the_time() -> None:
    heir = model(0, 0.94, 1.0, tuning=1.0, epochs=1)
    final = finals([heir, model(1, 0.95, 2.0)]).next([heir], 24.1)
    assert final is not None
    assert final.epochs == 10


def test_what_was_asked_is_kept_or_left_out() -> None:
    one = model(0, 0.94, 1.0)
    assert finals([one], asked=20).next([one], 40.0) is None
    final = finals([one], asked=5).next([one], 40.0)
    assert final is not None
    assert final.epochs == 5


def test_a_training_that_was_cut_off_begins_anew_with_its_own_length() -> None:
    one = model(0, 0.94, 1.0)
    final = finals([one], begun={one.policy: 7}).next([one], 100.0)
    assert final is not None
    assert final.epochs == 7


def test_without_a_limit_every_model_is_trained_for_one_epoch_more() -> None:
    found = all_of(front((0.955, 1.8), (0.95, 1.5), (0.945, 1.2)), None)
    assert sorted(numbers(found)) == [0, 1, 2]
    assert {final.epochs for final in found} == {OWN + 1}


def test_without_any_training_before_a_model_gets_as_little_as_makes_sense() -> None:
    one = model(0, 0.94, 1.0, tuning=0.0, epochs=0)
    final = finals([one]).next([one], 1.0)
    assert final is not None
    assert final.epochs == OWN
    assert finals([one]).next([one], -1.0) is None
