"""Pictures for papers and slides, PNG and SVG: accuracy with intervals, learning curves, accuracy against time and size.

A set for every column of every table. The look is that of `curves`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.curves import draw_curves, read_curve
from kdrun.report.groups import Block, teachers
from kdrun.report.look import (
    ABOVE,
    BASELINE,
    BELOW,
    FONT,
    LINE,
    SIDE,
    STEP,
    TEACHER,
    WIDE,
    apart,
    axis_at,
    inches,
    ink,
    styles,
)
from kdrun.report.pivot import Cell, Table, interval, teachers_of
from kdrun.report.render import spread
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
            for column in table.columns:
                cells = {label: line[column] for label, line in table.cells.items() if _scored(table, line.get(column))}
                if cells:
                    block, name = _block(table, cells), stem(f"{table.dataset['name']}-{column}")
                    drawn.append((f"{name}-accuracy", _accuracy(table, column, block, cells)))
                    drawn.append((f"{name}-curves", _lines(block)))
                    drawn.append((f"{name}-time", _times(table, column, block, cells)))
            if drawn:
                drawn.append((f"{stem(table.dataset['name'])}-parameters", _sizes(table)))
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
    return f"{table.dataset['name']}, {column.replace('->', '→')}, {_epoch(protocol)}"


def _epoch(protocol: str) -> str:
    return PROTOCOLS[protocol].partition(" (")[0]


def _room(lines: list[str]) -> float:
    """The inches that a title and the lines below it need."""
    return max(1.4 * inches(lines[0]), *(inches(line) for line in lines[1:]), 0.0)


def _head(axis: Any, grid: str, lines: list[str]) -> None:
    """A title and smaller lines below it, at the same distance from an axis of any height."""
    axis.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    for number, line in enumerate(reversed(lines)):
        title = number == len(lines) - 1
        axis.annotate(
            line,
            (0, 1),
            xycoords="axes fraction",
            xytext=(0, 8 + 14 * number + 3 * title),
            textcoords="offset points",
            fontsize=11.5 if title else 9,
            fontweight="bold" if title else "normal",
            color="black" if title else "#666666",
        )


def _accuracy(table: Table, column: str, block: Block, cells: dict[str, Cell]) -> Any:
    """A row per method, highest on top: a ring per seed, the mean, its interval; the baseline as a line through all."""
    protocol, colours = table.protocol, styles(block)
    shown = [(row, cell) for row, cell in zip(block.rows, cells.values(), strict=True) if protocol in cell.mean]
    shown.sort(key=lambda item: item[1].mean[protocol])
    names = [f"{row.label}   {spread(cell, protocol)}" for row, cell in shown]
    kinds = {interval(cell, protocol, table.dataset["test_n"])[3] for _, cell in shown}
    bases = [100 * cell.mean[protocol] for _, cell in shown if cell.baseline]
    said = ["ring: a seed, bar: 95 % interval of the mean"] * ("seeds" in kinds)
    said += ["dotted bar: of the test images, one seed"] * ("images" in kinds)
    lines = [_title(table, column, protocol), *said]
    right, tall = max(WIDE, *map(inches, names), _room(lines)), max(1.6, STEP * len(shown))
    above = ABOVE + 0.2 * (len(said) - 1)
    figure = _figure(0.3 + right + 0.3, tall + above + BELOW)
    axis = axis_at(figure, 0.3, BELOW, right, tall)
    core: list[float] = []
    ends: list[float] = []
    for height, ((row, cell), name) in enumerate(zip(shown, names, strict=True)):
        mean, low, high, kind = interval(cell, protocol, table.dataset["test_n"])
        colour, each = colours[row.label][0], [100 * x for x in row.scores(protocol)]
        core += [*each, 100 * mean]
        if low is not None and high is not None:
            ends += [100 * low, 100 * high]
            style = "-" if kind == "seeds" else (0, (1, 1))
            axis.plot(
                [100 * low, 100 * high], [height] * 2, color=colour, lw=2, ls=style, solid_capstyle="butt", zorder=2
            )
        if len(each) > 1:
            axis.plot(each, [height] * len(each), "o", ms=5, mfc="white", mec=colour, mew=1.1, zorder=4)
        axis.plot([100 * mean], [height], "D", ms=6, color=colour, zorder=3)
        axis.annotate(
            name, (0, height), xycoords=("axes fraction", "data"), xytext=(0, 9), textcoords="offset points", fontsize=FONT,
            color=ink(colour), bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    if len(bases) == 1:
        axis.axvline(bases[0], color=BASELINE, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    # Intervals of two seeds are wider than anything else: beyond this they leave the picture.
    room = max(max(core) - min(core), 0.2)
    low = max(min([*core, *ends]), min(core) - 0.8 * room)
    high = min(max([*core, *ends]), max(core) + 0.8 * room)
    for name, score in teachers_of(cell for _, cell in shown):
        if low <= 100 * score <= high + 0.8 * room:
            axis.axvline(100 * score, color=TEACHER, linewidth=1.3, linestyle=(0, (1, 2)), zorder=1)
            axis.annotate(
                f"teacher {name}  {100 * score:.2f} ", (100 * score, 0), xycoords=("data", "axes fraction"), ha="right",
                va="bottom", fontsize=FONT, color=ink(TEACHER),
            )  # fmt: skip
            high = max(high, 100 * score)
    axis.set_xlim(low - 0.05 * room, high + 0.05 * room)
    axis.set_ylim(-0.6, len(shown) - 0.2)
    for height, (row, cell) in enumerate(shown):
        _, left, up, _ = interval(cell, protocol, table.dataset["test_n"])
        for end, edge, sign in ((left, low, -1), (up, high, 1)):
            if end is not None and sign * (100 * end - edge) > 1e-9:  # it goes on
                place = axis.get_xlim()[sign > 0]
                axis.plot(
                    [place], [height], marker="<" if sign < 0 else ">", ms=6, color=colours[row.label][0], clip_on=False
                )
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(f"test accuracy (%){', dashed: none' * (len(bases) == 1)}")
    _head(axis, "x", lines)
    return figure


def _lines(block: Block) -> Any:
    """Test score per epoch: means over seeds, lowest to highest as a band."""
    rows = []
    for row in block.rows:
        runs = {seed: run for seed, run in row.runs.items() if _has_curve(run)}
        if runs:
            rows.append(replace(row, runs=runs, disputed={}))
    if not rows:
        return None
    drawn = Block([run for row in rows for run in row.runs.values()], rows)
    folders = {id(run): Path(run["folder"]) for run in drawn.records}
    names = [f"{row.label}  00.00" for row in rows] + [f"{label}  00.00" for label, _, _ in teachers(drawn)]
    margin, tall = 0.4 + max(map(inches, names)), max(2.9, LINE * 1.2 * len(names))
    figure = _figure(SIDE + WIDE + margin, tall + ABOVE + BELOW)
    draw_curves(axis_at(figure, SIDE, BELOW, WIDE, tall), drawn, folders, styles(block))
    return figure


def _has_curve(run: dict) -> bool:
    try:
        return bool(run.get("folder") and read_curve(run["folder"]))
    except KdrunError:
        return False


def _times(table: Table, column: str, block: Block, cells: dict[str, Cell]) -> Any:
    """Accuracy against the mean training time of a run: a point per row."""
    colours = styles(block)
    times = [cell.seconds for cell in cells.values() if cell.seconds]
    if not times:
        return None
    unit, name = _unit(max(times))
    points = [
        (row.label, colours[row.label], [(cell.seconds / unit, cell)])
        for row, cell in zip(block.rows, cells.values(), strict=True)
        if cell.seconds
    ]
    figure, axis = _scatter(table, f"{_title(table, column, table.protocol)}, by training time", points)
    axis.set_xlabel(name)
    if max(times) > 8 * min(times):
        from matplotlib.ticker import FuncFormatter, NullFormatter

        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _sizes(table: Table) -> Any:
    """Accuracy against the students' parameters, all columns together: a line per row; None where all have one size."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from kdrun.report.render import count

    cells = {label: [c for c in line.values() if _scored(table, c)] for label, line in table.cells.items()}
    cells = {label: line for label, line in cells.items() if line}
    colours = styles(_block(table, {label: line[0] for label, line in cells.items()}))
    points, sizes = [], set()
    for label, line in cells.items():
        once = {id(cell.runs): cell for cell in line}.values()  # what has no teacher stands in several columns
        points.append((label, colours[label], sorted(((float(c.params), c) for c in once), key=lambda item: item[0])))
        sizes |= {cell.params for cell in once}
    if len(sizes) < 2:
        return None
    figure, axis = _scatter(table, f"{table.dataset['name']}, {_epoch(table.protocol)}, by size of the student", points)
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


def _scatter(table: Table, title: str, rows: list[tuple[str, tuple, list[tuple[float, Cell]]]]) -> tuple[Any, Any]:
    """(figure, axis) with the points of every row, their standard deviations, and the rows' names in the margin."""
    protocol = table.protocol
    several = any(cell.sd.get(protocol) is not None for _, _, points in rows for _, cell in points)
    lines = [title, "mean over seeds, bar: standard deviation" if several else "one seed"]
    margin, tall = 0.4 + max(inches(f"{label}  00.00") for label, _, _ in rows), max(2.9, LINE * 1.2 * len(rows))
    wide = max(WIDE, _room(lines) + 0.15 - margin)
    figure = _figure(SIDE + wide + margin, tall + ABOVE + BELOW)
    axis, ends = axis_at(figure, SIDE, BELOW, wide, tall), []
    for label, (colour, dashes), points in rows:
        for x, cell in points:
            y, sd = 100 * cell.mean[protocol], cell.sd.get(protocol)
            if sd is not None:
                axis.plot([x] * 2, [y - 100 * sd, y + 100 * sd], color=colour, linewidth=1.5, zorder=2)
            axis.plot([x], [y], "o", ms=6, color=colour, zorder=3)
        if len(points) > 1:
            way = [(x, 100 * cell.mean[protocol]) for x, cell in points]
            axis.plot(*zip(*way, strict=True), color=colour, linestyle=dashes, linewidth=1.2, zorder=2)
        x, cell = points[-1]
        y = 100 * cell.mean[protocol]
        ends.append((x, y, f"{label}  {y:.2f}", colour))
    axis.margins(x=0.08, y=0.08)
    axis.set_ylabel("test accuracy (%)")
    _head(axis, "both", lines)
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
    gap = LINE / (axis.figure.get_figheight() * axis.get_position().height)
    places = apart([(y - low) / (high - low) for _, y, _, _ in points], gap)
    for (x, y, label, colour), place in zip(points, places, strict=True):
        line = ConnectionPatch(
            (x, y), (1.035, place), "data", axis.transAxes, color=colour, lw=0.6, alpha=0.5, clip_on=False, zorder=1
        )
        axis.add_artist(line)
        axis.annotate(label, (1.045, place), xycoords="axes fraction", va="center", fontsize=FONT, color=ink(colour))
