"""Pictures for papers and slides, PNG and SVG: scores with intervals, learning curves, score against time and size.

A set for every column of every table.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.cells import Cell
from kdrun.report.curves import curve_title, draw_curves
from kdrun.report.display import PROTOCOLS
from kdrun.report.exits import exit_chart, exit_figure
from kdrun.report.forest import columns, forest, height
from kdrun.report.learning import curve_chart
from kdrun.report.paper import (
    ABOVE,
    BELOW,
    LINE,
    SIDE,
    WIDE,
    axis_at,
    draw_foot,
    drawing,
    figure_of,
    foot_lines,
    head,
    head_room,
    inches,
    label_points,
)
from kdrun.report.pivot import Table
from kdrun.report.strips import score_chart
from kdrun.report.style import Style, table_styles
from kdrun.report.text import count


def plots(tables: list[Table], folder: str | Path) -> list[Path]:
    """Draw every column of every table into the folder; the paths of the files, a PNG and an SVG of each picture.

    <dataset>-<column>-<metric>, -time, -curves and -early-exit (where a run has any); <dataset>-parameters of all columns together,
    where students differ in size. The same runs give the same SVG.
    """
    folder, names, paths = Path(folder), _Names(), []
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        for table in tables:
            for name, figure in _pictures(table, names):
                paths += _write(figure, folder / name) if figure is not None else []
    if not paths:
        raise KdrunError("no plots to draw: no run is done")
    return paths


class _Names:
    """Names of files that no other table or column has."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def new(self, text: str) -> str:
        """A name like this text, with a number at its end where it is taken."""
        slug, number = _slug(text), 1
        while (name := slug if number == 1 else f"{slug}-{number}") in self.used:
            number += 1
        self.used.add(name)
        return name


def _pictures(table: Table, names: _Names) -> list[tuple[str, Any]]:
    """(name, figure) of every picture of a table; None for a figure that would show nothing."""
    pictures: list[tuple[str, Any]] = []
    styles = table_styles(table)
    for column in table.columns:
        cells = {label: cell for label, cell in table.column(column).items() if table.protocol in cell.mean}
        if cells:
            name = names.new(f"{table.title}-{column}")
            pictures.append((f"{name}-{_slug(table.display.metric.name)}", _scores(table, column, cells, styles)))
            pictures.append((f"{name}-curves", _curves(table, cells, styles)))
            pictures.append((f"{name}-time", _times(table, column, cells, styles)))
            if (chart := exit_chart(table, cells, styles)) is not None:
                pictures.append((f"{name}-early-exit", exit_figure(chart, _title(table, column))))
    if pictures:
        pictures.append((f"{names.new(table.title)}-parameters", _sizes(table, styles)))
    return pictures


def _slug(text: str) -> str:
    """A file's name: letters, digits and - _ . only."""
    return re.sub(r"[^\w.-]+", "-", text.replace(" -> ", "-"), flags=re.ASCII).strip("-.")[:100] or "table"


def _write(figure: Any, stem: Path) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    figure.savefig(paths[0], dpi=160, facecolor="white")
    figure.savefig(paths[1], facecolor="white", metadata={"Date": None})
    return paths


def _title(table: Table, column: str) -> str:
    return f"{table.title}, {column.replace('->', '→')}, {_epoch(table.protocol)}"


def _epoch(protocol: str) -> str:
    return PROTOCOLS[protocol].partition(" (")[0]


def _scores(table: Table, column: str, cells: Mapping[str, Cell], styles: Mapping[str, Style]) -> Any:
    """A row per method, best on top: a ring per seed, the mean, its interval; the baseline as a line through all."""
    chart = score_chart(table, cells, styles)
    if chart is None:
        return None
    strips = chart.strips
    lines = ["ring: one seed, bar: 95 % interval of the mean"] * any(s.ends() and not s.one_seed for s in strips)
    lines += [f"dotted bar: one seed, interval of the test {table.display.samples}"] * any(s.one_seed for s in strips)
    lines = [_title(table, column), *lines, *chart.arrows]
    names, numbers = columns(strips)
    wide = max(0.75 * WIDE, head_room(lines) - names - numbers)
    above = ABOVE + 0.2 * (len(lines) - 2)
    figure = figure_of(0.2 + names + wide + numbers + 0.2, height(strips) + above + BELOW)
    axis = forest(figure, (0.2, BELOW, wide), chart)
    axis.set_xlabel(chart.axis + ", dashed: none" * (chart.base is not None))
    head(axis, "x", lines, names)
    return figure


def _curves(table: Table, cells: Mapping[str, Cell], styles: Mapping[str, Style]) -> Any:
    """Test score per epoch: means over seeds, lowest to highest as a band; None where no run has a curve."""
    chart = curve_chart(table, cells, styles)
    if not chart.lines:
        missing = chart.missing
        more = f" (and {len(missing) - 1} more runs)" * (len(missing) > 1)
        print(f"note     no learning curves of {next(iter(cells))}, ...: {missing[0]}{more}", file=sys.stderr)
        return None
    names = [f"{line.label}  00.00" for line in chart.lines] + [f"{label}  00.00 ↑" for label, _ in chart.teachers]
    title = curve_title({line.label: cells[line.label] for line in chart.lines})
    margin, tall = 0.4 + max(map(inches, names)), max(2.9, LINE * 1.2 * len(names))
    wide = max(WIDE, head_room(title) + 0.15 - margin)
    foot = foot_lines(chart.missing, SIDE + wide + margin)
    below = BELOW + 0.18 * len(foot)
    figure = figure_of(SIDE + wide + margin, tall + ABOVE + below)
    draw_curves(axis_at(figure, SIDE, below, wide, tall), chart, title)
    draw_foot(figure, foot)
    return figure


def _times(table: Table, column: str, cells: Mapping[str, Cell], styles: Mapping[str, Style]) -> Any:
    """Score against the mean training time of a run: a point per row."""
    times = [cell.seconds for cell in cells.values() if cell.seconds]
    if not times:
        return None
    unit, name = _unit(max(times))
    points = [(label, styles[label], [(cell.seconds / unit, cell)]) for label, cell in cells.items() if cell.seconds]
    figure, axis = _scatter(table, f"{_title(table, column)}, by training time", points)
    axis.set_xlabel(name)
    if max(times) > 8 * min(times):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _sizes(table: Table, styles: Mapping[str, Style]) -> Any:
    """Score against the students' parameters, all columns together: a line per row; None where all have one size."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    points, sizes = [], set()
    for label, row in table.cells.items():
        if not (line := [cell for cell in row.values() if table.protocol in cell.mean]):
            continue
        once = {id(cell.row): cell for cell in line}.values()  # a row without teacher stands in several columns
        points.append((label, styles[label], sorted(((float(c.params), c) for c in once), key=lambda item: item[0])))
        sizes |= {cell.params for cell in once}
    if len(sizes) < 2:
        return None
    figure, axis = _scatter(table, f"{table.title}, {_epoch(table.protocol)}, by size of the student", points)
    axis.set_xlabel("parameters of the student")
    if max(sizes) > 3 * min(sizes):
        axis.set_xscale("log")
    low, high = min(sizes) / 1.15, max(sizes) * 1.15
    axis.set_xlim(low, high)
    if len(sizes) < 6:
        axis.set_xticks(sorted(sizes))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(round(x))))
    axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _scatter(table: Table, title: str, rows: list[tuple[str, Style, list[tuple[float, Cell]]]]) -> tuple[Any, Any]:
    """(figure, axis) with the points of every row, their standard deviations, and the rows' names in the margin."""
    protocol, display, (least, most) = table.protocol, table.display, table.display.range
    several = any(cell.sd.get(protocol) is not None for _, _, points in rows for _, cell in points)
    lines = [title, "mean over seeds, bar: standard deviation" if several else "one seed"]
    margin, tall = 0.4 + max(inches(f"{label}  00.00") for label, _, _ in rows), max(2.9, LINE * 1.2 * len(rows))
    wide = max(WIDE, head_room(lines) + 0.15 - margin)
    figure = figure_of(SIDE + wide + margin, tall + ABOVE + BELOW)
    axis, ends = axis_at(figure, SIDE, BELOW, wide, tall), []
    for label, style, points in rows:
        for x, cell in points:
            y, sd = display.shown(cell.mean[protocol]), cell.sd.get(protocol)
            if sd is not None:
                half = display.shown(sd)
                low, high = max(y - half, least), min(y + half, most)
                axis.plot([x] * 2, [low, high], color=style.day, linewidth=1.5, zorder=2)
            axis.plot([x], [y], style.mark, ms=6, color=style.day, zorder=3, clip_on=False)
        if len(points) > 1:
            way = [(x, display.shown(cell.mean[protocol])) for x, cell in points]
            axis.plot(*zip(*way, strict=True), color=style.day, linestyle=style.dashes, linewidth=1.2, zorder=2)
        x, cell = points[-1]
        y = display.shown(cell.mean[protocol])
        ends.append((x, y, f"{label}  {display.number(y)}", style.day))
    axis.margins(x=0.08, y=0.08)
    low, high = axis.get_ylim()
    heights = [y for _, y, _, _ in ends]
    axis.set_ylim(max(low, min(least, *heights)), min(high, max(most, *heights)))
    axis.set_ylabel(display.axis)
    head(axis, "both", lines)
    label_points(axis, ends)
    return figure, axis


def _unit(seconds: float) -> tuple[float, str]:
    size, name = next(((s, n) for s, n in ((3600.0, "hours"), (60.0, "minutes")) if seconds >= 2 * s), (1.0, "seconds"))
    return size, f"training time of a run ({name})"
