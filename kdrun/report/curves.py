"""Learning curves on paper, and the picture of a sweep: learning curves on the left, gains over none on the right."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.cells import Cell
from kdrun.report.display import PROTOCOLS
from kdrun.report.forest import columns, forest, height
from kdrun.report.learning import CurveChart, curve_chart
from kdrun.report.paper import (
    ABOVE,
    BELOW,
    BETWEEN,
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
    label_lines,
)
from kdrun.report.pivot import Table, tables_by_student
from kdrun.report.strips import gain_chart
from kdrun.report.style import TEACHER, table_styles
from kdrun.runs.labels import label_of


def curves(runs: list[tuple[dict, Path]], path: str | Path) -> Path:
    """Draw the test score per epoch of every row of `runs` = [(record, folder)] into one PNG, and return its path.

    For each dataset and student, on the left: the mean over seeds, lowest to highest seed as a band, the teacher dashed; on the right:
    the gain of each row over `none`. A run whose curves.jsonl cannot be read is left out of the lines; the picture and stderr say
    which. KdrunError if no run is done.
    """
    tables = tables_by_student([{**record, "folder": str(folder)} for record, folder in runs])
    tables = [table for table in tables if table.runs]
    if not tables:
        raise KdrunError("no curves to draw: no run is done")
    with drawing():
        panels = [_Panel(table) for table in tables]
        missing = [line for panel in panels for line in panel.chart.missing]
        for line in missing:
            print(f"note     {line}", file=sys.stderr)
        margin = max(panel.margin for panel in panels)
        wide = SIDE + WIDE + margin + max(panel.right for panel in panels) + 0.15
        foot = foot_lines(missing, wide)
        figure = figure_of(wide, sum(panel.tall + ABOVE + BELOW for panel in panels) + 0.18 * len(foot))
        top = figure.get_figheight()
        for panel in panels:
            bottom = top - ABOVE - panel.tall
            draw_curves(axis_at(figure, SIDE, bottom, WIDE, panel.tall), panel.chart, panel.title)
            panel.draw_gains(figure, SIDE + WIDE + margin, bottom)
            top = bottom - BELOW
        draw_foot(figure, foot)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white")
    return path


class _Panel:
    """The two pictures of a table, and the inches that they need."""

    def __init__(self, table: Table):
        (column,) = table.columns
        cells, styles = table.column(column), table_styles(table)
        self.over_none, self.title = gain_title(table), curve_title(cells)
        self.chart, self.gains = curve_chart(table, cells, styles), gain_chart(table, cells, styles)
        names = [*cells, *(label for label, _ in self.chart.teachers)]
        room = max(0.3 + inches(f"{name}  00.00") for name in names)
        self.margin = (BETWEEN if self.gains else 0.0) + max(room, head_room(self.title) - WIDE)
        self.tall, self.right = max(2.9, LINE * 1.2 * len(names)), 0.0
        if self.gains:
            self.tall = max(self.tall, height(self.gains.strips))
            self.right = max(sum(columns(self.gains.strips)) + 2.6, head_room(self._gain_title()))

    def _gain_title(self) -> list[str]:
        rings = self.gains is not None and self.gains.has_rings
        return [
            self.over_none,
            "ring: one seed; bar: 95 % interval; =: not significant" if rings else "one seed: no interval",
        ]

    def draw_gains(self, figure: Any, left: float, bottom: float) -> None:
        """The right picture; none where no row has a gain."""
        if self.gains is None:
            return
        names, numbers = columns(self.gains.strips)
        tall = height(self.gains.strips)
        axis = forest(figure, (left, bottom + self.tall - tall, max(self.right - names - numbers, 2.6)), self.gains)
        axis.set_xlabel(self.gains.axis)
        head(axis, "x", self._gain_title(), names)


def draw_curves(axis: Any, chart: CurveChart, title: list[str]) -> None:
    """A line per row, its band, the teachers, and all their names beside the right end."""
    from matplotlib.ticker import MaxNLocator

    axis.set_ylim(*chart.window)
    ends = []
    for label, value in chart.teachers:
        where = ("", " ↑", " ↓")[chart.place(value)]
        ends.append((value, f"{label}  {chart.display.number(value)}{where}", TEACHER.day))
        if not where:
            axis.axhline(value, color=TEACHER.day, linestyle=(0, (4, 3)), linewidth=1.3, zorder=2)
    for line in chart.lines:
        epochs, means, style = line.epochs, line.means, line.style
        axis.plot(epochs, means, color=style.day, ls=style.dashes, lw=1.8 if len(epochs) < 100 else 1.1, zorder=3)
        axis.plot(epochs[-1:], means[-1:], style.mark, color=style.day, ms=4.5, zorder=4, clip_on=False)
        if line.has_band:
            alpha = 0.15 if len(chart.lines) < 7 else 0.06
            axis.fill_between(epochs, line.lowest, line.highest, color=style.day, alpha=alpha, lw=0)
        ends.append((means[-1], chart.end(line), style.day))
    axis.margins(x=0.02)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")
    axis.set_ylabel(chart.display.axis)
    head(axis, "y", title)
    label_lines(axis, ends)


def gain_title(table: Table) -> str:
    """Gain over none, last epoch."""
    return f"{table.display.over_none.capitalize()}, {PROTOCOLS[table.protocol].partition(' (')[0]}"


def curve_title(cells: Mapping[str, Cell]) -> list[str]:
    """The title of learning curves, and how several seeds are drawn."""
    first, seeds = next(iter(cells.values())).row.first, sorted({cell.n for cell in cells.values() if cell.n})
    count = "-".join(map(str, dict.fromkeys([seeds[0], seeds[-1]]))) if seeds else "0"
    title = f"{label_of(first, 'dataset')}, student {label_of(first, 'student')}, {count} seed{'s' * (count != '1')}"
    return [title, "one run per method" if count == "1" else "mean over seeds, band from lowest to highest seed"]
