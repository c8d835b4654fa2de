"""Pictures for papers and slides, PNG and SVG: accuracy with intervals, learning curves, accuracy against time and size.

A set for every column of every table. The look is that of `curves`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.curves import draw_curves, draw_foot, foot_lines, over_seeds, read_curves, title_of
from kdrun.report.forest import columns, forest, height
from kdrun.report.groups import Block, teachers
from kdrun.report.look import (
    ABOVE,
    BELOW,
    LINE,
    SIDE,
    WIDE,
    Look,
    apart,
    axis_at,
    axis_size,
    beside,
    head,
    head_room,
    inches,
)
from kdrun.report.pivot import Cell, Table
from kdrun.report.strips import beyond, scores, table_looks, titled, window
from kdrun.report.table import PROTOCOLS


def plots(tables: list[Table], folder: str | Path) -> list[Path]:
    """Draw every column of every table into the folder; the paths of what was written, a PNG and an SVG of each picture.

    <dataset>-<column>-accuracy, -curves (where a run has any) and -time; <dataset>-parameters of all columns together, where
    students differ in size. The same runs give the same SVG.
    """
    from matplotlib import rc_context

    folder, found = Path(folder), []
    used: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)

    def stem(text: str) -> str:
        """A name that no other table or column has."""
        name = next(n for i in range(1, len(used) + 2) if (n := _slug(text) + f"-{i}" * (i > 1)) not in used)
        used.add(name)
        return name

    # No text of a record is a formula: without parse_math "$" is a letter.
    with rc_context(
        {
            "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "kdrun", "text.parse_math": False,
        }
    ):  # fmt: skip
        for table in tables:
            drawn: list[tuple[str, Any]] = []
            styles = table_looks(table)
            for column in table.columns:
                cells = {label: line[column] for label, line in table.cells.items() if _scored(table, line.get(column))}
                if cells:
                    name = stem(f"{titled(table)}-{column}")
                    drawn.append((f"{name}-accuracy", _accuracy(table, column, cells, styles)))
                    drawn.append((f"{name}-curves", _lines(_block(table, cells), styles)))
                    drawn.append((f"{name}-time", _times(table, column, cells, styles)))
            if drawn:
                drawn.append((f"{stem(titled(table))}-parameters", _sizes(table, styles)))
            for name, figure in drawn:
                if figure is not None:
                    found += _write(figure, folder / name)
    if not found:
        raise KdrunError("no plots to draw: no run is done")
    return found


def _scored(table: Table, cell: Cell | None) -> bool:
    return cell is not None and table.protocol in cell.mean


def _slug(text: str) -> str:
    """A file's name: letters, digits and - _ . only."""
    return re.sub(r"[^\w.-]+", "-", text.replace(" -> ", "-"), flags=re.ASCII).strip("-.")[:100] or "table"


def _block(table: Table, cells: dict[str, Cell]) -> Block:
    """The column as what `curves` draws, rows called as in the table."""
    rows = [replace(cell.runs, label=label) for label, cell in cells.items()]
    return Block(table.runs, rows)


def _figure(wide: float, tall: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, tall))
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Any, stem: Path) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    figure.savefig(paths[0], dpi=160, facecolor="white")
    figure.savefig(paths[1], facecolor="white", metadata={"Date": None})
    return paths


def _title(table: Table, column: str, protocol: str) -> str:
    return f"{titled(table)}, {column.replace('->', '→')}, {_epoch(protocol)}"


def _epoch(protocol: str) -> str:
    return PROTOCOLS[protocol].partition(" (")[0]


def _accuracy(table: Table, column: str, cells: dict[str, Cell], styles: Mapping[str, Look]) -> Any:
    """A row per method, highest on top: a ring per seed, the mean, its interval; the baseline as a line through all."""
    strips = scores(table, cells, styles)
    bases = [strip.mean for strip in strips if strip.baseline]
    said = ["ring: a seed, bar: 95 % interval of the mean"] * any(s.ends() and not s.images for s in strips)
    said += ["dotted bar: of the test images, one seed"] * any(s.images for s in strips)
    shown = window(strips, bases[0] if len(bases) == 1 else None, 0.0, 100.0)
    said += ["arrow: it goes on"] * any(any(beyond(strip, *shown)) for strip in strips)
    lines = [_title(table, column, table.protocol), *said]
    names, numbers = columns(strips)
    wide = max(0.75 * WIDE, head_room(lines) - names - numbers)
    above = ABOVE + 0.2 * (len(said) - 1)
    figure = _figure(0.2 + names + wide + numbers + 0.2, height(strips) + above + BELOW)
    axis = forest(figure, (0.2, BELOW, wide), strips, shown, bases[0] if len(bases) == 1 else None)
    axis.set_xlabel(f"test accuracy (%){', dashed: none' * (len(bases) == 1)}")
    head(axis, "x", lines, names)
    return figure


def _lines(block: Block, styles: Mapping[str, Look]) -> Any:
    """Test score per epoch: means over seeds, lowest to highest as a band; None where no run has a curve."""
    known, lost = read_curves(block.rows)
    rows = [row for row in block.rows if over_seeds(row, known)[0]]
    if not rows:
        more = f" (and {len(lost) - 1} more runs)" * (len(lost) > 1)
        print(f"note     no learning curves of {block.rows[0].label}, ...: {lost[0]}{more}", file=sys.stderr)
        return None
    drawn = Block([run for row in rows for run in row.runs.values()], rows)
    names = [f"{row.label}  00.00" for row in rows] + [f"{label}  00.00 ↑" for label, _, _ in teachers(drawn)]
    margin, tall = 0.4 + max(map(inches, names)), max(2.9, LINE * 1.2 * len(names))
    wide = max(WIDE, head_room(title_of(drawn)) + 0.15 - margin)
    foot = foot_lines(lost, SIDE + wide + margin)
    below = BELOW + 0.18 * len(foot)
    figure = _figure(SIDE + wide + margin, tall + ABOVE + below)
    draw_curves(axis_at(figure, SIDE, below, wide, tall), drawn, known, styles)
    draw_foot(figure, foot)
    return figure


def _times(table: Table, column: str, cells: dict[str, Cell], styles: Mapping[str, Look]) -> Any:
    """Accuracy against the mean training time of a run: a point per row."""
    times = [cell.seconds for cell in cells.values() if cell.seconds]
    if not times:
        return None
    unit, name = _unit(max(times))
    points = [(label, styles[label], [(cell.seconds / unit, cell)]) for label, cell in cells.items() if cell.seconds]
    figure, axis = _scatter(table, f"{_title(table, column, table.protocol)}, by training time", points)
    axis.set_xlabel(name)
    if max(times) > 8 * min(times):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _sizes(table: Table, styles: Mapping[str, Look]) -> Any:
    """Accuracy against the students' parameters, all columns together: a line per row; None where all have one size."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from kdrun.report.render import count

    points, sizes = [], set()
    for label, row in table.cells.items():
        if not (line := [cell for cell in row.values() if _scored(table, cell)]):
            continue
        once = {id(cell.runs): cell for cell in line}.values()  # what has no teacher stands in several columns
        points.append((label, styles[label], sorted(((float(c.params), c) for c in once), key=lambda item: item[0])))
        sizes |= {cell.params for cell in once}
    if len(sizes) < 2:
        return None
    figure, axis = _scatter(table, f"{titled(table)}, {_epoch(table.protocol)}, by size of the student", points)
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


def _scatter(table: Table, title: str, rows: list[tuple[str, Look, list[tuple[float, Cell]]]]) -> tuple[Any, Any]:
    """(figure, axis) with the points of every row, their standard deviations, and the rows' names in the margin."""
    protocol = table.protocol
    several = any(cell.sd.get(protocol) is not None for _, _, points in rows for _, cell in points)
    lines = [title, "mean over seeds, bar: standard deviation" if several else "one seed"]
    margin, tall = 0.4 + max(inches(f"{label}  00.00") for label, _, _ in rows), max(2.9, LINE * 1.2 * len(rows))
    wide = max(WIDE, head_room(lines) + 0.15 - margin)
    figure = _figure(SIDE + wide + margin, tall + ABOVE + BELOW)
    axis, ends = axis_at(figure, SIDE, BELOW, wide, tall), []
    for label, look, points in rows:
        for x, cell in points:
            y, sd = 100 * cell.mean[protocol], cell.sd.get(protocol)
            if sd is not None:
                low, high = max(y - 100 * sd, 0.0), min(y + 100 * sd, 100.0)
                axis.plot([x] * 2, [low, high], color=look.day, linewidth=1.5, zorder=2)
            axis.plot([x], [y], look.mark, ms=6, color=look.day, zorder=3, clip_on=False)
        if len(points) > 1:
            way = [(x, 100 * cell.mean[protocol]) for x, cell in points]
            axis.plot(*zip(*way, strict=True), color=look.day, linestyle=look.dashes, linewidth=1.2, zorder=2)
        x, cell = points[-1]
        y = 100 * cell.mean[protocol]
        ends.append((x, y, f"{label}  {y:.2f}", look.day))
    axis.margins(x=0.08, y=0.08)
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, min(0.0, *(y for _, y, _, _ in ends))), min(high, max(100.0, *(y for _, y, _, _ in ends))))
    axis.set_ylabel("test accuracy (%)")
    head(axis, "both", lines)
    _label_points(axis, ends)
    return figure, axis


def _unit(seconds: float) -> tuple[float, str]:
    size, name = next(((s, n) for s, n in ((3600.0, "hours"), (60.0, "minutes")) if seconds >= 2 * s), (1.0, "seconds"))
    return size, f"training time of a run ({name})"


def _label_points(axis: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Names in the margin, sorted by height, a thin line from each to its point."""
    from matplotlib.patches import ConnectionPatch

    low, high = axis.get_ylim()
    points = sorted(points, key=lambda point: point[1])
    wide, tall = axis_size(axis)
    places = apart([(y - low) / (high - low) for _, y, _, _ in points], LINE / tall, 0.0, 1.0)
    for (x, y, label, colour), place in zip(points, places, strict=True):
        end = 1 + 0.16 / wide, place
        line = ConnectionPatch(
            (x, y), end, "data", axis.transAxes, color=colour, lw=0.6, alpha=0.5, clip_on=False, zorder=1
        )
        axis.add_artist(line)
        beside(axis, place, label, colour)
