"""The student alone."""

from __future__ import annotations

from typing import Any

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Terms
from kdrun.methods.taps import Output


@METHODS.register(name="none")
class Alone(Method):
    """No distillation: only the supervised loss. It trains teachers and the baseline of every table."""

    family = "labels"
    teacher = "none"

    def loss(self, student: Output, teacher: Any, batch: Batch) -> Terms:
        return {}
