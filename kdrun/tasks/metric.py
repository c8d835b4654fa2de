"""What a score means: its name, its unit, and which direction is better. Imports nothing heavy: reports need no task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One number that says how good a model is on a split. Records hold it whole, so that a report needs no task.

    `unit` "%": the value is a fraction in [0, 1] and is shown times 100; otherwise the unit stands behind the value ("" for none).
    `counts`: the value is a share of right answers, so that n samples give steps of 1 / n.
    """

    name: str  # in records and curves: accuracy
    label: str  # for people: accuracy
    unit: str = ""
    higher_is_better: bool = True
    counts: bool = False

    def is_better(self, value: float, other: float | None) -> bool:
        """Whether `value` is strictly better than `other`; anything is better than nothing, and NaN is better than nothing alone."""
        if other is None or math.isnan(other):
            return other is None or not math.isnan(value)
        return value > other if self.higher_is_better else value < other

    def is_close(self, value: float, other: float) -> bool:
        """Whether two measurements of one model agree: 0.2 percentage points, or 0.2 % of the value."""
        allowed = 0.002 if self.unit == "%" else 0.002 * max(abs(value), abs(other))
        return abs(value - other) <= allowed

    def text(self, value: float | None) -> str:
        """A value for people, without its unit: 82.34 for 0.8234 in percent, four significant digits otherwise."""
        if value is None:
            return "-"
        return f"{100 * value:.2f}" if self.unit == "%" else f"{value:.4g}"

    def with_unit(self, value: float | None) -> str:
        """A value for people in a sentence: "82.34 %", "0.1342", "3.2 px"."""
        return f"{self.text(value)} {self.unit}".rstrip()

    def in_unit(self) -> str:
        """What people call it, with its unit: "accuracy in percent"."""
        unit = "percent" if self.unit == "%" else self.unit
        return f"{self.label} in {unit}" if unit else self.label

    def resolution(self, samples: int) -> float | None:
        """The smallest step between two values on so many samples; None where there is no such step."""
        return 1 / samples if self.counts else None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


ACCURACY = Metric("accuracy", "accuracy", "%", counts=True)


def metric_of(record: Mapping[str, Any]) -> Metric:
    """The metric that a record's `score` is of: the first of its metrics."""
    return Metric(**record["metrics"][0])
