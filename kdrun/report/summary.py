"""The summary at the end of a sweep, as text: mean, spread and gain of every row, notes, and the runs that are not finished.

Its tables are those of `kdrun report`, one for each dataset and student. Nothing is cut or folded: where a table is wider than the
screen, the label of a row gets a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from kdrun.report.cells import Cell
from kdrun.report.display import PROTOCOLS
from kdrun.report.facts import reports, score_of
from kdrun.report.labels import natural
from kdrun.report.pivot import Table, tables_by_student, teachers_of
from kdrun.report.text import gain, spread
from kdrun.runs.labels import label_of, run_name


def summary(records: list[dict], protocol: str | None = None, width: int = 80) -> Text:
    """For each table a caption, its rows and notes; then every run that is not done, with its error. Print it with soft_wrap.

    `protocol` (last, best, holdout) chooses the score that is compared: by default the one that the records agree on, else last.
    """
    lines: list[tuple[str, str]] = []
    for table in tables_by_student(records, protocol):
        if table.cells:
            lines += [(line, "dim") for line in _caption(table, width)] + [("", "")]
            lines += [(line, "" if number else "bold") for number, line in enumerate(_rows(table, width))]
            lines += [(f"note: {note}", "yellow") for note in table.notes] + [("", "")]
    lines += [(line, "red") for line in _unfinished(records)]
    while lines and not lines[-1][0]:
        lines.pop()
    return Text("\n").join(Text(*line) for line in lines) if lines else Text("no runs")


def text(records: list[dict], protocol: str | None = None, width: int = 120) -> str:
    """`summary` without colours, for files and logs."""
    return f"{summary(records, protocol, width).plain}\n"


def _cells(table: Table) -> dict[str, Cell]:
    (column,) = table.columns
    return table.column(column)


def _caption(table: Table, width: int) -> list[str]:
    cells = _cells(table)
    runs = [run for cell in cells.values() for run in cell.row.all_runs]
    data, first = table.dataset, runs[0]
    sizes, parts = f"{data['train_n']:,}/{data['test_n']:,}", f"train/{reports(data) or 'test'}"
    if data["holdout_n"]:
        sizes, parts = f"{data['train_n']:,}/{data['holdout_n']:,}/{data['test_n']:,}", "train/holdout/test"
    teachers = sorted({str(table.models.name(run, "teacher")) for run in runs if run["teacher"]}, key=natural)
    models = f"{' or '.join(teachers) or 'no teacher'} -> {table.models.name(first, 'student')}"
    recipes = {(run["recipe"].get("name"), run["recipe"].get("epochs")) for run in runs}
    recipe, epochs = recipes.pop() if len(recipes) == 1 else (None, None)
    about = [
        f"{label_of(first, 'dataset')} {sizes} {parts}",
        f"{models} ({_parameters(first['student']['params'])})",
        ", ".join(filter(None, [recipe, epochs and f"{epochs} epoch{'s' * (epochs != 1)}"])),
    ]
    display = table.display
    unit = f" in {display.metric.unit}" if display.metric.unit else ""
    numbers = [display.name + unit, "mean ± standard deviation of n seeds", PROTOCOLS[table.protocol]]
    gains = [
        f"{display.over_none}: mean difference per seed [95 % interval]",
        f"covers seeds, not test {display.samples}",
    ]
    compared = any(cell.base for cell in cells.values())
    return [
        *_fill(about, " | ", width),
        *_fill(numbers, ", ", width),
        *(_fill(gains, "; ", width) if compared else []),
    ]


def _fill(parts: Iterable[str], between: str, width: int) -> list[str]:
    """Join parts into as few lines of at most `width` as they need; a part is not divided."""
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def _parameters(number: int) -> str:
    return f"{number / 1e6:.2f}M" if number >= 1e5 else f"{number / 1e3:.1f}k"


def _rows(table: Table, width: int) -> list[str]:
    """The lines of a table: its head, a line for each row, for each disputed result, and for each teacher."""
    cells, display = _cells(table), table.display
    runs = [run for cell in cells.values() for run in cell.row.all_runs]
    candidates = ["last", "best"] + ["holdout"] * any(run["holdout"] for run in runs)
    over_none = display.over_none if table.protocol == "last" else f"{display.over_none} ({table.protocol})"
    head = ["", "n", *candidates, *[over_none] * any(cell.base for cell in cells.values())]
    rows = [head]
    for label, cell in cells.items():
        if cell.n:
            scores = [spread(cell, candidate) for candidate in candidates]
            rows.append([label, str(cell.n), *scores, gain(cell, tested=False)])
        for seed, results in cell.row.disputed.items():
            for number, run in enumerate(results, start=1):
                scores = ["" if (x := score_of(run, name)) is None else display.text(x) for name in candidates]
                rows.append([f"{label} seed {seed}, result {number} of {len(results)}", "-", *scores])
    for teacher in teachers_of(cells.values()):
        scores = [display.text(teacher.score) if name == teacher.protocol else "" for name in candidates]
        rows.append([f"teacher {teacher.name}", "1", *scores])
    return _layout([[*row, ""][: len(head)] for row in rows], width)


def _layout(rows: list[list[str]], width: int) -> list[str]:
    """Columns side by side, the second one to the right; where that is too wide, labels stand on lines of their own."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = next((gap for gap in (3, 2) if sum(wide) + gap * (len(wide) - 1) <= width), None)

    def numbers(row: list[str], between: str) -> str:
        cells = [row[1].rjust(wide[1]), *(cell.ljust(room) for cell, room in zip(row[2:], wide[2:], strict=True))]
        return between.join(cells).rstrip()

    if gap is None:
        return [
            line for row in rows for line in ([row[0]] if row[0] else []) + [f"  {numbers(row, '  ')}"] if line.strip()
        ]
    return [f"{row[0].ljust(wide[0])}{' ' * gap}{numbers(row, ' ' * gap)}" for row in rows]


def _unfinished(records: list[dict]) -> list[str]:
    lines = []
    for record in records:
        if record["status"] != "done":
            message = ((record["error"] or {}).get("message") or "").strip().splitlines()
            lines.append(f"{record['status']:<11} {run_name(record)}{f': {message[0]}' if message else ''}")
    return lines
