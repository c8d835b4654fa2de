"""Figures by matplotlib: sizes in inches, axes, titles, and names beside the data. Nothing here knows what is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kdrun.report.style import apart, shade

# Inches. The figure grows with its names and its rows: nothing shrinks to make room for them.
SIDE, ABOVE, BELOW, WIDE, BETWEEN = 0.8, 0.75, 0.6, 4.4, 0.45
LINE, STEP, FONT = 0.18, 0.34, 9.5
LISTED = 6  # runs without a curve


@contextmanager
def drawing() -> Iterator[None]:
    """The settings of all figures. Text of a record is never a formula: without parse_math "$" is a letter."""
    from matplotlib import rc_context

    with rc_context(
        {
            "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "kdrun", "text.parse_math": False,
        }
    ):  # fmt: skip
        yield


def figure_of(wide: float, tall: float) -> Any:
    """An empty figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, tall))
    FigureCanvasAgg(figure)
    return figure


def axis_at(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place of the figure, in inches from its lower left corner."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def axis_size(axis: Any) -> tuple[float, float]:
    """Width and height in inches."""
    wide, tall = axis.figure.get_size_inches()
    return wide * axis.get_position().width, tall * axis.get_position().height


def beside(axis: Any, place: float, label: str, colour: str) -> None:
    """A name to the right of the axis, 0.2 inches from it; `place`: its height as a share of the axis'."""
    options = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center", "fontsize": FONT}
    axis.annotate(label, (1, place), (72 * 0.2, 0), color=ink(colour), annotation_clip=False, **options)


def inches(label: str) -> float:
    """The width of a text as it will be drawn; letters that are moved to whole pixels need a little more than their shape."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), label, size=FONT, prop=FontProperties()).get_extents().x1) / 72 * 1.02


def head_room(lines: Sequence[str]) -> float:
    """The inches that a title and the smaller lines below it need."""
    return max(1.4 * inches(lines[0]), *(inches(line) for line in lines[1:]), 0.0)


def head(axis: Any, grid: str, lines: Sequence[str], left: float = 0.0) -> None:
    """A pale grid; a title and smaller lines below it, at one distance from an axis of any height, `left` inches beside it."""
    axis.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    for number, line in enumerate(reversed(lines)):
        title = number == len(lines) - 1
        axis.annotate(
            line,
            (0, 1),
            xycoords="axes fraction",
            xytext=(-72 * left, 12 + 14 * number + 3 * title),
            textcoords="offset points",
            fontsize=11.5 if title else 9,
            fontweight="bold" if title else "normal",
            color="black" if title else "#666666",
        )


def ink(colour: str) -> str:
    """A line's colour, darker: letters are thinner than lines and need more contrast."""
    return shade(colour, 0.25)


def label_lines(axis: Any, ends: list[tuple[float, str, str]]) -> None:
    """Names (height, text, colour) beside the right ends of lines; names that would overlap are moved apart."""
    low, high = axis.get_ylim()
    ends = sorted(ends)
    shares = [min(max((value - low) / (high - low), 0.0), 1.0) for value, _, _ in ends]
    wide, tall = axis_size(axis)
    for (_, label, colour), share, place in zip(ends, shares, apart(shares, LINE / tall, 0.0, 1.0), strict=True):
        way = 1 + 0.05 / wide, 1 + 0.16 / wide
        axis.plot(way, (share, place), transform=axis.transAxes, color=colour, lw=0.8, clip_on=False)
        beside(axis, place, label, colour)


def label_points(axis: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Names of points (x, y, text, colour) in the margin, sorted by height, with a thin line from each name to its point."""
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


def foot_lines(missing: Sequence[str], wide: float) -> list[str]:
    """What is missing in the picture, as lines of small print that fit into a width in inches."""
    lines = [part for line in missing[:LISTED] for part in textwrap.wrap(line, int(wide / 0.085))]
    return lines + [f"and {len(missing) - LISTED} more runs"] * (len(missing) > LISTED)


def draw_foot(figure: Any, lines: Sequence[str]) -> None:
    """Small print at the lower edge of a figure."""
    wide, tall = figure.get_size_inches()
    for number, line in enumerate(reversed(lines)):
        figure.text(0.1 / wide, (0.08 + 0.18 * number) / tall, line, fontsize=8.5, color="#8a4b00")
