"""How a score is shown to a person: the only place in the report that knows its unit, its digits and its range.

Records hold scores as fractions. Tables and pictures show them through `Metric`; `metric_of` says which metric a record has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def shown(self, score: float) -> float:
        """The number that a reader sees."""
        return self.scale * score

    def text(self, score: float) -> str:
        return f"{self.shown(score):.2f}"

    def spread(self, mean: float, sd: float | None) -> str:
        """mean ± standard deviation; the mean alone where there is no deviation."""
        return self.text(mean) if sd is None else f"{self.text(mean)} ± {self.text(sd)}"

    def gain(self, gain: float, low: float | None, high: float | None, without: str = "one seed") -> str:
        """A difference with its interval; where there is no interval, `without` stands in its place."""
        shown = f"{self.shown(gain):+.2f}"
        if low is None or high is None:
            return f"{shown} {without}"
        return f"{shown} [{self.shown(low):+.2f}, {self.shown(high):+.2f}]"


ACCURACY = Metric("test accuracy")


def metric_of(record: dict) -> Metric:
    """The metric of a record's scores."""
    metric = record["metric"]
    return Metric(f"{metric['split']} {metric['name']}")


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
