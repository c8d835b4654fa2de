"""What a score means: direction, unit, and when two of them agree."""

from __future__ import annotations

import math

import pytest

from kdrun.errors import DivergedError, KdrunError
from kdrun.tasks.base import Evaluation
from kdrun.tasks.metric import ACCURACY, Metric

RMSE = Metric("rmse", "RMSE", "px", higher_is_better=False)


def test_better_goes_in_the_metric_s_direction():
    assert ACCURACY.is_better(0.9, 0.8)
    assert RMSE.is_better(0.8, 0.9)
    for metric in (ACCURACY, RMSE):
        assert metric.is_better(0.5, None)
        assert not metric.is_better(0.5, 0.5)  # the earliest of equals stays
        assert not metric.is_better(math.nan, 0.5)
        assert metric.is_better(0.5, math.nan)


def test_values_are_shown_in_their_unit():
    assert (ACCURACY.text(0.8234), ACCURACY.with_unit(0.8234), ACCURACY.in_unit()) == (
        "82.34",
        "82.34 %",
        "accuracy in percent",
    )
    assert (RMSE.text(3.14159), RMSE.with_unit(3.14159), RMSE.in_unit()) == ("3.142", "3.142 px", "RMSE in px")
    assert Metric("f1", "F1").in_unit() == "F1"
    assert ACCURACY.text(None) == "-"
    assert (ACCURACY.resolution(50), RMSE.resolution(50)) == (0.02, None)


@pytest.mark.parametrize(
    ("metric", "other", "close"),
    [(ACCURACY, 0.5015, True), (ACCURACY, 0.503, False), (RMSE, 0.5005, True), (RMSE, 0.503, False)],
)
def test_two_measurements_of_one_model_agree(metric, other, close):
    assert metric.is_close(0.5, other) is close


@pytest.mark.parametrize(
    ("score", "loss", "finite"),
    [(0.5, 1.0, True), (math.nan, 1.0, True), (0.5, math.inf, True), (math.inf, math.inf, False)],
)
def test_a_metric_that_is_undefined_alone_breaks_no_weights(score, loss, finite):
    assert Evaluation({"m": score}, loss).is_finite() is finite


def test_an_undefined_first_metric_is_named_and_is_no_divergence(monkeypatch):
    """The correlation of a constant, for example: the weights are sound, and epochs cannot be compared."""
    from types import SimpleNamespace

    from kdrun.engine import loop

    monkeypatch.setattr(loop, "evaluate", lambda *_: Evaluation({"pearson": math.nan}, 0.3))
    task = SimpleNamespace(metrics=(Metric("pearson", "Pearson correlation"),))
    training = SimpleNamespace(
        task=task,
        evals={"test": None},
        distillation=SimpleNamespace(student=SimpleNamespace(autocast=None), evaluated=lambda stage: stage.evaluates),
    )
    stage = SimpleNamespace(name="distil", evaluates={"student": None})
    with pytest.raises(KdrunError, match="Pearson correlation of student is nan on the test set") as caught:
        loop._evaluate_all(training, stage, 3)
    assert not isinstance(caught.value, DivergedError)
