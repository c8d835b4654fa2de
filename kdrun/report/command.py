"""`kdrun report [FOLDER ...]`: the runs below folders as a table, in the format asked for."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kdrun.errors import KdrunError
from kdrun.report import render
from kdrun.report.against import Comparison, compare
from kdrun.report.collect import collect
from kdrun.report.pivot import Table, tables

FORMATS = ("terminal", "md", "csv", "latex", "json", "html")


class Parser(argparse.ArgumentParser):
    """A wrong argument is one line and exit code 2, as everywhere in kdrun."""

    def error(self, message: str) -> NoReturn:
        error = KdrunError(f"{message.partition(' (choose')[0]}. {self.format_usage().strip()}")
        error.status = 2
        raise error


def parser() -> Parser:
    found = Parser(
        "kdrun report", description="The runs below folders as a table: means over seeds, differences to `none`."
    )
    found.add_argument("folders", nargs="*", default=["outputs/runs"], metavar="FOLDER", help="default: outputs/runs")
    found.add_argument("--rows", default="method", metavar="KEY", help="method, pair, or a key such as recipe.lr")
    found.add_argument("--columns", default="pair", metavar="KEY", help="pair (teacher -> student), method, or a key")
    found.add_argument(
        "--protocol", choices=("last", "best", "holdout"), help="which epoch is compared; default: the runs' own"
    )
    found.add_argument("--against", metavar="TABLE", help="a published table, as kdzoo_cifar10")
    found.add_argument("--format", choices=FORMATS, default="terminal")
    found.add_argument("--output", metavar="FILE", help="write to a file instead of the screen")
    found.add_argument("--plots", metavar="DIR", help="draw the tables, too: PNG and SVG files into a folder")
    return found


def report(arguments: Sequence[str]) -> int:
    """The verb; returns the exit status."""
    asked = parser().parse_args(arguments)
    found = collect(asked.folders)
    for line in found.skipped:
        print(f"skipped  {line}", file=sys.stderr)
    shown = tables(found.records, rows=asked.rows, columns=asked.columns, protocol=asked.protocol)
    if asked.format == "html":
        from kdrun.report.html import page

        place = Path(asked.output).parent if asked.output else Path()
        text = page(shown, found.skipped, found.records, place)
    else:
        text = _text(shown, asked.format, len(found.skipped))
    if asked.against:
        text += _against(compare(shown, asked.against), asked.against, asked.format)
    if asked.output:
        Path(asked.output).write_text(text, encoding="utf-8")
        print(f"table    {asked.output}")
    else:
        print(text, end="")
    if asked.plots:
        from kdrun.report.plots import plots

        drawn = plots(shown, asked.plots)
        print(f"plots    {len(drawn)} files in {asked.plots}", file=sys.stdout if asked.output else sys.stderr)
    return 0


def _text(shown: list[Table], form: str, skipped: int) -> str:
    if form == "csv":
        return render.comma(shown)
    if form == "terminal":
        return render.terminal(shown, skipped, shutil.get_terminal_size((120, 24)).columns)
    return {"md": render.markdown, "latex": render.latex, "json": render.as_json}[form](shown, skipped)


def _against(found: list[Comparison], name: str, form: str) -> str:
    """Published, ours and the verdict, a line per cell that we have."""
    if form not in ("terminal", "md"):
        raise KdrunError(f"--against is told in --format terminal or md, not {form}")
    if not found:
        return f"\nno cell of {name} has runs here\n"
    head = ["method", "pair", "published", "protocol", "ours", "n", "verdict"]
    rows = [
        [
            c.row, f"{c.theirs.teacher} -> {c.theirs.student}", f"{100 * c.theirs.score:.2f}", c.theirs.protocol,
            render.spread(c.cell, "last") if "last" in c.cell.mean else f"{100 * c.ours:.2f}", str(c.cell.n), c.verdict,
        ]
        for c in found
    ]  # fmt: skip
    said = (
        f"against {name} ({found[0].theirs.source}): inside is a difference within 1.96 standard errors, ours over seeds (with one "
        "seed: of the test set), theirs as scores on a test set of this size"
    )
    lines = (
        [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
        if form == "md"
        else render.aligned(head, rows, 200)
    )
    return "\n" + "\n".join([said, "", *lines]) + "\n"
