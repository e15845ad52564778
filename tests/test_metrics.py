import numpy as np
import pytest

from autocompress.errors import TaskError
from autocompress.metrics import METRICS, resolve_metric


def score(name: str, predictions: object, targets: object) -> float:
    return resolve_metric(name, None)(predictions, targets)


def test_accuracy_is_the_fraction_of_right_classes() -> None:
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert score("accuracy", outputs, [1, 0, 0, 0]) == 0.75
    assert score("accuracy", outputs, np.array([[1], [0], [0], [0]])) == 0.75


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_column_is_a_logit_of_two_classes(shape: tuple[int, ...]) -> None:
    logits = np.array([2.0, -1.0, 0.5, -3.0]).reshape(shape)
    assert score("accuracy", logits, [1, 0, 0, 0]) == 0.75


def test_accuracy_of_every_pixel() -> None:
    outputs = np.zeros((1, 3, 2, 2))
    outputs[0, 2] = 1
    assert score("accuracy", outputs, np.array([[[2, 2], [2, 0]]])) == 0.75


@pytest.mark.parametrize(("name", "value"), [("mse", 2.5), ("mae", 1.5)])
def test_errors_of_a_regression(name: str, value: float) -> None:
    assert score(name, np.array([[1.0], [4.0]]), np.array([2.0, 2.0])) == value


@pytest.mark.parametrize("name", METRICS)
def test_more_gain_is_better(name: str) -> None:
    metric = METRICS[name]
    better, worse = (0.9, 0.1) if metric.direction == "maximize" else (0.1, 0.9)
    assert metric.gain(better) > metric.gain(worse)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, None, "high"])
def test_a_metric_that_is_not_a_finite_number_is_refused_by_name(value: object) -> None:
    def f1(predictions: object, targets: object) -> object:
        return value

    with pytest.raises(TaskError, match="metric f1 returns a finite number"):
        resolve_metric(f1, "maximize")([0], [0])  # type: ignore[arg-type]


def test_a_function_is_called_with_predictions_and_targets() -> None:
    metric = resolve_metric(lambda predictions, targets: np.float32(predictions[0] - targets[0]), "minimize")
    assert metric([5.0], [3.0]) == 2.0
    assert metric.direction == "minimize"


@pytest.mark.parametrize("direction", [None, "up", "max"])
def test_a_function_needs_a_direction(direction: str | None) -> None:
    with pytest.raises(TaskError, match=r"needs a direction.*direction=\"maximize\""):
        resolve_metric(lambda predictions, targets: 0.0, direction)  # type: ignore[arg-type]


def test_a_callable_without_a_name_is_named_by_its_class() -> None:
    class MeanIou:
        def __call__(self, predictions: object, targets: object) -> float:
            return 1.0

    assert resolve_metric(MeanIou(), "maximize").name == "MeanIou"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(TaskError, match=r"accuracy, mse, mae or a function.*got 'f1'"):
        resolve_metric("f1", "maximize")


def test_what_is_neither_name_nor_function_is_refused() -> None:
    with pytest.raises(TaskError, match="got int"):
        resolve_metric(3, "maximize")  # type: ignore[arg-type]
