"""Pictures for papers and slides, PNG and SVG: accuracy with intervals, learning curves, accuracy against time and size.

A set for every column of every table. The look is that of `curves`.
"""

from __future__ import annotations

from collections.abc import Iterable

from kdrun.errors import KdrunError
from kdrun.report.curves import (
    read_curve,
)  # fmt: skip
from kdrun.report.pivot import Cell, Table
from kdrun.report.stats import binomial_error, paired

# What the pictures and the page are drawn from ----------------------------------------------------------------------------


def interval(cell: Cell, protocol: str, test_n: int) -> tuple[float, float | None, float | None, str]:
    """(mean, low, high, kind) of a cell's score at 95 %, as fractions.

    Kind "seeds": a t interval of the mean over seeds; "images": one seed, 1.96 standard errors of an accuracy on so many images,
    which says nothing about other seeds; "": none can be given.
    """
    scores = cell.runs.scores(protocol)
    if len(scores) > 1:
        return *paired(scores, [0.0] * len(scores)), "seeds"
    if test_n > 0 and 0 <= scores[0] <= 1:
        half = 1.96 * binomial_error(scores[0], test_n)
        return scores[0], scores[0] - half, scores[0] + half, "images"
    return scores[0], None, None, ""


def curves_of(cell: Cell) -> tuple[list[dict[int, float]], int]:
    """({epoch: test score} of every seed that has a curve, how many have none that can be read)."""
    found, missing = [], 0
    for run in cell.runs.runs.values():
        try:
            curve = read_curve(run["folder"]) if run.get("folder") else {}
        except KdrunError:
            curve = {}
        if curve:
            found.append(curve)
        missing += not curve
    return found, missing


def teachers_of(cells: Iterable[Cell]) -> list[tuple[str, float]]:
    """(name, score) of the teachers of these cells that have a score."""
    runs = [run for cell in cells for run in cell.runs.runs.values()]
    found = {(r["teacher"]["name"], r["teacher"]["score"]) for r in runs if r["teacher"]}
    return sorted((name, value) for name, value in found if value is not None)


def baseline_of(cell: Cell, table: Table) -> Cell | None:
    """The cell that this one was compared with: the student alone, same recipe and precision."""
    from kdrun.report.pivot import _baseline

    cells = [other for line in table.cells.values() for other in line.values()]
    row = _baseline(cell.runs, [other.runs for other in cells])
    return next((other for other in cells if other.runs is row), None)
