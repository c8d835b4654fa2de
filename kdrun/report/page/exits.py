"""Early exit on the page: the score against the measured speed-up as SVG, and a table of the thresholds."""

from __future__ import annotations

from markupsafe import Markup

from kdrun.report.display import percent
from kdrun.report.exits import ExitChart, exit_chart
from kdrun.report.page.lines import Line
from kdrun.report.page.pictures import CURVE, LEVEL, NONE, TALL, End, leader, tick_text, ticks
from kdrun.report.page.rendering import render
from kdrun.report.page.tables import Head, SortableTable, Td
from kdrun.report.pivot import Table
from kdrun.report.style import TEACHER, apart

# Marks are strokes without length: the picture is stretched to the width of the page, and a circle would become an egg.
MARK = Markup(
    '<path class="line" data-series="{}" style="{};stroke-dasharray:none;stroke-width:{}" d="M{} {}h.01"><title>{}</title></path>'
)


def early_exit(table: Table, lines: list[Line], ident: str) -> Markup:
    """The picture and the table; empty where no run has a curve."""
    chart = exit_chart(table, {line.label: line.cell for line in lines}, {line.label: line.style for line in lines})
    if chart is None:
        return NONE
    series = {line.label: line.series for line in lines}
    fastest = max(point.speedup for line in chart.lines for point in line.points)
    slowest = min([1.0, *(point.speedup for line in chart.lines for point in line.points)])
    shown = [point.score for line in chart.lines for point in line.points] + [score for _, score in chart.teachers]
    room = 0.06 * max(max(shown) - min(shown), 1e-9)
    low, top = min(shown) - room, max(shown) + room
    tall = max(TALL, 18 * (len(chart.lines) + len(chart.teachers)))

    def x(speedup: float) -> str:
        return f"{20 + 960 * (speedup - slowest) / max(fastest - slowest, 1e-9):.1f}"

    def y(score: float) -> str:
        return f"{tall * (top - score) / (top - low):.1f}"

    levels = ticks(low, top, 6)
    parts = [LEVEL.format("rule", y(level)) for level in levels]
    parts += [LEVEL.format("teach", y(score)) for _, score in chart.teachers]
    for line in chart.lines:
        css, key = line.style.css, series[line.label]
        way = "L".join(f"{x(point.speedup)} {y(point.score)}" for point in line.points)
        parts.append(CURVE.format(key, css, way + "h.1" * (len(line.points) == 1), line.label))
        for number, point in enumerate(line.points):
            text = f"{line.label}, threshold {point.threshold:g}: {chart.display.number(point.score)}, {point.speedup:.2f} x"
            parts.append(MARK.format(key, css, 12 if number == line.own else 7, x(point.speedup), y(point.score), text))
    ends = _ends(chart, series, {line.label: float(y(line.points[-1].score)) for line in chart.lines}, y, tall)
    longest = max(len(end.text) for end in ends)
    return render(
        "exits.html",
        title=chart.title,
        words=chart.words,
        names_below=longest > 40,
        height=tall,
        levels=[(y(level), tick_text(level)) for level in levels],
        description=f"{chart.title} At the highest threshold: " + "; ".join(end.text for end in ends),
        paths=NONE.join(parts),
        leaders=NONE.join(leader(end) for end in ends),
        room=f"{0.5 * longest:.1f}",
        ends=ends,
        many_lines=False,
        axis="speed-up over the teacher",
        across=[(f"{float(x(value)) / 10:.2f}", tick_text(value)) for value in ticks(slowest, fastest, 8)],
        table=_table(chart, ident).html(),
    )


def _ends(chart: ExitChart, series: dict[str, str], places: dict[str, float], y: object, tall: float) -> list[End]:
    """The names beside the picture, highest first, moved apart."""
    ends = [
        End(places[line.label], line.end(chart.display), line.style.css, series[line.label]) for line in chart.lines
    ]
    for label, score in chart.teachers:
        place = float(y(score))  # type: ignore[operator]
        ends.append(End(place, f"{label}  {chart.display.number(score)}", f"{TEACHER.css};--dash:dotted"))
    ends.sort(key=lambda end: end.place)
    for end, moved in zip(ends, apart([end.place for end in ends], 17.0, 0.0, tall), strict=True):
        end.moved = moved
    return ends


def _table(chart: ExitChart, ident: str) -> SortableTable:
    """A row for each threshold of each line."""
    head = [
        Head("row", "", False),
        Head("threshold", "0: the whole model"),
        Head(chart.display.name, chart.display.metric.unit),
        Head("speed-up", "over the teacher"),
        Head("alone", f"one of the {chart.display.samples} at a time"),
        Head("over itself", "without exits"),
        Head("work", "% of the teacher's"),
        Head("layers", "mean of a sample"),
        Head("leave after layer", "1, 2, ... (%)", False),
    ]
    rows = []
    for line in chart.lines:
        for number, point in enumerate(line.points):
            own = "baseline" if number == line.own else ""
            shares = " ".join(f"{100 * share:.0f}" for share in point.layers)
            cells = [
                Td(line.label, line.label),
                Td(f"{point.threshold:g}", point.threshold),
                Td(chart.display.number(point.score), point.score),
                Td(f"{point.speedup:.2f}", point.speedup),
                Td(f"{point.alone:.2f}", point.alone),
                Td(f"{point.over_full:.2f}", point.over_full),
                Td(percent(point.work), point.work),
                Td(f"{point.depth:.2f}", point.depth),
                Td(shares, shares, kind="nowrap"),
            ]
            rows.append((own, cells))
    return SortableTable(ident, "early exit", head, rows, "cards")
