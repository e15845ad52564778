"""A study as arrays."""

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from autocompress.errors import ConfigError
from autocompress.strategy.observed import FIDELITY, observed


def study_of(*trials: tuple[int, float | None], direction: str = "maximize", fidelities: list[int] | None = None) -> optuna.Study:
    """Trials (x, first objective); without one, given up."""
    study = optuna.create_study(directions=[direction, "minimize"])
    for i, (x, value) in enumerate(trials):
        values, state = ([value, float(x)], TrialState.COMPLETE) if value is not None else (None, TrialState.PRUNED)
        space = {"x": IntDistribution(0, 9)}
        attributes = {} if fidelities is None or fidelities[i] is None else {FIDELITY: fidelities[i]}
        study.add_trial(create_trial(params={"x": x}, distributions=space, values=values, state=state, user_attrs=attributes))
    return study


def test_repeats_are_averaged_and_tell_the_noise() -> None:
    seen = observed(study_of((3, 0.9), (1, 0.5), (3, 0.8), (1, 0.7), (2, 0.6)), ["x"])
    assert seen.points.tolist() == [[1], [2], [3]]
    assert seen.gains == pytest.approx([0.6, 0.6, 0.85])
    assert seen.counts.tolist() == [2, 1, 2]
    assert seen.repeat_variance == pytest.approx((0.02 + 0.005) / 2)


def test_a_policy_that_was_trained_further_is_no_repeat() -> None:
    seen = observed(study_of((3, 0.8), (1, 0.5), (3, 0.9), (3, 0.7), (4, 0.3), fidelities=[0, 1, 2, 0, 0]), ["x"])
    assert seen.points.tolist() == [[1], [3], [3], [4]]
    assert seen.gains == pytest.approx([0.5, 0.75, 0.9, 0.3])
    assert seen.fidelities.tolist() == [1, 0, 2, 0]
    assert seen.apart.tolist() == [[1, 0], [0, 0], [0, 1], [0, 0]]
    assert seen.is_judged.tolist() == [True, True, False, True]  # 0 is the commonest
    assert observed(study_of((3, 0.8), (3, 0.9), (1, 0.7), fidelities=[0, 2, 1]), ["x"]).is_judged.tolist() == [True, False, True]
    assert seen.repeat_variance == pytest.approx(0.005)


def test_trials_that_say_nothing_are_trained_like_most() -> None:
    seen = observed(study_of((3, 0.8), (1, 0.5), (2, 0.5), (4, 0.4), fidelities=[None, 0.5, 0.5, 3]), ["x"])
    assert seen.fidelities.tolist() == [0.5, 0.5, 0.5, 3]
    seen = observed(study_of((3, 0.8), (1, 0.5)), ["x"])
    assert seen.apart.shape == (2, 0)
    assert observed(study_of(), ["x"]).is_judged.shape == (0,)


@pytest.mark.parametrize("told", ["low", [1], float("nan")])
def test_a_fidelity_that_is_no_number_is_refused(told: object) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        observed(study_of((3, 0.8), fidelities=[told]), ["x"])


def test_without_repeats_the_noise_is_unknown() -> None:
    assert observed(study_of((1, 0.5), (2, 0.6)), ["x"]).repeat_variance is None


def test_what_is_minimised_has_its_sign_turned() -> None:
    assert observed(study_of((1, 0.2), direction="minimize"), ["x"]).gains.tolist() == [-0.2]


def test_what_runs_or_was_given_up_is_tried_and_what_waits_is_not() -> None:
    study = study_of((1, 0.5), (2, None))
    study.enqueue_trial({"x": 7})
    study.enqueue_trial({"x": 8})
    trial = study.ask()
    trial.suggest_int("x", 0, 9)
    seen = observed(study, ["x"])
    assert seen.pending == ((7,),)
    assert seen.others == ((2,),)
    assert seen.tried == {(1,), (2,), (7,)}
    assert observed(study, ["x"], besides=trial.number).pending == ()


def test_trials_of_another_space_are_left_out() -> None:
    assert observed(study_of((1, 0.5)), ["x", "y"]).tried == frozenset()
