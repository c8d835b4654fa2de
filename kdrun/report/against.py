"""Published scores beside ours: kdrun/published/*.csv, with a verdict that takes both sides' noise into account."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from kdrun.errors import KdrunError, choices
from kdrun.report.pivot import Cell, Table
from kdrun.report.stats import binomial_error

FOLDER = Path(__file__).parents[1] / "published"


@dataclass(frozen=True)
class Published:
    """A cell of a published table; the score is a fraction."""

    dataset: str
    teacher: str
    student: str
    method: str
    score: float
    protocol: str
    seeds: int | None
    source: str


@dataclass(frozen=True)
class Comparison:
    """A published cell beside ours. `margin` is half of the 95 % interval of their difference."""

    theirs: Published
    row: str
    cell: Cell
    ours: float
    margin: float

    @property
    def verdict(self) -> str:
        """Whether our score lies inside, above or below what the published one allows."""
        if abs(self.ours - self.theirs.score) <= self.margin:
            return "inside"
        return "above" if self.ours > self.theirs.score else "below"


def published(name: str) -> list[Published]:
    """The cells of a published table; KdrunError with the names for one that is not there."""
    known = sorted(path.stem for path in FOLDER.glob("*.csv"))
    if name not in known:
        raise KdrunError(f"no published table '{name}'. {choices(name, known)}")
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [
            Published(
                line["dataset"], line["teacher"], line["student"], line["method"], float(line["score"]) / 100,
                line["protocol"], int(line["seeds"]) if line["seeds"] else None, line["source"],
            )
            for line in csv.DictReader(file)
        ]  # fmt: skip


def compare(tables: list[Table], name: str) -> list[Comparison]:
    """Every published cell that we have runs for. KdrunError where none of our tables has its dataset."""
    cells = published(name)
    data = {cell.dataset for cell in cells}
    fitting = [table for table in tables if table.dataset["name"] in data]
    if not fitting:
        have = ", ".join(sorted({table.dataset["name"] for table in tables}))
        raise KdrunError(
            f"{name} is about {', '.join(sorted(data))} and these runs are about {have}: scores on other images do not compare"
        )
    found = []
    for theirs in cells:
        for table in fitting:
            for row, line in table.cells.items():
                cell = line.get(f"{theirs.teacher} -> {theirs.student}")
                if cell is not None and cell.n and table.protocol in cell.mean and called(cell) == theirs.method:
                    ours = cell.mean[table.protocol]
                    found.append(Comparison(theirs, row, cell, ours, _margin(theirs, cell, table)))
    return found


def called(cell: Cell) -> str:
    """A row's name in published tables: `ls` for soft targets on standardized logits, else its methods."""
    first = cell.runs.first
    standardized = [name for name in first["method"] if first["identity"]["method"][name].get("standardize")]
    if standardized:
        return "ls" if first["method"] == ["kd"] else f"{standardized[0]}_ls"
    return "+".join(first["method"])


def _margin(theirs: Published, cell: Cell, table: Table) -> float:
    """1.96 standard errors of the difference: ours over seeds (t quantile), theirs as one score on a test set of this size.

    With one seed of ours its error is that of the test set, too; a published mean over n seeds has 1 / sqrt(n) of it.
    """
    from scipy.special import stdtrit

    images = table.dataset["test_n"]
    other: float = 1.96 * binomial_error(theirs.score, images) / math.sqrt(theirs.seeds or 1)
    sd = cell.sd.get(table.protocol)
    if sd is None:
        return math.hypot(other, 1.96 * binomial_error(cell.mean[table.protocol], images))
    return math.hypot(other, float(stdtrit(cell.n - 1, 0.975)) * sd / math.sqrt(cell.n))
