"""Early exit: the score of a model against its measured speed-up over the teacher, one point for each threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kdrun.report.cells import Cell
from kdrun.report.display import Display
from kdrun.report.facts import details_of
from kdrun.report.paper import ABOVE, BELOW, LINE, SIDE, WIDE, axis_at, figure_of, head, head_room, inches, label_points
from kdrun.report.pivot import Table, teachers_of
from kdrun.report.style import TEACHER, Style

KEY = "early_exit"  # in the details of a record
LISTS = ("scores", "speedups", "alone", "over_full", "flops_share", "layers")  # a value for each threshold


@dataclass
class Point:
    """The means over seeds at one threshold; `score` as a reader sees it."""

    threshold: float
    score: float
    speedup: float  # seconds of the teacher over those of the model
    alone: float  # the same for one sample at a time
    over_full: float  # seconds of the model without exits over its own
    work: float  # floating-point operations, as a share of the teacher's
    layers: list[float]  # the share of samples that leave after each layer

    @property
    def depth(self) -> float:
        """How many layers a sample meets, on average."""
        return sum(number * share for number, share in enumerate(self.layers, 1))


@dataclass
class ExitLine:
    """A row: its points by rising threshold; `own`: the number of the point whose threshold its runs were scored with."""

    label: str
    style: Style
    points: list[Point]
    own: int | None
    seeds: int

    def end(self, display: Display) -> str:
        """The name at the end of its line."""
        return f"{self.label}  {display.number(self.points[-1].score)}"


@dataclass
class ExitChart:
    """The lines of a column; `batches`: the sizes of the batches that times were measured with."""

    lines: list[ExitLine]
    teachers: list[tuple[str, float]]  # (label, score)
    batches: list[int]
    display: Display

    @property
    def title(self) -> str:
        """What stands up and what across."""
        return f"{self.display.title} against speed-up over the teacher."

    @property
    def words(self) -> str:
        """How it was measured."""
        sizes = " or ".join(map(str, self.batches))
        seeds = ["mean over seeds"] * any(line.seeds > 1 for line in self.lines)
        marks = ["a mark per threshold, the large one is that of the table"]
        return "; ".join([*seeds, *marks, f"batches of {sizes}, one thread"])


def exit_chart(table: Table, cells: Mapping[str, Cell], styles: Mapping[str, Style]) -> ExitChart | None:
    """The curves of the cells of a column; None where no run has one."""
    lines, batches = [], set()
    for label, cell in cells.items():
        known = [one for run in cell.row.runs.values() if (one := details_of(run, KEY)) and _is_whole(one)]
        points = _points(known, table.display)
        if points:
            thresholds = {one["threshold"] for one in known}
            own = [i for i, point in enumerate(points) if thresholds == {point.threshold}]
            lines.append(ExitLine(label, styles[label], points, own[0] if own else None, len(known)))
            batches |= {int(one["batch_size"]) for one in known}
    if not lines:
        return None
    teachers = [
        (f"teacher {one.name}", table.display.shown(one.score))
        for one in teachers_of([cells[line.label] for line in lines])
    ]
    return ExitChart(lines, teachers, sorted(batches), table.display)


def _is_whole(details: Mapping[str, Any]) -> bool:
    """Whether a record has all that a curve needs: another version may have written less."""
    count = len(details.get("thresholds") or ())
    return count > 0 and all(len(details.get(key) or ()) == count for key in LISTS) and "batch_size" in details


def _points(known: Sequence[Mapping[str, Any]], display: Display) -> list[Point]:
    """Means at the thresholds that every seed has."""
    shared = sorted(set.intersection(*(set(one["thresholds"]) for one in known))) if known else []
    points = []
    for threshold in shared:
        at = [{key: one[key][one["thresholds"].index(threshold)] for key in LISTS} for one in known]
        score, speedup, alone, over_full, work = (fmean(one[key] for one in at) for key in LISTS[:5])
        layers = [fmean(shares) for shares in zip(*(one["layers"] for one in at), strict=True)]
        points.append(Point(threshold, display.shown(score), speedup, alone, over_full, work, layers))
    return points


def exit_figure(chart: ExitChart, title: str) -> Any:
    """The picture on paper: a line per row, its thresholds as marks, teachers dashed."""
    lines = [title, chart.words]
    ends = [line.end(chart.display) for line in chart.lines]
    names = ends + [f"{label}  {chart.display.number(score)}" for label, score in chart.teachers]
    margin, tall = 0.4 + max(map(inches, names)), max(2.9, LINE * 1.2 * len(names))
    wide = max(WIDE, head_room(lines) + 0.15 - margin)
    figure = figure_of(SIDE + wide + margin, tall + ABOVE + BELOW)
    axis, points = axis_at(figure, SIDE, BELOW, wide, tall), []
    for line, end in zip(chart.lines, ends, strict=True):
        way = [(point.speedup, point.score) for point in line.points]
        style = {"color": line.style.day, "linestyle": line.style.dashes, "linewidth": 1.6}
        axis.plot(*zip(*way, strict=True), marker=line.style.mark, ms=4.5, zorder=3, **style)
        if line.own is not None:
            axis.plot(*way[line.own], line.style.mark, ms=9, color=line.style.day, zorder=4)
        points.append((*way[-1], end, line.style.day))
    for label, score in chart.teachers:
        axis.axhline(score, color=TEACHER.day, linestyle=(0, (4, 3)), linewidth=1.3, zorder=2)
        points.append((1.0, score, f"{label}  {chart.display.number(score)}", TEACHER.day))
    axis.margins(x=0.06, y=0.08)
    axis.set_xlabel("speed-up over the teacher (measured)")
    axis.set_ylabel(chart.display.axis)
    head(axis, "both", lines)
    label_points(axis, points)
    return figure
