"""The task's own numbers: calibration and accuracy per class, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdrun.tasks import classes as image


def test_calibration_by_hand():
    """Confidences 0.9, 0.8, 0.6, 0.7, hits yes, no, yes, no: two bins of two, then all images of two bins of four."""
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]).log()
    labels = torch.tensor([0, 1, 1, 0])
    found = image.calibration(logits, labels, bins=2)
    assert found["images"] == [0, 4]
    assert found["confidence"] == [None, pytest.approx(0.75)]
    assert found["accuracy"] == [None, 0.5]
    assert found["ece"] == pytest.approx(0.25)
    found = image.calibration(logits, labels, bins=4)
    assert found["images"] == [0, 0, 2, 2]
    assert found["accuracy"] == [None, None, 0.5, 0.5]
    assert found["ece"] == pytest.approx(0.5 * abs(0.65 - 0.5) + 0.5 * abs(0.85 - 0.5))


def test_calibration_of_the_certain_and_of_the_clueless():
    certain = image.calibration(torch.eye(3) * 1e4, torch.arange(3))
    assert certain["ece"] == 0
    assert certain["images"][-1] == 3
    assert image.calibration(torch.eye(3) * 1e4, torch.tensor([1, 2, 0]))["ece"] == 1
    clueless = image.calibration(torch.zeros(10, 10), torch.arange(10))  # sure of nothing, right once
    assert clueless["ece"] == pytest.approx(0, abs=1e-6)
    assert sum(clueless["images"]) == 10


def test_shifted_logits_change_nothing():
    logits = torch.randn(100, 10, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.arange(100) % 10
    assert image.calibration(logits, labels) == image.calibration(logits + 500, labels)
    assert all(
        0 <= x <= 1 and math.isfinite(x) for x in image.calibration(logits, labels)["confidence"] if x is not None
    )


def test_an_evaluation_says_which_answers_are_right():
    evaluator = image.LogitsEvaluator()
    evaluator.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), {"label": torch.tensor([0, 0])})
    evaluator.update(torch.tensor([[0.0, 3.0]]), {"label": torch.tensor([1])})
    result = evaluator.result()
    assert result.predictions["right"].tolist() == [True, False, True]
    assert result.score == pytest.approx(2 / 3)


def test_the_surest_mistakes_come_first():
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 9.0], [0.0, 3.0]])
    surest = image.mistakes(logits, torch.tensor([1, 0, 0, 1, 0]), 2)
    assert [(row, predicted) for row, predicted, _ in surest] == [(0, 0), (4, 1)]
    assert [p for *_, p in surest] == [pytest.approx(1 / (1 + math.exp(-x)), abs=1e-4) for x in (4, 3)]


def test_class_scores():
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1])]
    assert image.class_scores(logits, torch.tensor([0, 1, 1, 1])) == [1.0, 0.666667, None]
