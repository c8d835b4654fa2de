"""The section of the page for one dataset: caption, all pairs at a glance, and for each column its table and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from kdrun.report.caption import caption
from kdrun.report.cells import CANDIDATES, Cell
from kdrun.report.display import PROTOCOLS, percent
from kdrun.report.facts import details_of
from kdrun.report.page.calibration import error_text, reliability
from kdrun.report.page.exits import early_exit
from kdrun.report.page.findings import findings
from kdrun.report.page.lines import Line
from kdrun.report.page.mistakes import surest_mistakes
from kdrun.report.page.pictures import learning_curves, strips
from kdrun.report.page.rendering import render
from kdrun.report.page.tables import Head, SortableTable, Td
from kdrun.report.pivot import Table
from kdrun.report.style import Style, table_styles
from kdrun.report.text import count, duration, gain, p_text, spread

CLASSES = 200  # a table of more classes is cut
SWATCH = Markup('<i class="swatch" style="{}"></i>{}')
SMALL = Markup('<br><span class="soft">{}</span>')


@dataclass
class Column:
    """The parts of a column, as HTML."""

    ident: str
    name: str
    findings: list[Markup]
    results: Markup
    strips: Markup
    curves: Markup
    exits: Markup
    calibration: Markup
    classes: Markup
    mistakes: Markup


def section(table: Table, ident: str, skipped: int) -> Markup:
    """The whole section. `skipped`: how many records could not be read."""
    styles = table_styles(table)
    matrix = _matrix(table, f"{ident}m").html() if len(table.columns) > 1 else ""
    columns = [_column(table, name, f"{ident}c{number}", styles) for number, name in enumerate(table.columns)]
    return render("dataset.html", ident=ident, caption=caption(table, skipped), matrix=matrix, columns=columns)


def _column(table: Table, name: str, ident: str, styles: Mapping[str, Style]) -> Column:
    lines = [
        Line(label, line[name], f"{ident}s{number}", styles[label])
        for number, (label, line) in enumerate(table.cells.items())
        if name in line
    ]
    return Column(
        ident,
        name,
        findings(table, lines),
        _results(table, lines, f"{ident}t").html(),
        strips(table, lines),
        learning_curves(table, lines),
        early_exit(table, lines, f"{ident}x"),
        reliability(lines, table.display.samples),
        _classes(table, lines, f"{ident}k"),
        surest_mistakes(lines, table.display.samples, f"{ident}w"),
    )


def _matrix(table: Table, ident: str) -> SortableTable:
    """Rows by columns: the compared score, and the gain below it."""
    head = [Head(_row_name(table), "", False), *(Head(column.replace("->", "→")) for column in table.columns)]
    rows = []
    for label, line in table.cells.items():
        cells = [Td(label, label)]
        for column in table.columns:
            if cell := line.get(column):
                content = Markup("{}").format(spread(cell, table.protocol)) + SMALL.format(gain(cell))
                cells.append(Td(content, cell.mean.get(table.protocol)))
            else:
                cells.append(Td())
        rows.append((_kind(next(iter(line.values()))), cells))
    return SortableTable(ident, f"{PROTOCOLS[table.protocol]}, every pair", head, rows, "scroll")


def _row_name(table: Table) -> str:
    """The heading of the labels: method, unless rows stand for something else."""
    are_methods = all(
        label.startswith("+".join(cell.row.first["method"]))
        for label, line in table.cells.items()
        for cell in line.values()
    )
    return "method" if are_methods else "row"


def _kind(cell: Cell) -> str:
    return "baseline" if cell.baseline else ""


def _results(table: Table, lines: list[Line], ident: str) -> SortableTable:
    """All numbers of a column, without the columns that are empty."""
    candidates = [name for name in CANDIDATES if any(name in line.cell.mean for line in lines)]
    unit, samples = table.display.metric.unit, table.display.samples
    more = {"last": unit, "best": f"{unit}, chosen on the test set", "holdout": f"{unit}, chosen on held-out {samples}"}
    more = {name: text.removeprefix(", ") for name, text in more.items()}
    head = [Head(_row_name(table), "", False), Head("seeds")]
    head += [Head(f"{name} epoch", more[name]) for name in candidates]
    head += [
        Head(table.display.over_none, f"{table.display.points} [95 % interval]".strip()),
        Head("significant?", "= : no", False),
        Head("agreement", f"% of {samples}, with the teacher"),
        Head("parameters"),
        Head("multiply-adds", f"per {samples.removesuffix('s')}"),
        Head("training time", "mean of a run, min:s"),
        Head("calibration error", "ECE, %; 0 is best"),
    ]
    rows = [(_kind(line.cell), _result(table, line, candidates)) for line in lines]
    return SortableTable(ident, "results", head, rows, "cards").without_empty(kept=2)


def _result(table: Table, line: Line, candidates: list[str]) -> list[Td]:
    cell = line.cell
    text = table.display.gain(cell.gain, cell.low, cell.high) if cell.gain is not None else ""
    return [
        Td(SWATCH.format(line.style.css, line.label), line.label),
        Td(str(cell.n), cell.n),
        *(Td(spread(cell, name), cell.mean.get(name)) for name in candidates),
        Td(text, cell.gain, kind="nowrap"),
        _significant(cell, table.display.samples),
        Td(percent(cell.agreement), cell.agreement),
        Td(count(cell.params), cell.params),
        Td(count(cell.multiply_adds) if cell.multiply_adds else "", cell.multiply_adds),
        Td(duration(cell.seconds), cell.seconds),
        Td(error_text(line.calibrations), cell.ece),
    ]


def _significant(cell: Cell, samples: str) -> Td:
    """yes; = with the number of seeds needed; nothing without a gain. Sorted by p, yes first."""
    if cell.gain is None:
        return Td()
    if cell.equal is None or cell.p is None:
        return Td("one seed, not tested" if cell.pairs == 1 else "not tested", 2)
    p = p_text(cell.p)
    if not cell.equal:
        text = Markup('<span class="yes">yes</span> ({})').format(p)
        only = SMALL.format(f"test {samples} only") if cell.test == "mcnemar" else ""
        return Td(text + only, f"0 {cell.p:.12f}", kind="nowrap")
    needed = ""
    if cell.needed and cell.needed > cell.pairs:
        needed = SMALL.format(f"{cell.needed:,} seeds needed")
    return Td(Markup("= ({})").format(p) + needed, f"1 {cell.p:.12f}", kind="nowrap")


def _classes(table: Table, lines: list[Line], ident: str) -> Markup:
    """Accuracy per class (AP of detectors), mean over seeds: a row per class, coloured by the difference to the baseline."""
    names = [str(name) for name in table.dataset["classes"]]
    lines = [line for line in lines if len(line.cell.class_scores) == len(names) > 0]
    if not lines:
        return Markup("")
    base = next((line for line in lines if line.cell.baseline), None)
    first = base or lines[0]
    runs = (run for line in lines for run in line.cell.row.runs.values())
    measure = next(filter(None, (details_of(run, "class_metric") for run in runs)), "accuracy")
    alone, shown = first.cell.class_scores, list(range(len(names)))
    if len(names) > CLASSES:
        shown = sorted(shown, key=lambda number: (alone[number] is None, alone[number] or 0.0))[:CLASSES]
    rows = []
    for number in shown:
        cells = [Td(names[number], names[number])]
        for line in lines:
            score = line.cell.class_scores[number]
            tint = "" if line is base or base is None else _tint(score, alone[number])
            cells.append(Td("" if score is None else f"{100 * score:.1f}", score, tint))
        rows.append(("", cells))
    head = [Head("class", "", False), *(Head(line.label) for line in lines)]
    kind = f"scroll{' tall' * (len(rows) > 14)}"
    return render(
        "classes.html",
        table=SortableTable(ident, f"{measure} per class", head, rows, kind).html(),
        measure=measure,
        tinted=base is not None and len(lines) > 1,
        cut=len(names) > CLASSES,
        shown=CLASSES,
        total=len(names),
        hardest_for=first.label,
    )


def _tint(score: float | None, alone: float | None) -> str:
    """The background of a class's accuracy beside that of the student alone."""
    if score is None or alone is None:
        return ""
    strength = min(abs(score - alone) / 0.15, 1.0) * 0.5
    return f"background:rgba(var(--{'more' if score > alone else 'less'}),{strength:.2f})" if strength >= 0.01 else ""
