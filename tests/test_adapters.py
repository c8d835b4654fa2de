"""Adapters between unlike taps: vectors, sequences and maps."""

from __future__ import annotations

import pytest
import torch

from kdrun.errors import KdrunError
from kdrun.methods.adapters import connector


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((2, 8), (2, 12)),
        ((2, 7, 8), (2, 7, 12)),
        ((2, 4, 8, 8), (2, 6, 8, 8)),
        ((2, 4, 16, 16), (2, 6, 8, 8)),
        ((2, 4, 4, 4), (2, 6, 8, 8)),
        ((2, 4, 5, 5), (2, 6, 8, 8)),
    ],
)
def test_the_student_s_tap_gets_the_teacher_s_shape(student, teacher):
    assert connector(student, teacher, tail="")(torch.randn(student)).shape == teacher


def test_equal_shapes_need_nothing():
    x = torch.randn(2, 7, 8)
    assert connector((2, 7, 8), (2, 7, 8))(x) is x


@pytest.mark.parametrize(("student", "teacher"), [((2, 7, 8), (2, 9, 8)), ((2, 8), (2, 7, 8)), ((2, 8), (2, 4, 8, 8))])
def test_unlike_kinds_and_lengths_are_refused(student, teacher):
    with pytest.raises(KdrunError, match="tap layers of the same kind"):
        connector(student, teacher)
