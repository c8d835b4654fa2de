"""The data of strip charts, for paper and for the page: a row per method with a ring per seed, their mean and its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdrun.report.cells import Cell, interval
from kdrun.report.display import Display
from kdrun.report.facts import score_of
from kdrun.report.pivot import Table, teachers_of
from kdrun.report.style import TEACHER, Style
from kdrun.report.text import spread


@dataclass
class Strip:
    """A row, in the numbers that a reader sees. `one_seed`: its interval is that of the test set, not of seeds."""

    label: str
    text: str
    style: Style
    mean: float
    dots: list[tuple[str, float]] = field(default_factory=list)  # (name of the seed, value)
    low: float | None = None
    high: float | None = None
    one_seed: bool = False
    baseline: bool = False

    @property
    def teacher(self) -> bool:
        """Whether this row is a teacher."""
        return self.style is TEACHER

    def ends(self) -> list[float]:
        """The ends of its interval; none where there is no interval."""
        return [end for end in (self.low, self.high) if end is not None]


@dataclass
class StripChart:
    """Strips, best first, with the window of their axis and a line at the baseline where there is one."""

    strips: list[Strip]
    base: float | None
    window: tuple[float, float]
    axis: str  # the name of the axis
    display: Display

    @property
    def has_rings(self) -> bool:
        """Whether any row has several seeds."""
        return any(len(strip.dots) > 1 for strip in self.strips)

    @property
    def arrows(self) -> list[str]:
        """The sentence about arrows, where there is one."""
        is_cut = any(any(beyond(strip, *self.window)) for strip in self.strips)
        return ["arrow: continues beyond the axis"] * is_cut


def score_chart(table: Table, cells: Mapping[str, Cell], styles: Mapping[str, Style]) -> StripChart | None:
    """The scores of these cells and of their teachers; None where no cell has a score."""
    display = table.display
    strips = [
        Strip(f"teacher {teacher.name}", display.text(teacher.score), TEACHER, display.shown(teacher.score))
        for teacher in teachers_of(cells.values())
    ]
    scored = {label: cell for label, cell in cells.items() if table.protocol in cell.mean}
    strips += [_score_strip(label, cell, table, styles[label]) for label, cell in scored.items()]
    if not scored:
        return None
    strips.sort(key=lambda strip: -display.goodness(strip.mean))
    base = baseline_score(table, cells)
    return StripChart(strips, base, window(strips, base, *display.range), display.axis, display)


def _score_strip(label: str, cell: Cell, table: Table, style: Style) -> Strip:
    display, protocol = table.display, table.protocol
    mean, low, high, kind = interval(cell, protocol, table.dataset["test_n"])
    runs = sorted(cell.row.runs.items())
    dots = [(f"seed {seed}", display.shown(x)) for seed, run in runs if (x := score_of(run, protocol)) is not None]
    ends = _shown(display, low), _shown(display, high)
    text = spread(cell, protocol)
    return Strip(
        label, text, style, display.shown(mean), dots, *ends, one_seed=kind == "samples", baseline=cell.baseline
    )


def gain_chart(table: Table, cells: Mapping[str, Cell], styles: Mapping[str, Style]) -> StripChart | None:
    """The gains of these cells over their baselines; None where no cell has one."""
    display, strips = table.display, []
    for label, cell in cells.items():
        if cell.gain is not None:
            dots = [(f"seed {seed} against none", display.shown(gain)) for seed, gain in cell.gains.items()]
            text = display.gain(cell.gain, cell.low, cell.high) + " =" * bool(cell.equal)
            ends = _shown(display, cell.low), _shown(display, cell.high)
            strips.append(Strip(label, text, styles[label], display.shown(cell.gain), dots, *ends))
    if not strips:
        return None
    strips.sort(key=lambda strip: -display.goodness(strip.mean))
    base, (low, high) = baseline_score(table, cells), display.range
    least, most = (low - high, high - low) if base is None else (low - base, high - base)
    unit = f" ({display.points})" if display.points else ""
    return StripChart(strips, 0.0, window(strips, 0.0, least, most), display.over_none + unit, display)


def baseline_score(table: Table, cells: Mapping[str, Cell]) -> float | None:
    """The score of the only baseline, as shown; None where there is none or several."""
    means = [cell.mean[table.protocol] for cell in cells.values() if cell.baseline and table.protocol in cell.mean]
    return table.display.shown(means[0]) if len(means) == 1 else None


def _shown(display: Display, value: float | None) -> float | None:
    return None if value is None else display.shown(value)


def window(strips: Sequence[Strip], base: float | None, least: float, most: float) -> tuple[float, float]:
    """The ends of the axis, which shows all means and seeds, and of the intervals as much as leaves the seeds readable.

    The interval of two seeds is a dozen times wider than the distance of the seeds, and a teacher may be far above: these may continue
    beyond the axis. No axis goes below `least` or above `most`.
    """
    own = [strip for strip in strips if not strip.teacher] or strips
    core = [value for strip in own for value in (strip.mean, *(dot for _, dot in strip.dots))]
    core += [] if base is None else [base]
    ends = [end for strip in own for end in strip.ends()]
    least_room = 0.2 if math.isfinite(most - least) else max(map(abs, core)) / 500 or 1.0
    room = max(max(core) - min(core), least_room)
    low = max(min(core + ends), min(core) - 0.8 * room) - 0.06 * room
    high = min(max(core + ends), max(core) + 0.8 * room) + 0.06 * room
    for strip in strips:
        if strip.teacher and low - 0.5 * room <= strip.mean <= high + 0.5 * room:
            low, high = min(low, strip.mean - 0.06 * room), max(high, strip.mean + 0.06 * room)
    return max(low, min(least, *core)), min(high, max(most, *core))


def beyond(strip: Strip, low: float, high: float) -> tuple[bool, bool]:
    """Whether a row continues to the left and to the right of the window."""
    values = [strip.mean, *strip.ends()]
    return min(values) < low - 1e-9, max(values) > high + 1e-9


def stacked(places: Sequence[float], size: float, room: float) -> list[float]:
    """How far each ring of a row stands above or below the line of the row, within ±room, so that no ring hides another.

    Places and size in one unit. A ring keeps the place of its value; rings that are too near to each other are stacked.
    """
    levels: dict[int, int] = {}
    for i in sorted(range(len(places)), key=lambda i: (places[i], i)):
        taken = {levels[j] for j in levels if abs(places[i] - places[j]) < size}
        levels[i] = next(level for k in range(len(places)) for level in (k, -k) if level not in taken)
    step = min(size, room / max([1, *map(abs, levels.values())]))
    return [step * levels[i] for i in range(len(places))]
