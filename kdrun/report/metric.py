"""How a score is shown to a person: the only place in the report that knows its unit, its digits and its range.

Records hold scores as fractions. Tables and pictures show them through `Metric`; `metric_of` says which metric a record has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROTOCOLS = {
    "last": "last epoch",
    "best": "best epoch (chosen on the test set)",
    "holdout": "epoch chosen on the holdout",
}


@dataclass(frozen=True)
class Metric:
    """What a score is called, and how the number in a record becomes the number on the screen."""

    name: str  # test accuracy
    unit: str = "%"
    points: str = "percentage points"  # the unit of a difference
    scale: float = 100.0
    lowest: float = 0.0  # as shown: no axis goes below
    highest: float = 100.0
    higher_is_better: bool = True

    def shown(self, score: float) -> float:
        """The number that a reader sees."""
        return self.scale * score

    def text(self, score: float) -> str:
        """Two digits behind the point for percent, four significant digits otherwise."""
        return f"{self.shown(score):.2f}" if self.unit == "%" else f"{self.shown(score):.4g}"

    def spread(self, mean: float, sd: float | None) -> str:
        """mean ± standard deviation; the mean alone where there is no deviation."""
        return self.text(mean) if sd is None else f"{self.text(mean)} ± {self.text(sd)}"

    def gain(self, gain: float, low: float | None, high: float | None, without: str = "one seed") -> str:
        """A difference with its interval; where there is no interval, `without` stands in its place."""
        if low is None or high is None:
            return f"{self.signed(gain)} {without}"
        return f"{self.signed(gain)} [{self.signed(low)}, {self.signed(high)}]"

    def signed(self, difference: float) -> str:
        """A difference of two scores, with its sign."""
        return f"{self.shown(difference):+.2f}" if self.unit == "%" else f"{self.shown(difference):+.4g}"


ACCURACY = Metric("test accuracy")


def metric_of(record: dict) -> Metric:
    """The metric of a record's scores."""
    metric = record["metrics"][0]
    name, unit = f"test {metric['label']}", metric["unit"]
    if unit == "%":
        return Metric(name, higher_is_better=metric["higher_is_better"])
    return Metric(name, unit, unit, 1.0, -math.inf, math.inf, metric["higher_is_better"])


def details_of(record: dict, key: str) -> Any:
    """What the task said of the last epoch beside its metrics, by key; None where the record does not have it."""
    return (record["details"] or {}).get(key)


def dataset_facts(record: dict) -> dict[str, Any]:
    """What a table says of its dataset: the record's facts, with those of its preprocessing beside them."""
    facts = {key: value for key, value in record["dataset"].items() if key != "preprocessing"}
    return facts | record["dataset"]["preprocessing"]


def percent(fraction: float | None) -> str:
    """A share that is no score, such as an agreement or a calibration error; empty for None."""
    return "" if fraction is None else f"{100 * fraction:.2f}"


def protocol_of(records: Sequence[dict]) -> str:
    """The protocol that all records agree on, else last."""
    protocols = {record["protocol"] for record in records}
    return protocols.pop() if len(protocols) == 1 else "last"


def score_of(record: dict, protocol: str) -> float | None:
    """The test score of the epoch that a protocol chooses, as a fraction; None where there is no such epoch."""
    epoch = record[protocol]
    return epoch and epoch["test_score" if protocol == "holdout" else "score"]
