"""A strip chart on paper: names in a column on the left, rows of rings and intervals, numbers on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdrun.report.paper import FONT, STEP, axis_at, inches, ink
from kdrun.report.strips import Strip, StripChart, beyond, stacked
from kdrun.report.style import BASELINE, TEACHER

RING = 0.065  # inches from ring to ring where two seeds coincide


def columns(strips: Sequence[Strip]) -> tuple[float, float]:
    """The inches that the names on the left and the numbers on the right need."""
    return max(inches(s.label) for s in strips) + 0.15, max(inches(s.text) for s in strips) + 0.15


def height(strips: Sequence[Strip]) -> float:
    """The inches that the rows need."""
    return STEP * (len(strips) + 0.4)


def forest(figure: Any, place: tuple[float, float, float], chart: StripChart) -> Any:
    """Axes with the rows, the first on top. `place`: left of the names, bottom, and width of the axis, in inches."""
    left, bottom, wide = place
    strips, (low, high) = chart.strips, chart.window
    (names, numbers), tall = columns(strips), height(strips)
    axis = axis_at(figure, left + names, bottom, wide, tall)
    axis.set_xlim(low, high)
    axis.set_ylim(len(strips) - 0.3, -0.7)
    for row, strip in enumerate(strips):
        axis.annotate(strip.label, (0, row), (-72 * names, 0), **_beside(strip), ha="left")
        axis.annotate(strip.text, (1, row), (72 * numbers, 0), **_beside(strip), ha="right")
        _row(axis, row, strip, chart.window, wide)
        if strip.teacher and low <= strip.mean <= high:
            axis.axvline(strip.mean, color=TEACHER.day, linewidth=1.3, linestyle=(0, (1, 2)), zorder=1)
    if chart.base is not None:
        axis.axvline(chart.base, color=BASELINE.day, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    return axis


def _beside(strip: Strip) -> dict[str, Any]:
    return {
        "xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "fontsize": FONT,
        "color": ink(strip.style.day), "annotation_clip": False,
    }  # fmt: skip


def _row(axis: Any, row: int, strip: Strip, window: tuple[float, float], wide: float) -> None:
    """A bar, a ring per seed, a mark at the mean; an arrow at an edge beyond which the row continues."""
    (low, high), colour = window, strip.style.day
    if strip.low is not None and strip.high is not None:
        ends = [min(max(end, low), high) for end in (strip.low, strip.high)]
        style = (0, (1, 1)) if strip.one_seed else "-"
        axis.plot(ends, [row] * 2, color=colour, lw=2, ls=style, solid_capstyle="butt", zorder=2)
    inside = [dot for _, dot in strip.dots]
    if len(inside) > 1:
        scale = wide / (high - low)
        moved = stacked([dot * scale for dot in inside], RING, 0.42 * STEP)
        places = [row - up / STEP for up in moved]
        axis.plot(inside, places, "o", ms=5, mfc="white", mec=colour, mew=1.1, zorder=4, clip_on=False)
    if low <= strip.mean <= high:
        axis.plot([strip.mean], [row], strip.style.mark, ms=6, color=colour, zorder=3, clip_on=False)
    for is_cut, end, mark in zip(beyond(strip, low, high), window, "<>", strict=True):
        if is_cut:
            axis.plot([end], [row], marker=mark, ms=6, color=colour, zorder=5, clip_on=False)
