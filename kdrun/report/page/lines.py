"""A row in a column of the page."""

from __future__ import annotations

from dataclasses import dataclass

from kdrun.report.cells import Cell
from kdrun.report.facts import details_of
from kdrun.report.style import Style


@dataclass
class Line:
    """A row of one column, and its style. `series`: its name in the page, the same in every picture of the column."""

    label: str
    cell: Cell
    series: str
    style: Style

    @property
    def calibrations(self) -> list[dict]:
        """The calibration of each seed that has one; all have samples, and the same bins."""
        runs = [run for _, run in sorted(self.cell.row.runs.items())]
        known = [one for run in runs if (one := details_of(run, "calibration"))]
        known = [one for one in known if sum(one["images"]) and _bins(one) == _bins(known[0])]
        return [one for one in known if len(set(_bins(one))) == 1]


def _bins(calibration: dict) -> list[int]:
    return [len(calibration[key]) for key in ("images", "confidence", "accuracy")]
