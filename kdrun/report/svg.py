"""The pictures of the page, as SVG: strips of scores and differences, learning curves, reliability diagrams.

Every series has one colour and dash in all of them; widths are shares of the page, so letters keep their size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from kdrun.report.curves import curves_of
from kdrun.report.groups import difference, score
from kdrun.report.look import apart
from kdrun.report.markup import many, safe
from kdrun.report.pivot import Cell, Table, interval, teachers_of
from kdrun.report.render import percent, spread
from kdrun.report.stats import mean_sd
from kdrun.report.table import PROTOCOLS, gain_text, spread_text

ROW, TALL = 36, 320  # pixels: of a row of a strip plot; the least height of the curves


@dataclass
class Line:
    """A row of one column of a table, and how it is drawn."""

    label: str
    cell: Cell
    series: str  # the same in every picture of a column
    style: str

    @property
    def calibrations(self) -> list[dict]:
        """Of each seed whose record has one."""
        return [run["calibration"] for _, run in sorted(self.cell.runs.runs.items()) if run.get("calibration")]


@dataclass
class Strip:
    """A line of a strip plot, in percent or points: a dot per seed, their mean, an interval and what it comes of."""

    line: Line
    text: str
    dots: list[tuple[int, float]]
    mean: float
    low: float | None
    high: float | None
    images: bool = False


def _strip(strips: list[Strip], base: float | None, teacher: tuple[str, float] | None, axis: str) -> tuple[str, bool]:
    """(SVG, whether the teacher is in it). Widths are shares of the page, so letters keep their size on a phone."""
    core = [s.mean for s in strips] + [x for s in strips for _, x in s.dots] + ([base] if base is not None else [])
    low, high = min(core), max(core)
    room = max(high - low, 0.2)
    ends = [x for s in strips for x in (s.low, s.high) if x is not None]
    low, high = (
        max(min([low, *ends]), low - 0.8 * room) - 0.04 * room,
        min(max([high, *ends]), high + 0.8 * room) + 0.04 * room,
    )
    shown = teacher is not None and low - 0.3 * room <= teacher[1] <= high + 0.3 * room
    if teacher and shown:
        low, high = min(low, teacher[1] - 0.04 * room), max(high, teacher[1] + 0.04 * room)

    def x(value: float) -> str:
        return f"{2 + 96 * (min(max(value, low), high) - low) / (high - low):.2f}%"

    tall = ROW * len(strips) + 6
    parts = [
        f'<line class="rule" x1="{x(t)}" x2="{x(t)}" y1="0" y2="{tall}"/>'
        f'<text class="soft" x="{x(t)}" y="{tall + 14}" text-anchor="middle">{_tick(t)}</text>'
        for t in ticks(low, high, 5)
    ]
    if base is not None:
        parts.append(f'<line class="base" x1="{x(base)}" x2="{x(base)}" y1="0" y2="{tall}"/>')
    if teacher and shown:
        name = safe(f"teacher {teacher[0]}: {teacher[1]:.2f}")
        parts.append(
            f'<line class="teach" x1="{x(teacher[1])}" x2="{x(teacher[1])}" y1="0" y2="{tall}"><title>{name}</title></line>'
        )
    for number, s in enumerate(strips):
        y = ROW * number + 26
        parts.append(
            f'<g style="{s.line.style}"><text x="0" y="{y - 11}">{safe(_cut(s.line.label))}<title>{safe(s.line.label)}</title></text>'
        )
        parts.append(f'<text x="100%" y="{y - 11}" text-anchor="end">{safe(s.text)}</text>')
        if s.low is not None and s.high is not None:
            kind = "bar images" if s.images else "bar"
            parts.append(f'<line class="{kind}" x1="{x(s.low)}" x2="{x(s.high)}" y1="{y}" y2="{y}"/>')
            if s.low < low:
                parts.append(
                    f'<svg x="{x(low)}" y="{y}" overflow="visible"><path class="arrow" d="M-7 0L2 -5V5Z"/></svg>'
                )
            if s.high > high:
                parts.append(
                    f'<svg x="{x(high)}" y="{y}" overflow="visible"><path class="arrow" d="M7 0L-2 -5V5Z"/></svg>'
                )
        parts.append(f'<circle class="mean" cx="{x(s.mean)}" cy="{y}" r="4"/>')
        if len(s.dots) > 1:
            parts += [
                f'<circle class="seed" cx="{x(dot)}" cy="{y}" r="3.2"><title>{dot:.2f}</title></circle>'
                for _, dot in s.dots
            ]
        parts.append("</g>")
    parts.append(f'<text class="soft" x="50%" y="{tall + 30}" text-anchor="middle">{safe(axis)}</text>')
    said = safe(f"{axis}: " + "; ".join(f"{s.line.label} {s.text}" for s in strips))
    return (
        f'<svg width="100%" height="{tall + 36}" role="img" aria-label="{said}">{"".join(parts)}</svg>', shown
    )  # fmt: skip


def _cut(text: str, most: int = 30) -> str:
    """What fits beside a number on a phone."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


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
    scores, gains = [], []
    for line in lines:
        cell = line.cell
        if table.protocol not in cell.mean:
            continue
        mean, low, high, kind = interval(cell, table.protocol, table.dataset["test_n"])
        dots = [(s, 100 * x) for s, r in sorted(cell.runs.runs.items()) if (x := score(r, table.protocol)) is not None]
        scores.append(
            Strip(
                line,
                spread(cell, table.protocol),
                dots,
                100 * mean,
                _hundred(low),
                _hundred(high),
                kind == "images",
            )
        )
        if cell.gain is not None and cell.base is not None:
            n, gain, low, high, each = difference(cell.runs, cell.base, table.protocol)
            text = gain_text(gain, low, high) + (" =" if cell.equal else "")
            gains.append(
                Strip(
                    line,
                    text,
                    list(zip(range(n), (100 * x for x in each), strict=True)),
                    100 * gain,
                    _hundred(low),
                    _hundred(high),
                )
            )
    if not scores:
        return ""
    scores.sort(key=lambda strip: -strip.mean)
    gains.sort(key=lambda strip: -strip.mean)
    bases = [strip.mean for strip in scores if strip.line.cell.baseline]
    taught = [(name, 100 * value) for name, value in teachers_of(line.cell for line in lines)]
    seeds = any(not s.images and s.low is not None for s in scores)
    images = any(s.images for s in scores)
    keys = ["ring: a seed", "disc: the mean"] if any(len(s.dots) > 1 for s in scores) else ["disc: the one seed"]
    if seeds:
        keys.append("bar: 95 % interval of the mean over seeds (with two seeds it is very wide; an arrow: it goes on)")
    if images:
        keys.append("dotted bar, one seed: 95 % interval of the test images alone, seeds not covered")
    keys += ["dashed line: none"] * (len(bases) == 1)
    drawn, teacher = _strip(
        scores, bases[0] if len(bases) == 1 else None, taught[0] if len(taught) == 1 else None, "test accuracy, %"
    )
    keys += ["dotted line: the teacher"] * teacher
    title = f"<b>Accuracy, {PROTOCOLS[table.protocol]}, highest first.</b>"
    out = f"<figure><figcaption>{title} {'; '.join(keys)}.</figcaption>{drawn}</figure>"
    if gains:
        drawn, _ = _strip(gains, 0.0, None, "points over none")
        paired = any(len(s.dots) > 1 for s in gains)
        how = (
            "ring: a seed against none of the same seed; disc: the mean; bar: its 95 % interval"
            if paired
            else "one seed: no interval"
        )
        out += (
            f"<figure><figcaption><b>Difference to none.</b> {how}; dashed line: no difference; = : cannot be told from 0."
            f"</figcaption>{drawn}</figure>"
        )
    return f'<h4>Accuracy and what it gains</h4><div class="pair">{out}</div>'  # fmt: skip


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def learning_curves(table: Table, lines: list[Line]) -> str:
    """Test accuracy per epoch: the mean over seeds as a line, lowest to highest as a band, names at their ends."""
    drawn: list[tuple[Line, list[int], list[list[float]]]] = []
    missing = 0
    for line in lines:
        found, without = curves_of(line.cell.runs)
        missing += without
        epochs = sorted(set.intersection(*map(set, found))) if found else []
        if epochs:
            drawn.append((line, epochs, [[100 * one[epoch] for one in found] for epoch in epochs]))
    lost = (
        f'<p class="soft">{many(missing, "run")} without a readable curves.jsonl: not in the curves.</p>'
        if missing
        else ""
    )
    if not drawn:
        return f"<h4>Learning curves</h4>{lost}" if lost else ""
    taught = teachers_of(line.cell for line in lines)
    low, top = _heights([values for _, _, values in drawn], [100 * value for _, value in taught])
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
    wide = min(0.5 * max(len(text) for _, _, text in ends), 18)
    return (
        f"<h4>Learning curves</h4><figure><figcaption><b>Test accuracy (%) by epoch.</b> {how}. A name lifts out its line.</figcaption>"
        f'<div class="curves{crowd}"><div class="y" aria-hidden="true" style="height:{tall}px">{down}</div>'
        f'<svg {box} role="img" aria-label="{said}">{"".join(parts)}</svg>'
        f'<svg class="leaders" width="22" height="{tall}" aria-hidden="true">{"".join(leaders)}</svg>'
        f'<div class="ends" style="height:{tall}px;--wide:{wide:.1f}rem">{"".join(names)}</div>'
        f'<div class="x" aria-hidden="true">{across}<span class="name">epoch</span></div></div>{lost}</figure>'
    )  # fmt: skip


def _heights(curves: list[list[list[float]]], teachers: list[float]) -> tuple[float, float]:
    """The lowest and highest accuracy shown: the first half of the epochs may leave below, the end of training is what is compared."""
    late = sorted(min(at) for values in curves for at in values[len(values) // 2 :])
    low, top = late[len(late) // 20], max(max(at) for values in curves for at in values)
    top = max([top, *(value for value in teachers if value < top + 0.4 * max(top - low, 1.0))])
    room = 0.06 * max(top - low, 0.5)
    return low - room, top + room


def _ends(ends: list[tuple[float, Line | None, str]], tall: float) -> tuple[list[str], list[str]]:
    """Names beside the sorted ends of lines (None: a teacher), moved apart, and a thin line from each end to its name."""
    names, leaders = [], []
    places = apart([min(max(at, 0.0), tall) for at, _, _ in ends], 17.0, 0.0, tall)
    for (at, line, text), place in zip(ends, places, strict=True):
        style, key = f"--top:{place:.1f}px", ""
        at = min(max(at, 0.0), tall)
        if line is None:
            style += ";--c:var(--teacher)"
            names.append(
                f'<span class="still" style="{style}"><i class="swatch" style="--dash:dotted;--c:var(--teacher)"></i>{safe(text)}</span>'
            )
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
    ghost = f'<path class="ghost" d="{_diagram(base.calibrations)[0]}"/>' if base else ""
    figures = []
    for line in seen:
        path, bars, sure, right = _diagram(line.calibrations)
        gap = 100 * (sure - right)
        errors = percents([found["ece"] for found in line.calibrations])
        what = f"ECE {errors}: {'over' if gap > 0 else 'under'}confident by {abs(gap):.2f} points"
        figures.append(
            f'<figure style="{line.style}"><svg viewBox="-2 -2 104 104" role="img" aria-label="{safe(f"{line.label}: {what}")}">'
            f'<rect class="frame" x="0" y="0" width="100" height="100"/><line class="rule" x1="0" y1="100" x2="100" y2="0"/>{bars}'
            f'{ghost if line is not base else ""}<path class="line" d="{path}"/></svg>'
            f"<figcaption><b>{safe(line.label)}</b><br>{safe(what)}</figcaption></figure>"
        )
    return (
        "<h4>Calibration: does a network know when it is wrong?</h4><p class='soft'>Test images sorted by the network's confidence into "
        "bins. Across: confidence, 0 to 100 %; up: the share of them that is right. On the diagonal a network is as often right as "
        "it claims; below it, it claims too much. Pale bars: how many images. ECE, expected calibration error, is the mean distance from "
        "the diagonal, averaged over seeds; 0 is best. Thin line: none.</p>"
        f'<div class="multiples">{"".join(figures)}</div>{lost}'
    )  # fmt: skip


def _diagram(calibrations: list[dict]) -> tuple[str, str, float, float]:
    """(path, bars, mean confidence, accuracy) over all seeds; places are percent."""
    images = [sum(at) for at in zip(*(found["images"] for found in calibrations), strict=True)]

    def sums(key: str) -> list[float]:
        each = [
            [n * (mean or 0) for n, mean in zip(found["images"], found[key], strict=True)] for found in calibrations
        ]
        return [sum(at) for at in zip(*each, strict=True)]

    sure, right, total, wide = sums("confidence"), sums("accuracy"), sum(images), 100 / len(images)
    points = [f"{100 * s / n:.1f} {100 - 100 * r / n:.1f}" for n, s, r in zip(images, sure, right, strict=True) if n]
    path = "M" + "L".join(points) + ("h.1" if len(points) == 1 else "")
    bars = "".join(
        f'<rect class="share" x="{i * wide + 0.5:.1f}" y="{100 - up:.1f}" width="{wide - 1:.1f}" height="{up:.1f}"/>'
        for i, up in enumerate(100 * n / total for n in images)
        if up
    )
    return path, bars, sum(sure) / total, sum(right) / total


def percents(values: Sequence[float]) -> str:
    """mean ± deviation of fractions, in percent; nothing of none."""
    return spread_text(*mean_sd(values)) if values else ""
