"""How kdrun's pictures look: a colour and a mark for every row, sizes in inches, places for names that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kdrun.report.groups import Row

# (on white, on a dark page). The first six are Okabe and Ito's for all kinds of colour vision, darker where white needs it.
HUES = (
    ("#0072b2", "#5aa9e6"), ("#d55e00", "#f28a4b"), ("#009e73", "#35c79b"), ("#c0609a", "#e79bc8"), ("#b87f00", "#efc04f"),
    ("#3d9bd1", "#a6dcff"), ("#7b4fb5", "#b58cf0"), ("#8c5a3c", "#cf9f7c"), ("#7a8b00", "#c3d14a"), ("#9e1b4f", "#f0628f"),
    ("#00838f", "#4dd0d9"),
)  # fmt: skip
# With more methods than hues, each hue comes again: deeper, then paler.
TIERS = (0.0, 0.42, -0.3)
DASHES = ("-", (0, (6, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
CSS_DASHES = (
    ("none", "solid"),
    ("7 3", "dashed"),
    ("2 3", "dotted"),
    ("8 3 2 3", "double"),
)  # of a line, of its swatch
MARKS = ("D", "s", "^", "v", "P")  # none is round: a ring is a seed
SVG_MARKS = (
    "M0-5L5 0 0 5-5 0Z",
    "M-4-4H4V4H-4Z",
    "M0-5L5 4H-5Z",
    "M0 5L5-4H-5Z",
    "M-1.7-5h3.4v3.3H5v3.4H1.7V5h-3.4V1.7H-5v-3.4h3.3Z",
)
# Inches. The figure grows with its names and its rows: nothing shrinks to make room for them.
SIDE, ABOVE, BELOW, WIDE, BETWEEN = 0.8, 0.75, 0.6, 4.4, 0.45
LINE, STEP, FONT = 0.18, 0.34, 9.5


@dataclass(frozen=True)
class Look:
    """How a row is drawn in every picture of its table. `kind` counts dashes and marks."""

    day: str  # its colour on white
    night: str
    kind: int = 0

    @property
    def dashes(self) -> Any:
        return DASHES[self.kind % len(DASHES)]

    @property
    def mark(self) -> str:
        return MARKS[self.kind % len(MARKS)]

    @property
    def css(self) -> str:
        """For a style attribute; the page turns --day and --night into the colour --c."""
        line, swatch = CSS_DASHES[self.kind % len(CSS_DASHES)]
        return f"--day:{self.day};--night:{self.night};--d:{line};--dash:{swatch}"

    @property
    def svg_mark(self) -> str:
        return SVG_MARKS[self.kind % len(SVG_MARKS)]


BASELINE, TEACHER = Look("#222222", "#f2f2f2"), Look("#7d7d7d", "#989898")


def looks(families: Mapping[str, str | None]) -> dict[str, Look]:
    """{row: look} of {row: its method, None for the student alone}.

    A method has one hue, which no other method has; its variants are shades of it, from pale to deep. The student alone is
    near black. With more than 33 methods the hues come again, with other dashes and marks.
    """
    members: dict[str | None, list[str]] = {}
    for label, family in families.items():
        members.setdefault(family, []).append(label)
    alone = members.pop(None, [])
    found = {label: Look(BASELINE.day, BASELINE.night, kind) for kind, label in enumerate(alone)}
    for number, variants in enumerate(members.values()):
        again, tier = divmod(number // len(HUES), len(TIERS))
        for variant, label in enumerate(variants):
            by = 0.7 * variant / (len(variants) - 1) - 0.35 if len(variants) > 1 else 0.0
            pale = 0.1 * (len(variants) > 1)  # on a dark page the deepest must stay readable
            hue, deeper = HUES[number % len(HUES)], TIERS[tier] + by
            day, night = shade(hue[0], deeper), shade(hue[1], -deeper - pale)
            found[label] = Look(day, night, tier + variant + again)
    return {label: found[label] for label in families}


def family(label: str, rows: Sequence[Row]) -> str | None:
    """What a row of a table shares its hue with: its method; None for the student alone. A row of several methods stands for itself."""
    methods = {"+".join(row.first["method"]) for row in rows}
    if all(row.baseline for row in rows):
        return None
    return methods.pop() if len(methods) == 1 else label


def shade(colour: str, by: float) -> str:
    """A colour mixed with black (by > 0) or white, the other part 1 - |by|."""
    to, share = (0 if by > 0 else 255), min(abs(by), 0.85)
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (to - part) * share):02x}" for part in parts)


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


def apart(places: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """The nearest places (least squares) at least `gap` apart, in order and within bounds: isotonic regression of place - i gap."""
    pools: list[list[float]] = []
    for i, place in enumerate(places):
        pools.append([place - i * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    moved = [fmean(pool) for pool in pools for _ in pool]
    most = high - gap * max(len(places) - 1, 0)
    return [max(min(place, most), low) + i * gap for i, place in enumerate(moved)]
