"""How a score is shown to a person: the only place in the report that knows its name, unit, digits, range and direction.

Records hold scores as numbers of their metric. Tables and pictures show them through `Display`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdrun.tasks.metric import Metric, metric_of

PROTOCOLS = {
    "last": "last epoch",
    "best": "best epoch (chosen on the test set)",
    "holdout": "epoch chosen on the holdout",
}


@dataclass(frozen=True)
class Display:
    """How the scores of a metric are shown. `samples`: what the test set consists of, such as images."""

    metric: Metric
    samples: str = "samples"

    @property
    def name(self) -> str:
        """test accuracy"""
        return f"test {self.metric.label}"

    @property
    def title(self) -> str:
        """The name at the beginning of a sentence."""
        return self.name[:1].upper() + self.name[1:]

    @property
    def axis(self) -> str:
        """The name with its unit: test accuracy (%)."""
        return f"{self.name} ({self.metric.unit})" if self.metric.unit else self.name

    @property
    def points(self) -> str:
        """The unit of a difference."""
        return "percentage points" if self.is_share else self.metric.unit

    @property
    def over_none(self) -> str:
        """The name of a difference to the baseline."""
        return "gain over none" if self.metric.higher_is_better else "difference to none, lower is better"

    @property
    def is_share(self) -> bool:
        """Whether a score is a fraction that is shown in percent."""
        return self.metric.unit == "%"

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest number that can be shown; no axis goes beyond."""
        return (0.0, 100.0) if self.is_share else (-math.inf, math.inf)

    def shown(self, score: float) -> float:
        """The number that a reader sees."""
        return 100 * score if self.is_share else score

    def number(self, shown: float) -> str:
        """A shown number as text."""
        return f"{shown:.2f}" if self.is_share else f"{shown:.4g}"

    def text(self, score: float) -> str:
        """A score of a record as text, without its unit."""
        return self.number(self.shown(score))

    def with_unit(self, text: str) -> str:
        """A score that is already text, with its unit."""
        return f"{text} {self.metric.unit}".rstrip()

    def spread(self, mean: float, sd: float | None) -> str:
        """mean ± standard deviation; the mean alone where there is no deviation."""
        return self.text(mean) if sd is None else f"{self.text(mean)} ± {self.text(sd)}"

    def signed(self, difference: float) -> str:
        """A difference with its sign."""
        return f"{100 * difference:+.2f}" if self.is_share else f"{difference:+.4g}"

    def gain(self, gain: float, low: float | None, high: float | None, without: str = "one seed") -> str:
        """A difference with its interval; where there is no interval, `without` stands in its place."""
        if low is None or high is None:
            return f"{self.signed(gain)} {without}"
        return f"{self.signed(gain)} [{self.signed(low)}, {self.signed(high)}]"

    def goodness(self, score: float) -> float:
        """A number that is greater for a better score."""
        return score if self.metric.higher_is_better else -score


def display_of(record: dict) -> Display:
    """How the scores of a record are shown."""
    return Display(metric_of(record), record["unit"])


def percent(share: float | None) -> str:
    """A share that is no score, such as an agreement or a calibration error; empty for None."""
    return "" if share is None else f"{100 * share:.2f}"
