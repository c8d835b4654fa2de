"""The samples that students classify wrongly although they are sure, with their texts; a task without texts has none in its records."""

from __future__ import annotations

from itertools import chain
from statistics import fmean

from markupsafe import Markup

from kdrun.report.facts import details_of
from kdrun.report.page.lines import Line
from kdrun.report.page.rendering import render
from kdrun.report.page.tables import Head, SortableTable, Td

LISTED = 12  # samples
Sample = tuple[tuple[str, ...], str]  # its texts and its label


def surest_mistakes(lines: list[Line], samples: str, ident: str) -> Markup:
    """A row for each of the samples that most runs have among their surest mistakes; empty where no record lists any."""
    known: dict[Sample, dict[str, list[tuple[str, float]]]] = {}
    counts = {}  # by row of the table: runs that list their mistakes
    for line in lines:
        lists = [one for run in line.cell.row.runs.values() if (one := details_of(run, "mistakes")) is not None]
        counts[line.label] = len(lists)
        for one in chain.from_iterable(lists):
            by_line = known.setdefault((tuple(one["texts"]), one["label"]), {})
            by_line.setdefault(line.label, []).append((one["predicted"], one["confidence"]))
    if not known:
        return Markup("")
    shown = [line for line in lines if counts[line.label]]
    head = [Head(samples.removesuffix("s"), "", False), Head("label", "", False), *(Head(line.label) for line in shown)]
    rows = []
    for (texts, label), by_line in sorted(known.items(), key=_order)[:LISTED]:
        text = " | ".join(texts)
        cells = [_cell(by_line.get(line.label, []), counts[line.label]) for line in shown]
        rows.append(("", [Td(text, text), Td(label, label), *cells]))
    table = SortableTable(ident, f"surest mistakes, {samples}", head, rows, "scroll")
    return render("mistakes.html", table=table.html(), samples=samples)


def _order(item: tuple[Sample, dict[str, list[tuple[str, float]]]]) -> tuple[int, float, Sample]:
    """Most runs first, then the highest mean confidence."""
    each = [confidence for runs in item[1].values() for _, confidence in runs]
    return -len(each), -fmean(each), item[0]


def _cell(runs: list[tuple[str, float]], count: int) -> Td:
    """What the runs of one row predict, with their mean confidence, and how many of them."""
    if not runs:
        return Td()
    sure = fmean(confidence for _, confidence in runs)
    names = " or ".join(dict.fromkeys(predicted for predicted, _ in runs))
    seeds = f" ({len(runs)} of {count})" if count > 1 else ""
    return Td(f"{names} {100 * sure:.0f} %{seeds}", sure)
