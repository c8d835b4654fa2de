"""Published scores (report/published/*.csv) beside ours, with a verdict that counts the noise of both."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from kdrun.config.tables import full_epochs, recipe_of
from kdrun.errors import KdrunError, choices
from kdrun.report.cells import Cell
from kdrun.report.pivot import Table
from kdrun.report.render import ExtraTable
from kdrun.report.stats import binomial_error

FOLDER = Path(__file__).with_name("published")


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
    """A published cell beside ours: their best epoch beside our best, their last epoch beside our last.

    `margin` is half of the 95 % interval of the difference.
    """

    theirs: Published
    dataset: str
    row: str
    column: str
    protocol: str  # of ours: the published one where it is known and our runs have it, else that of the table
    n: int
    epochs: int
    ours: float
    sd: float | None
    margin: float
    sizes: tuple[int, int]  # of the training and the test set
    other: str  # why it is another experiment; empty where it is the same

    @property
    def verdict(self) -> str:
        """Whether our score is inside, above or below the margin of the published score; or why this cannot be judged."""
        if self.other:
            return f"not judged: {self.other}"
        if abs(self.ours - self.theirs.score) <= self.margin:
            return "inside"
        return "above" if self.ours > self.theirs.score else "below"


def published(name: str) -> list[Published]:
    """The cells of a published table; KdrunError with the known names for any other."""
    known = sorted(path.stem for path in FOLDER.glob("*.csv"))
    if name not in known:
        raise KdrunError(f"no published table '{name}'. {choices(name, known)}")
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return [
            Published(
                line["dataset"], line["teacher"], line["student"], line["method"], round(float(line["score"]) / 100, 6),
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
            f"{name} is about {', '.join(sorted(data))} and these runs are about {have}: scores on different data cannot be compared"
        )
    comparisons, full = [], full_epochs(recipe_of(name) or "")
    for theirs in cells:
        for table in fitting:
            columns = [column for column, pair in table.pairs.items() if pair == (theirs.teacher, theirs.student)]
            for row, line in table.cells.items():
                for column in columns:
                    if column in line and line[column].n and published_name(line[column]) == theirs.method:
                        comparisons += _beside(theirs, table, row, column, full)
    return comparisons


def _beside(theirs: Published, table: Table, row: str, column: str, full: int | None) -> list[Comparison]:
    cell = table.cells[row][column]
    protocol = theirs.protocol if theirs.protocol in cell.mean else table.protocol
    if protocol not in cell.mean:
        return []
    ours, sd = cell.mean[protocol], cell.sd[protocol]
    half = margin(theirs, ours, sd, cell.n, table.dataset["test_n"])
    epochs, data = cell.row.first["recipe"]["epochs"], table.dataset
    other = f"{epochs} of {full} epochs" if full and full != epochs else ""
    other = other or (f"{data['holdout_n']:,} {table.display.samples} held out" if data["holdout_n"] else "")
    sizes = (data["train_n"], data["test_n"])
    return [Comparison(theirs, data["label"], row, column, protocol, cell.n, epochs, ours, sd, half, sizes, other)]


def beside(tables: list[Table], name: str) -> ExtraTable:
    """The comparison as a table: published, ours and the verdict, a row for each cell that we have runs for."""
    comparisons = compare(tables, name)
    caption = f"Comparison with {name}: there are no runs here for any of its cells"
    if comparisons:
        caption = (
            f"Comparison with {name} ({comparisons[0].theirs.source}). Best epochs are compared with best epochs and last with last, where "
            "the source says which it reports. Rows are matched by their method, whatever its settings. Inside: the difference is within "
            "the margin of 1.96 standard errors; ours are over seeds (one seed: of the test set), theirs are not published and taken as "
            "those of a score on a test set of this size"
        )
    rows, data, display = [], [], tables[0].display
    for c in comparisons:
        ours, epoch, margin = display.spread(c.ours, c.sd), f"{c.protocol} of {c.epochs}", f"± {display.text(c.margin)}"
        rows.append(
            [c.row, c.column, display.text(c.theirs.score), c.theirs.protocol, ours, epoch, str(c.n), margin, c.verdict]
        )
        data.append({
            "row": c.row, "dataset": c.dataset, "train_n": c.sizes[0], "test_n": c.sizes[1], "column": c.column,
            "published": c.theirs.score, "published_epoch": c.theirs.protocol, "published_source": c.theirs.source,
            "compared": c.ours, "compared_epoch": c.protocol, "margin": c.margin, "verdict": c.verdict,
        })  # fmt: skip
    return ExtraTable(
        caption, ["method", "pair", "published", "its epoch", "ours", "our epoch", "n", "margin", "verdict"], rows, data
    )


def published_name(cell: Cell) -> str:
    """The name of a row in published tables: `ls` for soft targets on standardized logits, else its methods."""
    first = cell.row.first
    standardized = [name for name in first["method"] if first["identity"]["method"][name].get("standardize")]
    if standardized:
        return "ls" if first["method"] == ["kd"] else f"{standardized[0]}_ls"
    if first["method"] == ["fitnet"] and first["identity"]["method"]["fitnet"].get("variant") == "paper":
        return "fitnet in two stages"  # published tables have the joint one
    return "+".join(first["method"])


def margin(theirs: Published, ours: float, sd: float | None, n: int, test_n: int) -> float:
    """1.96 standard errors of the difference: ours over seeds (t quantile), theirs as that of one score on a test set of this size.

    With one seed, ours is also that of the test set; a published mean over n seeds has 1 / sqrt(n) of it.
    """
    from scipy.special import stdtrit

    other: float = 1.96 * binomial_error(theirs.score, test_n) / math.sqrt(theirs.seeds or 1)
    if sd is None:
        return math.hypot(other, 1.96 * binomial_error(ours, test_n))
    return math.hypot(other, float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n))
