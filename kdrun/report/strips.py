"""What a strip plot shows, on paper and on the page: a row per method with a ring per seed, their mean and its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kdrun.report.groups import difference, score
from kdrun.report.look import TEACHER, Look, family, looks
from kdrun.report.pivot import Cell, Table, interval, teachers_of
from kdrun.report.render import percent, spread
from kdrun.report.table import gain_text
from kdrun.runs.identity import label_of


def titled(table: Table) -> str:
    """What the dataset of a table is called."""
    return label_of((table.runs + table.unfinished)[0], "dataset")


def table_looks(table: Table) -> dict[str, Look]:
    """The look of every row of a table, the same in all of its columns."""
    return looks({label: family(label, [cell.runs for cell in line.values()]) for label, line in table.cells.items()})


@dataclass
class Strip:
    """A row, in percent or points. `images`: its interval is that of the test images, not of seeds."""

    label: str
    text: str
    look: Look
    mean: float
    dots: list[tuple[str, float]] = field(default_factory=list)  # (seed, value)
    low: float | None = None
    high: float | None = None
    images: bool = False
    baseline: bool = False

    @property
    def teacher(self) -> bool:
        return self.look is TEACHER

    def ends(self) -> list[float]:
        return [end for end in (self.low, self.high) if end is not None]


def scores(table: Table, cells: Mapping[str, Cell], styles: Mapping[str, Look]) -> list[Strip]:
    """The accuracy of every cell, highest first, and of the teachers."""
    found = [
        Strip(f"teacher {name}", percent(value), TEACHER, 100 * value) for name, value in teachers_of(cells.values())
    ]
    for label, cell in cells.items():
        if table.protocol in cell.mean:
            mean, low, high, kind = interval(cell, table.protocol, table.dataset["test_n"])
            runs = sorted(cell.runs.runs.items())
            dots = [(f"seed {seed}", 100 * x) for seed, run in runs if (x := score(run, table.protocol)) is not None]
            text = spread(cell, table.protocol)
            strip = Strip(label, text, styles[label], 100 * mean, dots, _hundred(low), _hundred(high), kind == "images")
            strip.baseline = cell.baseline
            found.append(strip)
    return sorted(found, key=lambda strip: -strip.mean)


def gains(table: Table, cells: Mapping[str, Cell], styles: Mapping[str, Look]) -> list[Strip]:
    """The difference of every cell to its baseline, highest first."""
    found = []
    for label, cell in cells.items():
        if cell.gain is not None and cell.base is not None:
            strip = gain(label, difference(cell.runs, cell.base, table.protocol), styles[label])
            strip.text += " =" if cell.equal else ""
            found.append(strip)
    return sorted(found, key=lambda strip: -strip.mean)


def gain(label: str, found: tuple[int, float, float | None, float | None, list[float]], look: Look) -> Strip:
    """A row of what `difference` returns."""
    _, mean, low, high, each = found
    dots = [("against the same seed", 100 * x) for x in each]
    return Strip(label, gain_text(mean, low, high), look, 100 * mean, dots, _hundred(low), _hundred(high))


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def window(strips: Sequence[Strip], base: float | None, least: float, most: float) -> tuple[float, float]:
    """What the axis shows, from low to high: all means and seeds; of intervals what leaves them readable and lies in what can be.

    An interval of two seeds is a dozen times wider than what it is of; a teacher may stand far above. Those go on beyond.
    """
    own = [strip for strip in strips if not strip.teacher] or strips
    core = [value for strip in own for value in (strip.mean, *(dot for _, dot in strip.dots))]
    core += [] if base is None else [base]
    ends, room = [end for strip in own for end in strip.ends()], max(max(core) - min(core), 0.2)
    low = max(min(core + ends), min(core) - 0.8 * room) - 0.06 * room
    high = min(max(core + ends), max(core) + 0.8 * room) + 0.06 * room
    for strip in strips:
        if strip.teacher and low - 0.5 * room <= strip.mean <= high + 0.5 * room:
            low, high = min(low, strip.mean - 0.06 * room), max(high, strip.mean + 0.06 * room)
    return max(low, min(least, *core)), min(high, max(most, *core))


def beyond(strip: Strip, low: float, high: float) -> tuple[bool, bool]:
    """Whether a row goes on to the left and to the right of the window."""
    values = [strip.mean, *strip.ends()]
    return min(values) < low - 1e-9, max(values) > high + 1e-9


def stacked(places: Sequence[float], size: float, room: float) -> list[float]:
    """How far up or down each ring of a row stands, so that none hides another: its distance to the row's line, within ±room.

    Places and size in one unit. Rings stay where their value is; those too near to each other are stacked around the line.
    """
    levels: dict[int, int] = {}
    for i in sorted(range(len(places)), key=lambda i: (places[i], i)):
        taken = {levels[j] for j in levels if abs(places[i] - places[j]) < size}
        levels[i] = next(level for k in range(len(places)) for level in (k, -k) if level not in taken)
    step = min(size, room / max([1, *map(abs, levels.values())]))
    return [step * levels[i] for i in range(len(places))]
