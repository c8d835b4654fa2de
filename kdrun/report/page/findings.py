"""The sentences above a column's table: which row is best, and which gains are significant."""

from __future__ import annotations

from markupsafe import Markup

from kdrun.report.cells import Cell
from kdrun.report.page.lines import Line
from kdrun.report.pivot import Table, teachers_of
from kdrun.report.text import spread


def findings(table: Table, lines: list[Line]) -> list[Markup]:
    """A few sentences; none where no row has a score."""
    scored = [line for line in lines if table.protocol in line.cell.mean]
    if not scored:
        return []
    best = max(scored, key=lambda line: table.display.goodness(line.cell.mean[table.protocol]))
    sentences = [Markup("Best mean: <b>{}</b>, {}.").format(best.label, _score(table, best.cell))]
    alone = [line for line in scored if line.cell.baseline]
    if len(alone) == 1 and alone[0] is not best:
        (base,) = alone
        text = Markup("The student alone (<b>{}</b>): {}.")
        sentences.append(text.format(base.label, _score(table, base.cell)))
    if len(alone) > 1:
        text = Markup(
            "There are {} rows of the student alone; each other row is compared with the one of its own recipe."
        )
        sentences.append(text.format(len(alone)))
    for teacher in teachers_of(line.cell for line in lines):
        score = table.display.with_unit(table.display.text(teacher.score))
        sentences.append(Markup("The teacher {}: {}.").format(teacher.name, score))
    return sentences + _tests(table, scored)


def _tests(table: Table, scored: list[Line]) -> list[Markup]:
    """Which rows are better, worse, equal, or not tested."""
    significant = [
        (line, table.display.goodness(line.cell.gain))
        for line in scored
        if line.cell.equal is False and line.cell.gain is not None
    ]
    one_seed = len(table.seeds) <= 1
    covers = f" on these test {table.display.samples} (one seed; other seeds may differ)" if one_seed else ""
    kinds = (
        (f"Significantly better than the student alone{covers}", [line for line, gain in significant if gain > 0]),
        (f"Significantly worse{covers}", [line for line, gain in significant if gain < 0]),
        ("Difference to the student alone not significant (=)", [line for line in scored if line.cell.equal]),
        ("Not tested", [line for line in scored if not line.cell.baseline and line.cell.equal is None]),
    )
    return [
        Markup("{}: {}.").format(name, ", ".join(_label(line, one_seed) for line in lines))
        for name, lines in kinds
        if lines
    ]


def _label(line: Line, one_seed: bool) -> str:
    return line.label + " (one seed)" * (line.cell.test == "mcnemar" and not one_seed)


def _score(table: Table, cell: Cell) -> str:
    seeds = "one seed" if cell.n == 1 else f"{cell.n} seeds"
    return f"{table.display.with_unit(spread(cell, table.protocol))} ({seeds})"
