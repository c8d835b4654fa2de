"""The pictures of the page: strips of scores and differences, learning curves, reliability diagrams.

Every series has one look in all of them; widths are shares of the page and names are text, so letters keep their size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from kdrun.report.curves import heights, over_seeds, read_curves
from kdrun.report.look import TEACHER, Look, apart
from kdrun.report.page.markup import many, safe
from kdrun.report.pivot import Cell, Table, teachers_of
from kdrun.report.render import percent
from kdrun.report.stats import mean_sd
from kdrun.report.strips import Strip, beyond, gains, scores, stacked, window
from kdrun.report.table import PROTOCOLS, spread_text

TALL = 320  # pixels: the least height of the curves
RING, ROOM = 7.0, 9.0  # pixels: of a ring; how far one may stand from its row's line
LOST = 6  # so many unreadable curves are named
FEW = 50  # a bin of fewer images is faded


@dataclass
class Line:
    """A row of one column of a table, and how it is drawn."""

    label: str
    cell: Cell
    series: str  # the same in every picture of a column
    look: Look

    @property
    def style(self) -> str:
        return self.look.css

    @property
    def calibrations(self) -> list[dict]:
        """Of each seed whose record has one of images and of the same bins."""
        found = [
            one["calibration"]
            for _, run in sorted(self.cell.runs.runs.items())
            if (one := run["details"] or {}).get("calibration")
        ]
        found = [one for one in found if sum(one["images"]) and _bins(one) == _bins(found[0])]
        return [one for one in found if len(set(_bins(one))) == 1]


def _strip(strips: Sequence[Strip], base: float | None, shown: tuple[float, float], axis: str) -> str:
    """Rows of a name, a track and a number; on a phone the track lies below the two. No letter stands on a line of the grid."""
    low, high = shown

    def x(value: float) -> str:
        return f"{2 + 96 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    levels = ticks(low, high, 7)
    lines = [f'<line class="rule" x1="{x(t)}" x2="{x(t)}" y1="0" y2="100%"/>' for t in levels]
    if base is not None:
        lines.append(f'<line class="base" x1="{x(base)}" x2="{x(base)}" y1="0" y2="100%"/>')
    for s in strips:
        if s.teacher and low <= s.mean <= high:
            lines.append(f'<line class="teach" x1="{x(s.mean)}" x2="{x(s.mean)}" y1="0" y2="100%"/>')
    behind = "".join(lines)
    rows = [
        f'<div class="row" style="{s.look.css}"><span class="name">{safe(s.label)}</span>'
        f'<span class="value">{safe(s.text)}</span><div class="track"><svg>{behind}{"".join(_marks(s, x, shown))}</svg></div></div>'
        for s in strips
    ]
    across = "".join(f'<span style="left:{x(t)}">{_tick(t)}</span>' for t in levels)
    said = safe(f"{axis}: " + "; ".join(f"{s.label} {s.text}" for s in strips))
    return (
        f'<div class="strip" role="img" aria-label="{said}">{"".join(rows)}'
        f'<div class="row"><div class="across">{across}<span class="name">{safe(axis)}</span></div></div></div>'
    )


def _marks(s: Strip, x: Callable[[float], str], shown: tuple[float, float]) -> list[str]:
    """A bar, a mark at the mean, a ring per seed, an arrow where the row goes on."""
    (low, high), parts = shown, []
    if s.low is not None and s.high is not None:
        kind = "bar images" if s.images else "bar"
        parts.append(f'<line class="{kind}" x1="{x(s.low)}" x2="{x(s.high)}" y1="50%" y2="50%"/>')
    if low <= s.mean <= high:
        parts.append(_at(x(s.mean), f'<path class="mean" d="{s.look.svg_mark}"/>'))
    if len(s.dots) > 1:
        scale = 300 / (high - low)  # pixels of a narrow track
        moved = stacked([value * scale for _, value in s.dots], RING, ROOM)
        for (seed, value), up in sorted(zip(s.dots, moved, strict=True), key=lambda item: abs(item[1])):
            place = f'cx="{x(value)}" cy="50%" r="3.2" transform="translate(0 {-up:.1f})"'
            parts.append(f'<circle class="seed" {place}><title>{safe(seed)}: {value:.2f}</title></circle>')
    for goes_on, end, path in zip(beyond(s, low, high), shown, ("M-7 0L2 -5V5Z", "M7 0L-2 -5V5Z"), strict=True):
        if goes_on:
            parts.append(_at(x(end), f'<path class="arrow" d="{path}"/>'))
    return parts


def _at(x: str, mark: str) -> str:
    return f'<svg x="{x}" y="50%" overflow="visible">{mark}</svg>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high, about so many."""
    raw = (high - low) / max(about, 1)
    if not raw > 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    return f"{value:.10f}".rstrip("0").rstrip(".") or "0"


def strips(table: Table, lines: list[Line]) -> str:
    """Accuracy with intervals, and beside it the differences to the baseline."""
    cells, styles = {line.label: line.cell for line in lines}, {line.label: line.look for line in lines}
    rows = scores(table, cells, styles)
    if all(s.teacher for s in rows):
        return ""
    bases = [s.mean for s in rows if s.baseline]
    base = bases[0] if len(bases) == 1 else None
    shown = window(rows, base, 0.0, 100.0)
    keys = ["ring: a seed", "filled: the mean"] if any(len(s.dots) > 1 for s in rows) else ["filled: the one seed"]
    if any(s.ends() and not s.images for s in rows):
        keys.append("bar: 95 % interval of the mean over seeds (with two seeds it is very wide)")
    if any(s.images for s in rows):
        keys.append("dotted bar, one seed: 95 % interval of the test images alone, seeds not covered")
    keys += ["arrow: it goes on"] * any(any(beyond(s, *shown)) for s in rows)
    keys += ["dashed line: none"] * (base is not None)
    keys += ["dotted line: the teacher"] * any(s.teacher and shown[0] <= s.mean <= shown[1] for s in rows)
    title = f"<b>Accuracy, {PROTOCOLS[table.protocol]}, highest first.</b>"
    drawn = _strip(rows, base, shown, "test accuracy, %")
    out = f"<figure><figcaption>{title} {'; '.join(keys)}.</figcaption>{drawn}</figure>"
    if found := gains(table, cells, styles):
        least, most = (-base, 100 - base) if base is not None else (-100.0, 100.0)
        shown = window(found, 0.0, least, most)
        how = "ring: a seed against none of the same seed; filled: the mean; bar: its 95 % interval"
        how = how if any(len(s.dots) > 1 for s in found) else "one seed: no interval"
        how += "; arrow: it goes on" * any(any(beyond(s, *shown)) for s in found)
        out += (
            f"<figure><figcaption><b>Difference to none.</b> {how}; dashed line: no difference; = : cannot be told from 0."
            f"</figcaption>{_strip(found, 0.0, shown, 'points over none')}</figure>"
        )
    return f'<h4>Accuracy and what it gains</h4><div class="pair">{out}</div>'


def learning_curves(table: Table, lines: list[Line]) -> str:
    """Test accuracy per epoch: the mean over seeds as a line, lowest to highest as a band, names at their ends."""
    known, lost = read_curves([replace(line.cell.runs, label=line.label) for line in lines])
    without = "".join(f"<li>{safe(line)}</li>" for line in lost[:LOST])
    without += f"<li>and {many(len(lost) - LOST, 'more run')}</li>" * (len(lost) > LOST)
    without = f'<ul class="notes warning">{without}</ul>' if lost else ""
    drawn = [(line, *over_seeds(line.cell.runs, known)) for line in lines]
    drawn = [(line, epochs, values) for line, epochs, values in drawn if epochs]
    if not drawn:
        return f"<h4>Learning curves</h4>{without}" if lost else ""
    taught = teachers_of(line.cell for line in lines)
    low, top = heights([values for _, _, values in drawn], [100 * value for _, value in taught])
    first, last = min(e[0] for _, e, _ in drawn), max(e[-1] for _, e, _ in drawn)
    tall = max(TALL, 18 * (len(drawn) + len(taught)))

    def x(epoch: float) -> str:
        return f"{1000 * (epoch - first) / max(last - first, 1):.1f}"

    def y(value: float) -> str:
        return f"{tall * (top - max(min(value, top + 9 * (top - low)), low - 9 * (top - low))) / (top - low):.1f}"

    parts: list[str] = []
    ends: list[tuple[float, Line | None, str]] = []
    levels = ticks(low, top, 6)
    parts += [f'<line class="rule" x1="0" x2="1000" y1="{y(t)}" y2="{y(t)}"/>' for t in levels]
    for name, value in taught:
        where = "" if low <= 100 * value <= top else " (above)" if 100 * value > top else " (below)"
        ends.append((float(y(100 * value)), None, f"teacher {name}  {percent(value)}{where}"))
        if low <= 100 * value <= top:
            parts.append(f'<line class="teach" x1="0" x2="1000" y1="{y(100 * value)}" y2="{y(100 * value)}"/>')
    for line, epochs, values in drawn:
        key = f'data-series="{line.series}" style="{line.style}"'
        if any(len(at) > 1 for at in values):
            up = "L".join(f"{x(e)} {y(max(at))}" for e, at in zip(epochs, values, strict=True))
            down = "L".join(f"{x(e)} {y(min(at))}" for e, at in reversed(list(zip(epochs, values, strict=True))))
            parts.append(f'<path class="band" {key} d="M{up}L{down}Z"/>')
    for line, epochs, values in drawn:
        key = f'data-series="{line.series}" style="{line.style}"'
        points = "L".join(f"{x(e)} {y(fmean(at))}" for e, at in zip(epochs, values, strict=True))
        points += "h.1" if len(epochs) == 1 else ""
        parts.append(f'<path class="line" {key} d="M{points}"><title>{safe(line.label)}</title></path>')
        ends.append((float(y(fmean(values[-1]))), line, f"{line.label}  {fmean(values[-1]):.2f}"))
    ends.sort(key=lambda end: end[0])  # highest first
    names, leaders = _ends(ends, float(tall))
    counts = sorted({len(at) for _, _, values in drawn for at in values})
    how = (
        "one seed each"
        if counts == [1]
        else f"line: mean over {'-'.join(map(str, sorted({counts[0], counts[-1]})))} seeds; band: lowest to highest seed"
    )
    steps = [t for t in ticks(first, last, 8) if t == int(t)] or [first]
    across = "".join(f'<span style="left:{float(x(t)) / 10:.2f}%">{_tick(t)}</span>' for t in steps)
    down = "".join(f'<span style="top:{y(t)}px">{_tick(t)}</span>' for t in levels)
    said = safe("test accuracy by epoch; at the end: " + "; ".join(text for _, _, text in ends))
    crowd = " many" if len(drawn) > 6 else ""
    box = f'width="100%" height="{tall}" viewBox="0 0 1000 {tall}" preserveAspectRatio="none"'
    longest = max(len(text) for _, _, text in ends)
    crowd += " below" if longest > 40 else ""  # long names stand below the picture, where they have its whole width
    return (
        f"<h4>Learning curves</h4><figure><figcaption><b>Test accuracy (%) by epoch.</b> {how}. A name lifts out its line.</figcaption>"
        f'<div class="curves{crowd}"><div class="y" aria-hidden="true" style="height:{tall}px">{down}</div>'
        f'<svg {box} role="img" aria-label="{said}">{"".join(parts)}</svg>'
        f'<svg class="leaders" width="22" height="{tall}" aria-hidden="true">{"".join(leaders)}</svg>'
        f'<div class="ends" style="height:{tall}px;--wide:{0.5 * longest:.1f}rem">{"".join(names)}</div>'
        f'<div class="x" aria-hidden="true">{across}<span class="name">epoch</span></div></div>{without}</figure>'
    )  # fmt: skip


def _ends(ends: list[tuple[float, Line | None, str]], tall: float) -> tuple[list[str], list[str]]:
    """Names beside the sorted ends of lines (None: a teacher), moved apart, and a thin line from each end to its name."""
    names, leaders = [], []
    places = apart([min(max(at, 0.0), tall) for at, _, _ in ends], 17.0, 0.0, tall)
    for (at, line, text), place in zip(ends, places, strict=True):
        style, key = f"--top:{place:.1f}px", ""
        at = min(max(at, 0.0), tall)
        if line is None:
            style += f";{TEACHER.css};--dash:dotted"
            names.append(f'<span class="still" style="{style}"><i class="swatch"></i>{safe(text)}</span>')
        else:
            key = f' data-series="{line.series}"'
            pressed = f'type="button" aria-pressed="false" title="{safe(text)}"'
            style += f";{line.style}"
            names.append(f'<button {pressed}{key} style="{style}"><i class="swatch"></i>{safe(text)}</button>')
        leaders.append(f'<path class="leader"{key} style="{style}" d="M2 {at:.1f}L20 {place:.1f}"/>')
    return names, leaders


def reliability(lines: list[Line]) -> str:
    """A reliability diagram per row, its seeds pooled, the baseline as a thin line in each."""
    seen = [line for line in lines if line.calibrations]
    without = sum(line.cell.n - len(line.calibrations) for line in lines)
    lost = (
        f'<p class="soft">{many(without, "run")} without calibration in the record: not in it.</p>' if without else ""
    )
    if not seen:
        return f"<h4>Calibration</h4>{lost}" if lost else ""
    base = next((line for line in seen if line.cell.baseline), None)
    ghost = _diagram(base.calibrations, "ghost") if base else ""
    figures = []
    for line in seen:
        sure, right = _claims(line.calibrations)
        gap = 100 * (sure - right)
        errors = percents([found["ece"] for found in line.calibrations])
        what = f"ECE {errors}: {'over' if gap > 0 else 'under'}confident by {abs(gap):.2f} points"
        figures.append(
            f'<figure style="{line.style}"><svg viewBox="-2 -2 104 104" role="img" aria-label="{safe(f"{line.label}: {what}")}">'
            f'<rect class="frame" x="0" y="0" width="100" height="100"/><line class="rule" x1="0" y1="100" x2="100" y2="0"/>'
            f"{_shares(line.calibrations)}{ghost if line is not base else ''}{_diagram(line.calibrations, 'line')}</svg>"
            f"<figcaption><b>{safe(line.label)}</b><br>{safe(what)}</figcaption></figure>"
        )
    return (
        "<h4>Calibration: does a network know when it is wrong?</h4><p class='soft'>Test images sorted by the network's confidence into "
        "bins. Across: confidence, 0 to 100 %; up: the share of them that is right. On the diagonal a network is as often right as "
        f"it claims; below it, it claims too much. Pale bars: how many images; a bin of fewer than {FEW} is faded, the paler the fewer, "
        "for chance moves it. ECE, expected calibration error, is the mean distance from "
        "the diagonal, averaged over seeds; 0 is best. Thin line: none.</p>"
        f'<div class="multiples">{"".join(figures)}</div>{lost}'
    )  # fmt: skip


def _bins(calibration: dict) -> list[int]:
    return [len(calibration[key]) for key in ("images", "confidence", "accuracy")]


def _pooled(calibrations: list[dict], key: str) -> list[float]:
    """Per bin the sum over all seeds and images of a mean."""
    each = [[n * (mean or 0) for n, mean in zip(one["images"], one[key], strict=True)] for one in calibrations]
    return [sum(at) for at in zip(*each, strict=True)]


def _images(calibrations: list[dict]) -> list[int]:
    """Per bin the images of all seeds."""
    return [sum(at) for at in zip(*(one["images"] for one in calibrations), strict=True)]


def _claims(calibrations: list[dict]) -> tuple[float, float]:
    """(mean confidence, accuracy) over all seeds."""
    total = sum(_images(calibrations))
    return sum(_pooled(calibrations, "confidence")) / total, sum(_pooled(calibrations, "accuracy")) / total


def _diagram(calibrations: list[dict], kind: str) -> str:
    """A line from bin to bin, faded where there are few images, and of kind "line" a dot per bin; places are percent."""
    images = _images(calibrations)
    sums = zip(images, _pooled(calibrations, "confidence"), _pooled(calibrations, "accuracy"), strict=True)
    points = [(100 * sure / n, 100 - 100 * right / n, _solid(n / len(calibrations))) for n, sure, right in sums if n]
    parts = [
        f'<path class="{kind}" d="M{x:.1f} {y:.1f}L{to:.1f} {up:.1f}" opacity="{min(solid, end):.2f}"/>'
        for (x, y, solid), (to, up, end) in pairwise(points)
    ]
    dots = points if kind == "line" else []
    parts += [f'<circle class="bin" cx="{x:.1f}" cy="{y:.1f}" r="2" opacity="{solid:.2f}"/>' for x, y, solid in dots]
    return "".join(parts)


def _solid(images: float) -> float:
    """How opaque a bin of so many images a seed is."""
    return max(0.12, min(images / FEW, 1.0))


def _shares(calibrations: list[dict]) -> str:
    images = _images(calibrations)
    wide = 100 / len(images)
    return "".join(
        f'<rect class="share" x="{i * wide + 0.5:.1f}" y="{100 - up:.1f}" width="{wide - 1:.1f}" height="{up:.1f}"/>'
        for i, up in enumerate(100 * n / sum(images) for n in images)
        if up
    )


def percents(values: Sequence[float]) -> str:
    """mean ± deviation of fractions, in percent; nothing of none."""
    return spread_text(*mean_sd(values)) if values else ""
