"""Published scores beside ours: report/published/*.csv, with a verdict that takes both sides' noise into account."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from kdrun.config.tables import full_epochs, recipe_of
from kdrun.errors import KdrunError, choices
from kdrun.report.pivot import Cell, Table
from kdrun.report.render import Plain
from kdrun.report.stats import binomial_error
from kdrun.report.table import percent, spread_text

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
    """A published cell beside ours, like with like: their best epoch beside our best, their last beside our last.

    `margin` is half of the 95 % interval of the difference.
    """

    theirs: Published
    dataset: str
    row: str
    column: str
    protocol: str  # of ours: that of the published score where it says it and our runs have it, else the table's
    n: int
    epochs: int
    ours: float
    sd: float | None
    margin: float
    sizes: tuple[int, int]  # training and test images
    other: str  # what makes it another experiment; nothing where it is the same

    @property
    def verdict(self) -> str:
        """Whether our score lies inside, above or below what the published one allows; why none can be given."""
        if self.other:
            return f"not judged: {self.other}"
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
            f"{name} is about {', '.join(sorted(data))} and these runs are about {have}: scores on other images do not compare"
        )
    found, full = [], full_epochs(recipe_of(name) or "")
    for theirs in cells:
        for table in fitting:
            columns = [column for column, pair in table.pairs.items() if pair == (theirs.teacher, theirs.student)]
            for row, line in table.cells.items():
                for column in columns:
                    if column in line and line[column].n and called(line[column]) == theirs.method:
                        found += _beside(theirs, table, row, column, full)
    return found


def _beside(theirs: Published, table: Table, row: str, column: str, full: int | None) -> list[Comparison]:
    cell = table.cells[row][column]
    protocol = theirs.protocol if theirs.protocol in cell.mean else table.protocol
    if protocol not in cell.mean:
        return []
    ours, sd = cell.mean[protocol], cell.sd[protocol]
    half = margin(theirs, ours, sd, cell.n, table.dataset["test_n"])
    epochs, data = cell.runs.first["recipe"]["epochs"], table.dataset
    other = f"{epochs} of {full} epochs" if full and full != epochs else ""
    other = other or (f"{data['holdout_n']:,} images held out" if data["holdout_n"] else "")
    sizes = (data["train_n"], data["test_n"])
    return [Comparison(theirs, data["label"], row, column, protocol, cell.n, epochs, ours, sd, half, sizes, other)]


def beside(tables: list[Table], name: str) -> Plain:
    """The comparison as a table: published, ours and the verdict, a row per cell that we have."""
    found = compare(tables, name)
    said = f"against {name}: no cell of it has runs here"
    if found:
        said = (
            f"against {name} ({found[0].theirs.source}), like with like where it says which epoch it reports; rows are matched by method, "
            "whatever its settings; inside is a difference within the margin, 1.96 standard errors: ours over seeds (with one seed: of the "
            "test set), theirs, which states none, as that of scores on a test set of this size"
        )
    rows, data = [], []
    for c in found:
        ours, epoch, margin = spread_text(c.ours, c.sd), f"{c.protocol} of {c.epochs}", f"± {percent(c.margin)}"
        rows.append(
            [c.row, c.column, percent(c.theirs.score), c.theirs.protocol, ours, epoch, str(c.n), margin, c.verdict]
        )
        data.append({
            "row": c.row, "dataset": c.dataset, "train_n": c.sizes[0], "test_n": c.sizes[1], "column": c.column,
            "published": c.theirs.score, "published_epoch": c.theirs.protocol, "published_source": c.theirs.source,
            "compared": c.ours, "compared_epoch": c.protocol, "margin": c.margin, "verdict": c.verdict,
        })  # fmt: skip
    return Plain(
        said, ["method", "pair", "published", "its epoch", "ours", "our epoch", "n", "margin", "verdict"], rows, data
    )


def called(cell: Cell) -> str:
    """A row's name in published tables: `ls` for soft targets on standardized logits, else its methods."""
    first = cell.runs.first
    standardized = [name for name in first["method"] if first["identity"]["method"][name].get("standardize")]
    if standardized:
        return "ls" if first["method"] == ["kd"] else f"{standardized[0]}_ls"
    if first["method"] == ["fitnet"] and first["identity"]["method"]["fitnet"].get("variant") == "paper":
        return "fitnet in two stages"  # published tables have the joint one
    return "+".join(first["method"])


def margin(theirs: Published, ours: float, sd: float | None, n: int, images: int) -> float:
    """1.96 standard errors of the difference: ours over seeds (t quantile), theirs as one score on a test set of this size.

    With one seed of ours its error is that of the test set, too; a published mean over n seeds has 1 / sqrt(n) of it.
    """
    from scipy.special import stdtrit

    other: float = 1.96 * binomial_error(theirs.score, images) / math.sqrt(theirs.seeds or 1)
    if sd is None:
        return math.hypot(other, 1.96 * binomial_error(ours, images))
    return math.hypot(other, float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n))
