"""Tables as text: for a terminal, Markdown, CSV, LaTeX and JSON. Scores are fractions in the cells and percent here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdrun.config.tables import full_epochs
from kdrun.report.groups import labels, setting
from kdrun.report.pivot import LEVEL, Cell, Table
from kdrun.report.stats import least_sign_flip, sign_flip_seeds
from kdrun.report.table import PROTOCOLS, gain_text, percent, spread_text

LESS = (
    "ECE",
    "multiply-adds",
    "parameters",
    "time",
    "agreement",
    "best",
)  # what a narrow screen does without, in this order
STATES = {"running": "running or killed"}  # a record alone cannot tell; kdrun status can
FIELDS = (
    "protocol", "recipe", "epochs", "train_n", "test_n", "n", "seeds", "last", "last_sd", "best", "best_sd", "holdout", "holdout_sd",
    "pairs", "gain", "low", "high", "p", "test", "p_sign_flip", "p_sign_flip_holm", "equal", "seeds_needed",
    "agreement", "ece", "params", "multiply_adds", "train_s",
)  # fmt: skip


def caption(table: Table, skipped: int = 0) -> list[str]:
    """What a reader must know: data, protocol, seeds, how differences were tested, and what is missing."""
    data = table.dataset
    held = f" ({data['holdout_n']:,} more held out)" if data["holdout_n"] else ""
    sizes = f"{data['train_n']:,} training{held} and {data['test_n']:,} test images"
    lines = [
        f"{data['label']}: {sizes}; {' or '.join(sorted({recipe(run) for run in table.runs})) or 'no finished run'}"
    ]
    seeds = table.seeds
    said = (
        f"one seed ({seeds[0]})"
        if len(seeds) == 1
        else f"seeds {', '.join(map(str, seeds))}: mean ± standard deviation"
    )
    lines.append(f"test accuracy in %, {PROTOCOLS[table.protocol]}{f'; {said}' if seeds else ''}")
    lines += _tests([cell for line in table.cells.values() for cell in line.values()])
    lines += [f"note: {note}" for note in table.notes]
    names = labels([*table.runs, *table.unfinished]) if table.unfinished else {}
    missing = [
        f"{names[r['group']]} seed {r['seed']}: {STATES.get(r['status'], r['status'])}" for r in table.unfinished
    ]
    if missing:
        lines.append(
            f"not finished: {'; '.join(missing[:5])}{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}"
        )
    if skipped:
        lines.append(
            f"{skipped} file{'s' * (skipped > 1)} called record.json could not be read and {'are' if skipped > 1 else 'is'} left out"
        )
    return lines


def _tests(cells: Sequence[Cell]) -> list[str]:
    """How differences were tested, in short sentences."""
    lines = []
    tested = [cell for cell in cells if cell.test == "t"]
    if tested:
        several = len({setting(cell.runs, ("recipe", "precision", "dataset")) for cell in tested}) > 1
        family = "one recipe in a column" if several else "a column"
        lines.append(
            "against none: mean difference per seed, with its 95 % interval (covers seeds, not other test images)"
        )
        needed = any(cell.needed and cell.equal for cell in tested)
        more = "; in brackets: how many seeds would do" * needed
        lines.append(f"=: not significant (paired t test, 5 %, Holm over {family}){more}")
        few = [cell for cell in tested if cell.family * least_sign_flip(cell.pairs) >= 1 - LEVEL]
        if few:
            pairs, most = min(cell.pairs for cell in few), max(cell.family for cell in few)
            methods = f"{most} methods under Holm need" if most > 1 else "one method needs"
            lines.append(
                f"the t test takes differences to be normal; with {pairs} seeds the exact sign-flip test cannot go below "
                f"p = {least_sign_flip(pairs):.2g}; {methods} {sign_flip_seeds(most)} seeds"
            )
    if any(cell.test == "mcnemar" for cell in cells):
        lines.append(
            "one seed has no interval: p is that of McNemar's exact test on the test images (Holm; =: not significant at 5 %); "
            "it covers images, not seeds"
        )
    return lines


def recipe(run: dict) -> str:
    """kdzoo, 12 of 200 epochs: the recipe, and how much of it where it was cut."""
    name, epochs = run["recipe"].get("name"), run["recipe"].get("epochs")
    whole = full_epochs(str(name))
    return f"{name}, {epochs}{f' of {whole}' if whole and epochs and epochs < whole else ''} epochs"


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Head and rows of text. One column of runs is told in full; several stand side by side with score and difference."""
    if len(table.columns) == 1:
        (column,) = table.columns
        columns = [
            p for p in ("last", "best", "holdout") if any(p in line[column].mean for line in table.cells.values())
        ]
        told = ["holdout's choice" if name == "holdout" else name for name in columns]
        head = [column, "n", *told, "against none", "agreement", "ECE", "parameters", "multiply-adds", "time"]
        rows = [[label, *_full(line[column], columns)] for label, line in table.cells.items()]
        used = [i for i in range(len(head)) if i < 2 or any(row[i] for row in rows)]
        return [head[i] for i in used], [[row[i] for i in used] for row in rows]
    rows = [
        [label, *(_brief(line[c], table.protocol) if c in line else "" for c in table.columns)]
        for label, line in table.cells.items()
    ]
    return ["", *table.columns], rows


def _full(cell: Cell, columns: list[str]) -> list[str]:
    return [
        str(cell.n),
        *(spread(cell, column) for column in columns),
        against(cell),
        percent(cell.agreement) if cell.agreement is not None else "",
        percent(cell.ece) if cell.ece is not None else "",
        count(cell.params),
        count(cell.multiply_adds) if cell.multiply_adds else "",
        duration(cell.seconds),
    ]


def _brief(cell: Cell, protocol: str) -> str:
    return "  ".join(filter(None, [f"{spread(cell, protocol)} ({cell.n})" if cell.n else "disputed", against(cell)]))


def spread(cell: Cell, column: str) -> str:
    """mean ± sd in percent; the mean alone for one seed."""
    return spread_text(cell.mean[column], cell.sd[column]) if column in cell.mean else ""


def against(cell: Cell) -> str:
    """The difference to the baseline: with its interval, = where it cannot be told from 0, and the seeds that would tell."""
    if cell.gain is None:
        return cell.alone or ("no seed in common" if cell.base is not None and cell.n else "")
    if cell.low is None:
        tested = f"one seed, {'= ' * bool(cell.equal)}{p_text(cell.p)}" if cell.p is not None else "one seed, untested"
        return gain_text(cell.gain, None, None, tested)
    text = gain_text(cell.gain, cell.low, cell.high)
    if cell.pairs < cell.n:
        text += f" ({cell.pairs} pairs)"
    if cell.equal:
        text += f" = ({cell.needed:,} seeds)" if cell.needed else " ="
    return text


def p_text(p: float) -> str:
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def count(number: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return str(number)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


@dataclass
class Plain:
    """A table that is no pivot: published scores beside ours, the trials of a search. `data`: its numbers, a dict per row."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    data: list[dict[str, Any]]


def terminal(tables: list[Table], skipped: int = 0, width: int = 100, more: Sequence[Plain] = ()) -> str:
    """For a screen: captions folded to its width; a table too wide for it leaves out the columns of LESS, and says so.

    Where that is not enough, a row's cells stand below its name.
    """
    import textwrap

    parts = []
    for table in tables:
        head, rows = grid(table)
        left = [name for name in LESS if name in head]
        out: list[str] = []
        while left and _width(head, rows) > width:
            out.append(left.pop(0))
            kept = [i for i, name in enumerate(head) if name not in out]
            head, rows = [head[i] for i in kept], [[row[i] for i in kept] for row in rows]
        said = caption(table, skipped) + [f"left out for this width: {', '.join(out)} (--format md has all)"] * bool(
            out
        )
        lines = [line for sentence in said for line in textwrap.wrap(sentence, width)]
        parts.append("\n".join([*lines, "", *aligned(head, rows, width)]))
    for plain in more:
        parts.append("\n".join([*textwrap.wrap(plain.caption, width), "", *aligned(plain.head, plain.rows, width)]))
    return "\n\n".join(parts) + "\n"


def _width(head: list[str], rows: list[list[str]]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(head, *rows, strict=True)) - 2


def aligned(head: list[str], rows: list[list[str]], width: int) -> list[str]:
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


def markdown(tables: list[Table], skipped: int = 0, more: Sequence[Plain] = ()) -> str:
    """GitHub's tables; every cell is escaped."""
    parts = []
    for said, head, rows in _all(tables, skipped, more):
        lines = [f"| {' | '.join(map(_md, row))} |" for row in [head, *rows]]
        lines.insert(1, f"|{' --- |' * len(head)}")
        parts.append("\n".join([*lines, "", *(f"{_md(line)}.\n" for line in said)]))
    return "\n".join(parts)


def _all(
    tables: list[Table], skipped: int, more: Sequence[Plain]
) -> list[tuple[list[str], list[str], list[list[str]]]]:
    """(sentences, head, rows) of every table."""
    found = [(caption(table, skipped), *grid(table)) for table in tables]
    return [*found, *(([plain.caption], plain.head, plain.rows) for plain in more)]


def _md(text: str) -> str:
    for letter in "\\`*_[]<>|":
        text = text.replace(letter, f"\\{letter}")
    return text


def latex(tables: list[Table], skipped: int = 0, more: Sequence[Plain] = ()) -> str:
    """booktabs tables; needs \\usepackage{booktabs}."""
    parts = []
    for said, head, rows in _all(tables, skipped, more):
        body = [f"{' & '.join(map(_tex, row))} \\\\" for row in rows]
        parts += [
            "\\begin{table}", "\\centering", f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule",
            f"{' & '.join(map(_tex, head))} \\\\", "\\midrule", *body, "\\bottomrule", "\\end{tabular}",
            f"\\caption{{{_tex('. '.join(said))}.}}", "\\end{table}", "",
        ]  # fmt: skip
    return "\n".join(parts)


def _tex(text: str) -> str:
    text = "".join(
        {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}.get(c, c) for c in text
    )
    for letter in "&%$#_":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("->", "$\\to$").replace("±", "$\\pm$").replace("<", "$<$")


def long(tables: list[Table]) -> list[dict[str, Any]]:
    """A dict per cell with all of its numbers as fractions, seconds and counts."""
    found = []
    for table in tables:
        for label, line in table.cells.items():
            for column, cell in line.items():
                told = {"row": label, "dataset": table.dataset["label"], "column": column, "protocol": table.protocol}
                found.append({**told, **_numbers(cell, table)})
    return found


def _numbers(cell: Cell, table: Table) -> dict[str, Any]:
    first = cell.runs.first
    plain: dict[str, Any] = {
        "protocol": table.protocol, "recipe": first["recipe"].get("name"), "epochs": first["recipe"].get("epochs"),
        "train_n": table.dataset["train_n"], "test_n": table.dataset["test_n"],
    }  # fmt: skip
    plain |= {key: value for key, value in vars(cell).items() if key in FIELDS}
    for column in ("last", "best", "holdout"):
        plain[column], plain[f"{column}_sd"] = cell.mean.get(column), cell.sd.get(column)
    plain |= {"seeds": sorted(cell.runs.runs), "seeds_needed": cell.needed, "train_s": cell.seconds}
    return {key: plain.get(key) for key in FIELDS}


def comma(tables: list[Table], more: Sequence[Plain] = ()) -> str:
    """CSV, a line per cell; the row's name is the first column. Published scores are further columns of their cells."""
    keys = ("row", "dataset", "train_n", "test_n", "column")
    beside = {tuple(line[key] for key in keys): line for plain in more for line in plain.data}
    columns = dict.fromkeys(["row", "dataset", "column", *FIELDS, *(key for line in beside.values() for key in line)])
    lines = [
        {**line, **beside.get(tuple(line[key] for key in keys), {})} | {"seeds": " ".join(map(str, line["seeds"]))}
        for line in long(tables)
    ]  # fmt: skip
    return as_csv([*columns], lines)


def as_csv(columns: Sequence[str], lines: Iterable[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def as_json(tables: list[Table], skipped: int = 0, more: Sequence[Plain] = ()) -> str:
    """Captions and cells, with the accuracy of each class; the rows of other tables after them."""
    found: list[dict[str, Any]] = []
    for table in tables:
        cells = long([table])
        for cell in cells:
            cell["class_scores"] = table.cells[cell["row"]][cell["column"]].class_scores
        said = {"caption": caption(table, skipped), "protocol": table.protocol, "dataset": table.dataset}
        found.append({**said, "cells": cells})
    found += [{"caption": [plain.caption], "rows": plain.data} for plain in more]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
