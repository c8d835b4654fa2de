"""How kdrun's pictures look: colours, sizes in inches, and places for names that do not overlap."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from kdrun.report.groups import Block

# Okabe and Ito's colours for all kinds of colour vision, less yellow (pale on white); the baseline is near black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE, TEACHER = "#222222", "#888888"
DASHES = ("-", (0, (6, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
# Inches. The figure grows with its names and its rows: nothing shrinks to make room for them.
SIDE, ABOVE, BELOW, WIDE, BETWEEN = 0.65, 0.75, 0.6, 4.4, 0.35
LINE, STEP, FONT = 0.18, 0.46, 9.5


def axis_at(figure: Any, left: float, bottom: float, width: float, height: float) -> Any:
    """Axes at a place of the figure, in inches from its lower left corner."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def inches(label: str) -> float:
    """The width of a text as it will be drawn."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), label, size=FONT, prop=FontProperties()).get_extents().x1) / 72


def dress(axis: Any, grid: str, title: str, subtitle: str) -> None:
    """Title, a smaller line below it, and a pale grid."""
    axis.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_title(f"{title}\n", loc="left", fontweight="bold", fontsize=11.5)
    axis.text(0, 1.025, subtitle, transform=axis.transAxes, fontsize=9, color="#666666")


def ink(colour: str) -> tuple[float, ...]:
    """A line's colour, darker: letters are thinner than lines and need more contrast."""
    from matplotlib.colors import to_rgb

    return tuple(0.75 * part for part in to_rgb(colour))


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


def styles(block: Block) -> dict[str, tuple]:
    """{row: (colour, dashes)}: baselines near black; when the colours are used up, the dashes change."""
    style: dict[str, tuple] = {}
    used: Counter[bool] = Counter()
    for row in block.rows:
        number = used[row.baseline]
        used[row.baseline] += 1
        colour = BASELINE if row.baseline else COLOURS[number % len(COLOURS)]
        style[row.label] = colour, DASHES[(number if row.baseline else number // len(COLOURS)) % len(DASHES)]
    return style
