"""Strip charts and learning curves as SVG.

A row has one style in all pictures. Widths are shares of the page and names are text, so letters keep their size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from kdrun.report.display import PROTOCOLS
from kdrun.report.learning import CurveChart, CurveLine, curve_chart
from kdrun.report.page.lines import Line
from kdrun.report.page.rendering import render
from kdrun.report.pivot import Table
from kdrun.report.strips import Strip, StripChart, beyond, gain_chart, score_chart, stacked
from kdrun.report.style import TEACHER, apart

TALL = 320  # pixels: the least height of the curves
RING, ROOM = 7.0, 9.0  # pixels: the size of a ring; how far it may stand from the line of its row
LISTED = 6  # runs without a curve that are named
NONE = Markup("")

Place = Callable[[float], str]  # from a value to its place in the picture

# Strip charts ------------------------------------------------------------------------------------------------------------


def strips(table: Table, lines: list[Line]) -> Markup:
    """The scores with their intervals, and beside them the gains over the baseline."""
    cells, styles = {line.label: line.cell for line in lines}, {line.label: line.style for line in lines}
    chart, gains = score_chart(table, cells, styles), gain_chart(table, cells, styles)
    if chart is None:
        return NONE
    display = table.display
    figures = _strips(chart, f"{display.title}, {PROTOCOLS[table.protocol]}, best first.", _legend(chart))
    if gains is not None:
        rings = "ring: one seed against none of the same seed; filled mark: mean; bar: 95 % interval of the mean"
        legend = [rings if gains.has_rings else "one seed: no interval", *gains.arrows]
        legend += ["dashed line: no difference", "= : not significant"]
        figures += _strips(gains, f"{display.over_none.capitalize()}.", legend)
    return Markup('<h4>Scores and gains</h4><div class="pair">{}</div>').format(figures)


def _legend(chart: StripChart) -> list[str]:
    """The legend of the scores."""
    own, (low, high) = chart.strips, chart.window
    legend = ["ring: one seed", "filled mark: mean"] if chart.has_rings else ["filled mark: the only seed"]
    if any(strip.ends() and not strip.one_seed for strip in own):
        legend.append("bar: 95 % interval of the mean over seeds (very wide with two seeds)")
    if any(strip.one_seed for strip in own):
        legend.append(f"dotted bar: one seed, 95 % interval of the test {chart.display.samples} (does not cover seeds)")
    legend += chart.arrows
    legend += ["dashed line: none"] * (chart.base is not None)
    return legend + ["dotted line: teacher"] * any(strip.teacher and low <= strip.mean <= high for strip in own)


RULE = Markup('<line class="{0}" x1="{1}" x2="{1}" y1="0" y2="100%"/>')
BAR = Markup('<line class="{}" x1="{}" x2="{}" y1="50%" y2="50%"/>')
MARK = Markup('<svg x="{}" y="50%" overflow="visible"><path class="{}" d="{}"/></svg>')
SEED = Markup(
    '<circle class="seed" cx="{}" cy="50%" r="3.2" transform="translate(0 {:.1f})"><title>{}: {}</title></circle>'
)
ARROWS = ("M-7 0L2 -5V5Z", "M7 0L-2 -5V5Z")  # to the left, to the right


def _strips(chart: StripChart, title: str, legend: list[str]) -> Markup:
    """Rows of a name, a track and a number; on a phone the track lies below the two. No letter stands on a line of the grid."""
    low, high = chart.window

    def x(value: float) -> str:
        return f"{2 + 96 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    levels = ticks(low, high, 7)
    grid = [RULE.format("rule", x(level)) for level in levels]
    grid += [RULE.format("base", x(chart.base))] if chart.base is not None else []
    grid += [RULE.format("teach", x(s.mean)) for s in chart.strips if s.teacher and low <= s.mean <= high]
    return render(
        "strips.html",
        title=title,
        legend=legend,
        description=f"{chart.axis}: " + "; ".join(f"{strip.label} {strip.text}" for strip in chart.strips),
        rows=[(strip, _marks(strip, x, chart)) for strip in chart.strips],
        grid=NONE.join(grid),
        ticks=[(x(level), tick_text(level)) for level in levels],
        axis=chart.axis,
    )


def _marks(strip: Strip, x: Place, chart: StripChart) -> Markup:
    """A bar, a mark at the mean, a ring per seed, an arrow where the row continues beyond the axis."""
    (low, high), parts = chart.window, []
    if strip.low is not None and strip.high is not None:
        parts.append(BAR.format("bar images" if strip.one_seed else "bar", x(strip.low), x(strip.high)))
    if low <= strip.mean <= high:
        parts.append(MARK.format(x(strip.mean), "mean", strip.style.svg_mark))
    if len(strip.dots) > 1:
        scale = 300 / (high - low)  # pixels of a narrow track
        moved = stacked([value * scale for _, value in strip.dots], RING, ROOM)
        for (seed, value), up in sorted(zip(strip.dots, moved, strict=True), key=lambda item: abs(item[1])):
            parts.append(SEED.format(x(value), -up, seed, chart.display.number(value)))
    for is_cut, end, arrow in zip(beyond(strip, low, high), chart.window, ARROWS, strict=True):
        if is_cut:
            parts.append(MARK.format(x(end), "arrow", arrow))
    return NONE.join(parts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, about this many."""
    raw = (high - low) / max(about, 1)
    if not raw > 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A number without zeros at its end."""
    return f"{value:.10f}".rstrip("0").rstrip(".") or "0"


# Learning curves ---------------------------------------------------------------------------------------------------------

LEVEL = Markup('<line class="{0}" x1="0" x2="1000" y1="{1}" y2="{1}"/>')
BAND = Markup('<path class="band" data-series="{}" style="{}" d="M{}L{}Z"/>')
CURVE = Markup('<path class="line" data-series="{}" style="{}" d="M{}"><title>{}</title></path>')


@dataclass
class End:
    """The end of a line and the name beside it, which is moved where names would overlap; a teacher has no series."""

    place: float  # pixels from the top
    text: str
    colours: str  # as CSS
    series: str = ""
    moved: float = 0.0  # the place of the name

    @property
    def style(self) -> str:
        """The value of a style attribute: its place and its colours."""
        return f"--top:{self.moved:.1f}px;{self.colours}"


def learning_curves(table: Table, lines: list[Line]) -> Markup:
    """The test score per epoch: the mean over seeds as a line, lowest to highest seed as a band, names at their ends."""
    series = {line.label: line.series for line in lines}
    chart = curve_chart(table, {line.label: line.cell for line in lines}, {line.label: line.style for line in lines})
    if not chart.lines:
        return render("curves.html", drawn=False, missing=chart.missing, listed=LISTED) if chart.missing else NONE
    low, top = chart.window
    first, last = min(line.epochs[0] for line in chart.lines), max(line.epochs[-1] for line in chart.lines)
    tall = max(TALL, 18 * (len(chart.lines) + len(chart.teachers)))

    def x(epoch: float) -> str:
        return f"{1000 * (epoch - first) / max(last - first, 1):.1f}"

    def y(value: float) -> str:
        return f"{tall * (top - max(min(value, top + 9 * (top - low)), low - 9 * (top - low))) / (top - low):.1f}"

    ends, levels = _ends(chart, series, y, tall), ticks(low, top, 6)
    longest = max(len(end.text) for end in ends)
    return render(
        "curves.html",
        drawn=True,
        title=f"{chart.display.axis[:1].upper()}{chart.display.axis[1:]} per epoch.",
        legend=_seeds(chart),
        many_lines=len(chart.lines) > 6,
        names_below=longest > 40,  # long names stand below the picture, where they have its whole width
        height=tall,
        levels=[(y(level), tick_text(level)) for level in levels],
        description=f"{chart.display.name} per epoch; at the end: " + "; ".join(end.text for end in ends),
        paths=_paths(chart, series, x, y, levels),
        leaders=NONE.join(leader(end) for end in ends),
        room=f"{0.5 * longest:.1f}",
        ends=ends,
        axis="epoch",
        across=[
            (f"{float(x(t)) / 10:.2f}", tick_text(t))
            for t in [t for t in ticks(first, last, 8) if t == int(t)] or [first]
        ],
        missing=chart.missing,
        listed=LISTED,
    )


def _seeds(chart: CurveChart) -> str:
    counts = sorted({len(seeds) for line in chart.lines for seeds in line.values})
    if counts == [1]:
        return "One seed each."
    between = "-".join(map(str, sorted({counts[0], counts[-1]})))
    return f"Line: mean over {between} seeds; band: lowest to highest seed."


def _paths(chart: CurveChart, series: dict[str, str], x: Place, y: Place, levels: list[float]) -> Markup:
    """The grid, the teachers, the bands, and the lines on top."""
    parts = [LEVEL.format("rule", y(level)) for level in levels]
    parts += [LEVEL.format("teach", y(score)) for _, score in chart.teachers if not chart.place(score)]

    def points(line: CurveLine, values: list[float]) -> list[str]:
        return [f"{x(epoch)} {y(value)}" for epoch, value in zip(line.epochs, values, strict=True)]

    for line in chart.lines:
        if any(len(seeds) > 1 for seeds in line.values):
            up, down = "L".join(points(line, line.highest)), "L".join(reversed(points(line, line.lowest)))
            parts.append(BAND.format(series[line.label], line.style.css, up, down))
    for line in chart.lines:
        way = "L".join(points(line, line.means)) + "h.1" * (len(line.epochs) == 1)
        parts.append(CURVE.format(series[line.label], line.style.css, way, line.label))
    return NONE.join(parts)


def _ends(chart: CurveChart, series: dict[str, str], y: Place, tall: float) -> list[End]:
    """The names beside the ends of lines and teachers, highest first, moved apart."""
    ends = []
    for label, score in chart.teachers:
        where = ("", " (above)", " (below)")[chart.place(score)]
        ends.append(
            End(float(y(score)), f"{label}  {chart.display.number(score)}{where}", f"{TEACHER.css};--dash:dotted")
        )
    for line in chart.lines:
        ends.append(End(float(y(line.means[-1])), chart.end(line), line.style.css, series[line.label]))
    ends.sort(key=lambda end: end.place)
    for end in ends:
        end.place = min(max(end.place, 0.0), tall)
    for end, moved in zip(ends, apart([end.place for end in ends], 17.0, 0.0, tall), strict=True):
        end.moved = moved
    return ends


def leader(end: End) -> Markup:
    """A thin line from the end of a line to its name."""
    key = Markup(' data-series="{}"').format(end.series) if end.series else NONE
    path = Markup('<path class="leader"{} style="{}" d="M2 {:.1f}L20 {:.1f}"/>')
    return path.format(key, end.style, end.place, end.moved)
