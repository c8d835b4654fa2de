"""The results as one HTML file that opens from disk: tables, curves, intervals, calibration, classes, failures, every run.

Nothing is loaded from a network and every text of a record is escaped; a policy in the head forbids any script but the page's
own. Tables sort and filter with a script, and can be read without it. The same runs give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kdrun.report.page import dataset, runs_list
from kdrun.report.page.rendering import HERE, render
from kdrun.report.page.tables import Head, SortableTable, Td
from kdrun.report.pivot import Table
from kdrun.report.render import ExtraTable, as_csv, cell_numbers


def page(
    tables: list[Table],
    skipped: list[str],
    runs: list[dict],
    place: Path | None = None,
    more: Sequence[ExtraTable] = (),
) -> str:
    """The whole file. `place`: the folder of the page, for relative links to the records; without it, paths are text."""
    titles = [table.title for table in tables]
    unfinished = [run for run in runs if run["status"] != "done"]
    script = (HERE / "page.js").read_text(encoding="utf-8")
    labels = runs_list.run_labels(runs)
    html = render(
        "page.html",
        names=", ".join(dict.fromkeys(titles)),
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        script=Markup(script),
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        csv=base64.b64encode(as_csv(tables, more).encode("utf-8", "replace")).decode(),
        done=len(runs) - len(unfinished),
        unfinished=len(unfinished),
        skipped=skipped,
        links=_links(titles, len(more), len(unfinished), len(skipped), len(runs)),
        datasets=[dataset.section(table, f"t{number}", len(skipped)) for number, table in enumerate(tables)],
        extras=[(extra, f"m{number}", _extra(extra, f"m{number}t")) for number, extra in enumerate(more)],
        failures=runs_list.failures(unfinished, labels).html(),
        runs=runs_list.all_runs(runs, labels, place).html(),
        total=len(runs),
        data=_data(cell_numbers(tables)),
    )
    return html.encode("utf-8", "replace").decode("utf-8") + "\n"


def _links(titles: list[str], extras: int, unfinished: int, skipped: int, runs: int) -> list[tuple[str, str]]:
    """(target, name) of the links to the sections."""
    links = [(f"t{number}", title) for number, title in enumerate(titles)]
    links += [(f"m{number}", "published scores") for number in range(extras)]
    links += [("failures", f"not finished ({unfinished})")] * bool(unfinished)
    links += [("skipped", f"skipped files ({skipped})")] * bool(skipped)
    return [*links, ("runs", f"all runs ({runs})")]


def _data(numbers: Any) -> Markup:
    """The numbers of every cell as JSON, for programs. No text in it can end the script element."""
    text = json.dumps(numbers, ensure_ascii=True, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _extra(extra: ExtraTable, ident: str) -> Markup:
    """The rows of published scores; empty where there are none."""
    head = [Head(name, "", name in ("published", "ours", "n")) for name in extra.head]
    rows = [("", [Td(cell, cell.partition(" ±")[0]) for cell in row]) for row in extra.rows]
    return SortableTable(ident, "published scores beside ours", head, rows, "cards").html() if rows else Markup("")
