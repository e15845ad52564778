import pytest
from pydantic import ValidationError
from records import latency, make_record

from autocompress.policy import LayerPolicy, Policy
from autocompress.record import Plan, Stage, State, TrialRecord

PRUNED = Policy({"stem": 0.5}, {"head": LayerPolicy(4, 8, 0.25)})


def full_record() -> TrialRecord:
    record = make_record(7, 0.93, 1.5, policy=PRUNED, source="seed")
    record.stage, record.done = Stage.EVALUATE, list(Stage)
    record.seconds = {Stage.COMPRESS: 0.5, Stage.EXPORT: 1.0, Stage.FINE_TUNE: 20.0, Stage.MEASURE: 2.0, Stage.EVALUATE: 0.25}
    record.latency_untrained, record.latency_final = latency(1.6), latency(1.4)
    record.accuracy_test, record.macs, record.int8_share, record.int8_macs_share = 0.92, 12345, 0.9, 0.99
    record.notes = ["head stays in float — it was slower"]
    return record


@pytest.mark.parametrize("record", [full_record(), *(make_record(state=state) for state in State)], ids=lambda r: str(r.state))
def test_a_record_survives_json(record: TrialRecord) -> None:
    assert TrialRecord.model_validate_json(record.model_dump_json()) == record


def test_a_record_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError):
        TrialRecord.model_validate_json(make_record().model_dump_json().replace('"number"', '"size":1,"number"', 1))


def test_a_record_gives_back_its_policy() -> None:
    assert full_record().policy == PRUNED


def test_one_plan_has_one_key_however_its_policy_is_written() -> None:
    by_hand = Plan(policy={"layers": {"b": {"activations": 8, "weights": 8}, "a": {}}, "pruning": {"c": 0}})
    assert by_hand.key == Plan.of(Policy({}, {"b": LayerPolicy(8, 8)})).key


def test_whatever_changes_the_result_changes_the_key() -> None:
    plans = [Plan.of(PRUNED), Plan.of(PRUNED, tune=False), Plan.of(PRUNED, precision="f32"), Plan.of(Policy({"stem": 0.5}))]
    assert len({plan.key for plan in plans}) == 4


def test_a_model_that_is_not_changed_is_not_fine_tuned() -> None:
    assert not Plan.of(Policy()).tune
    assert Plan.of(PRUNED).tune


def test_the_latest_latency_is_the_one_that_counts() -> None:
    record = full_record()
    assert record.latency == latency(1.4)
    record.latency_final = None
    assert record.latency == latency(1.5)
    record.latency_trained = None
    assert record.latency == latency(1.6)
    record.latency_untrained = None
    assert record.latency is None


def test_milliseconds_are_the_ratio_times_the_reference() -> None:
    found = latency(3.0).model_copy(update={"ratio_low": 1.25, "ratio_high": 2.0})
    assert (found.low_ms, found.ms, found.high_ms) == (2.5, 3.0, 4.0)


def test_training_and_measuring_are_no_overhead() -> None:
    assert full_record().total_seconds == 23.75
    assert full_record().overhead_seconds == 1.75


@pytest.mark.parametrize(("source", "is_baseline"), [("baseline:int8", True), ("seed", False), ("sampler", False)])
def test_a_baseline_is_known_by_its_source(source: str, is_baseline: bool) -> None:
    assert make_record(source=source).is_baseline is is_baseline


def test_a_plan_with_epochs_of_its_own_is_another_plan() -> None:
    plan = Plan.of(Policy({"stem": 0.5}))
    longer = plan.model_copy(update={"epochs": 3})
    assert longer.key != plan.key == Plan.model_validate(plan.model_dump(exclude={"epochs"})).key
    assert not make_record().is_final
    assert make_record().model_copy(update={"plan": longer}).is_final
