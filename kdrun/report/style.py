"""The style of a row in all pictures: a colour, a line and a mark; and places for names that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kdrun.report.pivot import Table
from kdrun.report.rows import Row

# (on white, on a dark page). The first six are Okabe and Ito's for all kinds of colour vision, darker where white needs it.
HUES = (
    ("#0072b2", "#5aa9e6"), ("#d55e00", "#f28a4b"), ("#009e73", "#35c79b"), ("#c0609a", "#e79bc8"), ("#b87f00", "#efc04f"),
    ("#3d9bd1", "#a6dcff"), ("#7b4fb5", "#b58cf0"), ("#8c5a3c", "#cf9f7c"), ("#7a8b00", "#c3d14a"), ("#9e1b4f", "#f0628f"),
    ("#00838f", "#4dd0d9"),
)  # fmt: skip
# With more methods than hues, each hue repeats: deeper, then paler.
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


@dataclass(frozen=True)
class Style:
    """How a row is drawn in every picture of its table. `kind`: the number of its dashes and of its mark."""

    day: str  # its colour on white
    night: str  # its colour on a dark page
    kind: int = 0

    @property
    def dashes(self) -> Any:
        """The line style in matplotlib."""
        return DASHES[self.kind % len(DASHES)]

    @property
    def mark(self) -> str:
        """The marker in matplotlib."""
        return MARKS[self.kind % len(MARKS)]

    @property
    def css(self) -> str:
        """The value of a style attribute; the page turns --day and --night into the colour --c."""
        line, swatch = CSS_DASHES[self.kind % len(CSS_DASHES)]
        return f"--day:{self.day};--night:{self.night};--d:{line};--dash:{swatch}"

    @property
    def svg_mark(self) -> str:
        """The same mark as a path in SVG."""
        return SVG_MARKS[self.kind % len(SVG_MARKS)]


BASELINE, TEACHER = Style("#222222", "#f2f2f2"), Style("#7d7d7d", "#989898")


def styles_of(families: Mapping[str, str | None]) -> dict[str, Style]:
    """{row: style} of {row: its method, or None for the student alone}.

    Each method has a hue of its own; its variants are shades of this hue, from pale to deep. The student alone is almost black. With
    more than 33 methods the hues repeat, with other dashes and marks.
    """
    members: dict[str | None, list[str]] = {}
    for label, family in families.items():
        members.setdefault(family, []).append(label)
    alone = members.pop(None, [])
    styles = {label: Style(BASELINE.day, BASELINE.night, kind) for kind, label in enumerate(alone)}
    for number, variants in enumerate(members.values()):
        round_, tier = divmod(number // len(HUES), len(TIERS))
        for variant, label in enumerate(variants):
            by = 0.7 * variant / (len(variants) - 1) - 0.35 if len(variants) > 1 else 0.0
            pale = 0.1 * (len(variants) > 1)  # on a dark page the deepest must stay readable
            hue, deeper = HUES[number % len(HUES)], TIERS[tier] + by
            day, night = shade(hue[0], deeper), shade(hue[1], -deeper - pale)
            styles[label] = Style(day, night, tier + variant + round_)
    return {label: styles[label] for label in families}


def family(label: str, rows: Sequence[Row]) -> str | None:
    """The method that gives a row its hue; None for the student alone, and the label itself for a row of several methods."""
    methods = {"+".join(row.first["method"]) for row in rows}
    if all(row.baseline for row in rows):
        return None
    return methods.pop() if len(methods) == 1 else label


def table_styles(table: Table) -> dict[str, Style]:
    """The style of every row of a table, the same in all of its columns."""
    return styles_of(
        {label: family(label, [cell.row for cell in line.values()]) for label, line in table.cells.items()}
    )


def shade(colour: str, by: float) -> str:
    """A colour mixed with black (by > 0) or white, the other part 1 - |by|."""
    to, share = (0 if by > 0 else 255), min(abs(by), 0.85)
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + (to - part) * share):02x}" for part in parts)


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
