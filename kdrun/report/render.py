"""Tables as text: for a terminal, Markdown, CSV, LaTeX and JSON. CSV and JSON hold fractions, the others what a reader sees."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdrun.report.caption import caption
from kdrun.report.cells import CANDIDATES, Cell
from kdrun.report.pivot import Table
from kdrun.report.text import grid

# The columns that a narrow screen leaves out, in this order.
DISPENSABLE = ("ECE", "multiply-adds", "parameters", "time", "agreement", "best")
# The keys of CSV and JSON: users' scripts read them.
FIELDS = (
    "protocol", "recipe", "epochs", "train_n", "test_n", "n", "seeds", "last", "last_sd", "best", "best_sd", "holdout", "holdout_sd",
    "pairs", "gain", "low", "high", "p", "test", "p_sign_flip", "p_sign_flip_holm", "equal", "seeds_needed",
    "agreement", "ece", "params", "multiply_adds", "train_s",
)  # fmt: skip


@dataclass
class ExtraTable:
    """Any other table: published scores beside ours, the trials of a search. `data`: its numbers, a dict per row."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    data: list[dict[str, Any]]


def terminal(tables: list[Table], skipped: int = 0, width: int = 100, more: Sequence[ExtraTable] = ()) -> str:
    """For a screen: captions are folded to its width; a table that is too wide leaves out columns, and a line says which.

    Where that is not enough, the cells of a row stand below its name.
    """
    import textwrap

    parts = []
    for table in tables:
        head, rows = grid(table)
        left = [name for name in DISPENSABLE if name in head]
        out: list[str] = []
        while left and _width(head, rows) > width:
            out.append(left.pop(0))
            kept = [i for i, name in enumerate(head) if name not in out]
            head, rows = [head[i] for i in kept], [[row[i] for i in kept] for row in rows]
        sentences = caption(table, skipped)
        if out:
            sentences.append(f"The screen is too narrow for {', '.join(out)}; --format md shows all columns")
        lines = [line for sentence in sentences for line in textwrap.wrap(sentence, width)]
        parts.append("\n".join([*lines, "", *aligned(head, rows, width)]))
    for extra in more:
        parts.append("\n".join([*textwrap.wrap(extra.caption, width), "", *aligned(extra.head, extra.rows, width)]))
    return "\n\n".join(parts) + "\n"


def _width(head: list[str], rows: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(head, *rows, strict=True)) - 2


def aligned(head: list[str], rows: list[list[str]], width: int) -> list[str]:
    """Lines with columns of equal width; where they are wider than `width`, the cells of a row stand below its name."""
    wide = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if _width(head, rows) <= width:
        return [
            "  ".join(cell.ljust(room) for cell, room in zip(row, wide, strict=True)).rstrip() for row in [head, *rows]
        ]
    lines = []
    for row in rows:
        lines.append(row[0])
        lines += [
            f"    {name:<{max(map(len, head))}}  {cell}" for name, cell in zip(head[1:], row[1:], strict=True) if cell
        ]
    return lines


def markdown(tables: list[Table], skipped: int = 0, more: Sequence[ExtraTable] = ()) -> str:
    """GitHub's tables; every cell is escaped."""
    parts = []
    for sentences, head, rows in _all(tables, skipped, more):
        lines = [f"| {' | '.join(map(_md, row))} |" for row in [head, *rows]]
        lines.insert(1, f"|{' --- |' * len(head)}")
        parts.append("\n".join([*lines, "", *(f"{_md(line)}.\n" for line in sentences)]))
    return "\n".join(parts)


def _all(
    tables: list[Table], skipped: int, more: Sequence[ExtraTable]
) -> list[tuple[list[str], list[str], list[list[str]]]]:
    """(sentences, head, rows) of every table."""
    pivots = [(caption(table, skipped), *grid(table)) for table in tables]
    return [*pivots, *(([extra.caption], extra.head, extra.rows) for extra in more)]


def _md(text: str) -> str:
    for letter in "\\`*_[]<>|":
        text = text.replace(letter, f"\\{letter}")
    return text


def latex(tables: list[Table], skipped: int = 0, more: Sequence[ExtraTable] = ()) -> str:
    """booktabs tables; needs \\usepackage{booktabs}."""
    parts = []
    for sentences, head, rows in _all(tables, skipped, more):
        body = [f"{' & '.join(map(_tex, row))} \\\\" for row in rows]
        parts += [
            "\\begin{table}", "\\centering", f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule",
            f"{' & '.join(map(_tex, head))} \\\\", "\\midrule", *body, "\\bottomrule", "\\end{tabular}",
            f"\\caption{{{_tex('. '.join(sentences))}.}}", "\\end{table}", "",
        ]  # fmt: skip
    return "\n".join(parts)


def _tex(text: str) -> str:
    text = "".join(
        {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}.get(c, c) for c in text
    )
    for letter in "&%$#_":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("->", "$\\to$").replace("±", "$\\pm$").replace("<", "$<$")


def cell_numbers(tables: list[Table]) -> list[dict[str, Any]]:
    """A dict per cell with all of its numbers as fractions, seconds and counts."""
    lines = []
    for table in tables:
        for label, line in table.cells.items():
            for column, cell in line.items():
                keys = {"row": label, "dataset": table.dataset["label"], "column": column, "protocol": table.protocol}
                lines.append({**keys, **_numbers(cell, table)})
    return lines


def _numbers(cell: Cell, table: Table) -> dict[str, Any]:
    first = cell.row.first
    numbers: dict[str, Any] = {
        "protocol": table.protocol, "recipe": first["recipe"].get("name"), "epochs": first["recipe"].get("epochs"),
        "train_n": table.dataset["train_n"], "test_n": table.dataset["test_n"],
    }  # fmt: skip
    numbers |= {key: value for key, value in vars(cell).items() if key in FIELDS}
    for candidate in CANDIDATES:
        numbers[candidate], numbers[f"{candidate}_sd"] = cell.mean.get(candidate), cell.sd.get(candidate)
    numbers |= {"seeds": sorted(cell.row.runs), "seeds_needed": cell.needed, "train_s": cell.seconds}
    return {key: numbers.get(key) for key in FIELDS}


def as_csv(tables: list[Table], more: Sequence[ExtraTable] = ()) -> str:
    """CSV, a line per cell; the row's name is the first column. Published scores are further columns of their cells."""
    keys = ("row", "dataset", "train_n", "test_n", "column")
    beside = {tuple(line[key] for key in keys): line for extra in more for line in extra.data}
    columns = dict.fromkeys(["row", "dataset", "column", *FIELDS, *(key for line in beside.values() for key in line)])
    lines = [
        {**line, **beside.get(tuple(line[key] for key in keys), {})} | {"seeds": " ".join(map(str, line["seeds"]))}
        for line in cell_numbers(tables)
    ]  # fmt: skip
    return csv_text([*columns], lines)


def csv_text(columns: Sequence[str], lines: Iterable[dict[str, Any]]) -> str:
    """Lines of CSV below their head."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def as_json(tables: list[Table], skipped: int = 0, more: Sequence[ExtraTable] = ()) -> str:
    """Captions and cells, with the accuracy of each class; the rows of other tables after them."""
    parts: list[dict[str, Any]] = []
    for table in tables:
        cells = cell_numbers([table])
        for cell in cells:
            cell["class_scores"] = table.cells[cell["row"]][cell["column"]].class_scores
        about = {"caption": caption(table, skipped), "protocol": table.protocol, "dataset": table.dataset}
        parts.append({**about, "cells": cells})
    parts += [{"caption": [extra.caption], "rows": extra.data} for extra in more]
    return json.dumps(parts, indent=1, ensure_ascii=False) + "\n"
