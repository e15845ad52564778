import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.budget import Budget, Drop, parse_duration, parse_share
from autocompress.errors import ConfigError
from autocompress.metrics import METRICS

ACCURACY, ERROR = METRICS["accuracy"], METRICS["mse"]
GARBAGE = ["", " ", "fast", "ms", "%", "nan", "inf", "0.25 0.5ms", "1,5ms", "1e-3ms", "0x10", "None"]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0.25ms", 0.25),
        ("250us", 0.25),
        ("0.5 s", 500),
        ("2 MS", 2),
        (" +.5ms ", 0.5),
        ("3.ms", 3),
        ("50%", 5),
        ("50 %", 5),
        ("0.5x", 5),
        ("1.5x", 15),
        ("50% of original", 5),
        ("50% original", 5),
        ("70% of int8", 2.8),
        ("70% int8", 2.8),
        ("0.7x of INT8", 2.8),
    ],
)
def test_a_budget_in_milliseconds(text: str, milliseconds: float) -> None:
    assert Budget.parse(text).resolve_ms(original_ms=10, int8_ms=4) == pytest.approx(milliseconds)


@given(st.floats(1e-3, 1e3))
def test_a_budget_means_what_is_written(value: float) -> None:
    assert Budget.parse(f"{value:.6f}ms").resolve_ms(1, 1) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("text", [*GARBAGE, "0.25", "5 minutes", "1ms of int8", "50% of fp16", "50% of", "1ms\n2ms"])
def test_what_is_not_a_budget_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"got .*Write 0\.25ms, 50%, 0\.5x or '70% of int8'"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0ms", "-1ms", "-50%", "0x", "-0.5x of int8", "0% of int8"])
def test_a_budget_is_positive(text: str) -> None:
    with pytest.raises(ConfigError, match="positive"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("drop", "lowest"), [(0.02, 0.78), ("0.02", 0.78), ("10%", 0.72), (" 10% ", 0.72), (0, 0.8), ("0%", 0.8)]
)
def test_a_drop_of_a_maximised_metric(drop: str | float, lowest: float) -> None:
    allowed = Drop.parse(drop)
    assert allowed.allows(lowest, 0.8, ACCURACY)
    assert not allowed.allows(lowest - 1e-6, 0.8, ACCURACY)
    assert allowed.allows(0.99, 0.8, ACCURACY)


@pytest.mark.parametrize(("drop", "highest"), [(0.5, 2.5), ("10%", 2.2), (0, 2.0)])
def test_a_drop_of_a_minimised_metric(drop: str | float, highest: float) -> None:
    allowed = Drop.parse(drop)
    assert allowed.allows(highest, 2.0, ERROR)
    assert not allowed.allows(highest + 1e-6, 2.0, ERROR)
    assert allowed.allows(0.0, 2.0, ERROR)


def test_a_relative_drop_of_a_negative_metric_allows_less_of_it() -> None:
    assert Drop.parse("10%").allows(-2.2, -2.0, ACCURACY)
    assert not Drop.parse("10%").allows(-2.3, -2.0, ACCURACY)


@pytest.mark.parametrize("drop", ["", "%", "little", "1%%", "1ms", "0.1 0.2", None, [0.1], True])
def test_what_is_not_a_drop_is_refused(drop: object) -> None:
    with pytest.raises(ConfigError, match=r"number or a percentage.*Write 0.01 or 1%"):
        Drop.parse(drop)  # type: ignore[arg-type]


@pytest.mark.parametrize("drop", [-0.01, "-1%", float("nan"), "nan", "nan%"])
def test_a_drop_is_not_negative_and_a_number(drop: str | float) -> None:
    with pytest.raises(ConfigError, match="not negative"):
        Drop.parse(drop)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), (90, 90), (1.5, 1.5), ("90s", 90), ("8m", 480), ("8 M", 480), ("1.5h", 5400), (".5h", 1800), (" 2m ", 120)],
)
def test_a_duration_in_seconds(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", [*GARBAGE, "8min", "1h30m", "1:30", "0", 0, "-8m", -1, "5d", float("nan"), float("inf"), True])
def test_what_is_not_a_positive_duration_is_refused(text: str | float) -> None:
    with pytest.raises(ConfigError, match=r"positive duration.*Write 90s, 8m or 1\.5h"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "share"), [("50%", 0.5), ("0.25x", 0.25)])
def test_a_share_of_the_multiply_accumulates(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["0%", "100%", "150%", "1.2x", "-5%", "half", "5", "70% of int8"])
def test_a_share_is_less_than_the_whole(text: str) -> None:
    with pytest.raises(ConfigError, match="between 0 and 100 %"):
        parse_share(text)
