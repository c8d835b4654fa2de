"""The results as one HTML file that opens from disk: tables, curves, intervals, calibration, classes, failures, every run.

Nothing is loaded from a network and every text of a record is escaped; a policy in the head forbids any script but the page's
own. Tables sort and filter with a script and read without one. The same runs give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from kdrun.report import render
from kdrun.report.groups import difference, score
from kdrun.report.pivot import Cell, Table
from kdrun.report.plots import curves_of, interval, teachers_of
from kdrun.report.render import percent, spread
from kdrun.report.stats import mean_sd
from kdrun.report.table import PROTOCOLS, gain_text

HERE = Path(__file__).parent
BINS = 15
CLASSES = 200  # a table of more classes is cut
COLOURS = 6
DASHES = (("none", "solid"), ("7 3", "dashed"), ("2 3", "dotted"), ("8 3 2 3", "double"))  # of a line, of its swatch
ROW, TALL = 36, 320  # pixels: of a row of a strip plot; the least height of the curves

Value = float | int | str | None


@dataclass
class Head:
    """A column: its name, a smaller line below it, and whether it sorts as numbers."""

    name: str
    more: str = ""
    numeric: bool = True


@dataclass
class Td:
    """A cell: escaped HTML and what it is sorted by."""

    html: str
    value: Value = None
    style: str = ""
    kind: str = ""


@dataclass
class Line:
    """A row of one column of a table, and how it is drawn."""

    label: str
    cell: Cell
    series: str  # the same in every picture of a column
    style: str
    judged: list[Judged] = field(default_factory=list)


@dataclass
class Judged:
    """What a run's test logits say: confidence, hits and number per bin, and hits and number per class."""

    ece: float
    confidence: list[float]
    hits: list[float]
    count: list[int]
    class_hits: list[int]
    class_count: list[int]


def page(tables: list[Table], skipped: list[str], runs: list[dict], place: Path | None = None) -> str:
    """The whole file. `place`: the folder that it will lie in, for relative links to the records; without it, paths are text."""
    names = list(dict.fromkeys(str(table.dataset["name"]) for table in tables))
    unfinished = [run for run in runs if run["status"] != "done"]
    done = len(runs) - len(unfinished)
    links = [(f"t{i}", f"{table.dataset['name']}") for i, table in enumerate(tables)]
    links += [("failures", f"not finished ({len(unfinished)})")] * bool(unfinished)
    links += [("skipped", f"skipped files ({len(skipped)})")] * bool(skipped) + [("runs", f"all runs ({len(runs)})")]
    script = (HERE / "page.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    comma = base64.b64encode(render.comma(tables).encode("utf-8", "replace")).decode()
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; '
        f"script-src 'sha256-{allowed}'; img-src data:\">",
        f"<title>{_e(', '.join(names))}: distillation results</title>",
        f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>",
        f"<header><h1>Knowledge distillation on {_e(', '.join(names))}</h1>",
        "<p>Each row of a table is one way of training a small network, the <b>student</b>: a <b>method</b>, which mostly learns from "
        "a larger, trained network, the <b>teacher</b>. The row <b>none</b> is the student trained on the labels alone, and what every "
        "other row is measured against. Every row is trained several times where it can be, with different random <b>seeds</b>.</p>",
        f'<p class="soft">{_many(done, "finished run")}'
        + (f", {len(unfinished)} not finished" if unfinished else "")
        + (f", {_many(len(skipped), 'file')} skipped" if skipped else "")
        + f'. <a download="results.csv" href="data:text/csv;base64,{comma}">The numbers as CSV</a>.</p>',
        '<nav aria-label="sections">' + "".join(f'<a href="#{to}">{_e(name)}</a>' for to, name in links) + "</nav></header>\n<main>",
        *(_table(table, f"t{number}", len(skipped)) for number, table in enumerate(tables)),
        _failures(unfinished),
        _skipped(skipped),
        _runs(runs, place),
        f"</main>\n{_data(render.long(tables))}",
        '<footer class="soft"><p>Made by kdrun report. This file holds all that it shows; nothing is loaded.</p></footer>',
        f"<script>{script}</script>\n</body>\n</html>\n",
    ]  # fmt: skip
    return "\n".join(filter(None, parts)).encode("utf-8", "replace").decode("utf-8")


def _e(text: Any) -> str:
    return escape(str(text), quote=True)


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _data(found: Any) -> str:
    """For programs: the numbers of every cell. No text in it can end the element."""
    text = json.dumps(found, ensure_ascii=True, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="data">{text}</script>'


# One dataset -------------------------------------------------------------------------------------------------------------


def _table(table: Table, ident: str, skipped: int) -> str:
    said = render.caption(table, skipped)
    notes = "".join(f"<li{_warns(line)}>{_e(line)}</li>" for line in said[1:])
    parts = [f'<section id="{ident}"><h2>{_e(said[0])}</h2>', f'<ul class="notes">{notes}</ul>']
    if len(table.columns) > 1:
        parts += ["<h3>All pairs of teacher and student</h3>", _matrix(table, f"{ident}m")]
    for number, column in enumerate(table.columns):
        parts.append(_column(table, column, f"{ident}c{number}"))
    return "\n".join([*parts, "</section>"])


def _warns(line: str) -> str:
    return ' class="warning"' if line.startswith(("warning", "not finished")) else ""


def _matrix(table: Table, ident: str) -> str:
    """Rows by columns: the compared score, and the difference below it."""
    head = [Head(_rows_are(table), "", False), *(Head(column.replace("->", "→")) for column in table.columns)]
    rows = []
    for label, line in table.cells.items():
        tds = [Td(_e(label), label)]
        for column in table.columns:
            cell = line.get(column)
            text = (
                f"{_e(spread(cell, table.protocol))}<br><span class='soft'>{_e(render.against(cell))}</span>"
                if cell
                else ""
            )
            tds.append(Td(text, cell.mean.get(table.protocol) if cell else None))
        rows.append((_base(next(iter(line.values()))), tds))
    return _grid(ident, f"{PROTOCOLS[table.protocol]}, every pair", head, rows, "scroll")


def _rows_are(table: Table) -> str:
    labelled = all(
        label.startswith("+".join(cell.runs.first["method"]))
        for label, line in table.cells.items()
        for cell in line.values()
    )
    return "method" if labelled else "row"


def _base(cell: Cell) -> str:
    return "baseline" if cell.baseline else ""


def _column(table: Table, column: str, ident: str) -> str:
    lines = _lines(table, column, ident)
    parts = [
        f'<section id="{ident}"><h3>{_e(column).replace("-&gt;", "→")}</h3>',
        _finding(table, lines),
        _results(table, lines, ident),
    ]
    parts += [_strips(table, lines), _curves(table, lines), _calibration(lines, ident), _classes(table, lines, ident)]
    return "\n".join([*filter(None, parts), "</section>"])


def _lines(table: Table, column: str, ident: str) -> list[Line]:
    found: list[Line] = []
    used = [0, 0]
    for label, line in table.cells.items():
        if column in line:
            cell = line[column]
            number = used[cell.baseline]
            used[cell.baseline] += 1
            dash, swatch = DASHES[(number if cell.baseline else number // COLOURS) % len(DASHES)]
            colour = "base" if cell.baseline else f"c{number % COLOURS}"
            style = f"--c:var(--{colour});--d:{dash};--dash:{swatch}"
            found.append(Line(label, cell, f"{ident}s{len(found)}", style, _judged(cell)))
    return found


def _finding(table: Table, lines: list[Line]) -> str:
    """The table in a sentence or two."""
    scored = [line for line in lines if table.protocol in line.cell.mean]
    if not scored:
        return ""
    best = max(scored, key=lambda line: line.cell.mean[table.protocol])
    said = [f"Highest mean: <b>{_e(best.label)}</b>, {_e(spread(best.cell, table.protocol))} % ({_seeds(best.cell)})."]
    base = next((line for line in scored if line.cell.baseline and line is not best), None)
    if base:
        said.append(
            f"The student alone (<b>{_e(base.label)}</b>): {_e(spread(base.cell, table.protocol))} % ({_seeds(base.cell)})."
        )
    taught = teachers_of(line.cell for line in lines)
    said += [f"The teacher {_e(name)}: {percent(value)} %." for name, value in taught]
    one = " (one seed)" if len(table.seeds) > 1 else ""
    told = [line for line in scored if line.cell.equal is False and line.cell.gain is not None]
    chance = "chance" if len(table.seeds) > 1 else "the chance of the test images (one seed: other seeds may differ)"
    for word, chosen in (
        (f"Better than the student alone beyond {chance}", [x for x in told if (x.cell.gain or 0) > 0]),
        (f"Worse beyond {chance}", [x for x in told if (x.cell.gain or 0) < 0]),
        ("Cannot be told apart from it with these runs (=)", [x for x in scored if x.cell.equal]),
        ("Not tested", [x for x in scored if not x.cell.baseline and x.cell.equal is None]),
    ):
        if chosen:
            said.append(
                f"{word}: {', '.join(_e(line.label) + one * (line.cell.test == 'mcnemar') for line in chosen)}."
            )
    return f'<p class="finding">{" ".join(said)}</p>'


def _seeds(cell: Cell) -> str:
    return "one seed" if cell.n == 1 else f"{cell.n} seeds"


def _results(table: Table, lines: list[Line], ident: str) -> str:
    shown = [p for p in ("last", "best", "holdout") if any(p in line.cell.mean for line in lines)]
    more = {"last": "%", "best": "%, chosen on the test set", "holdout": "%, chosen on held-out images"}
    head = [Head(_rows_are(table), "", False), Head("seeds")]
    head += [Head(f"{name} epoch" if name != "holdout" else "holdout epoch", more[name]) for name in shown]
    head += [
        Head("difference to none", "points [95 % interval]"),
        Head("told apart?", "= : not from 0", False),
        Head("agreement", "% of images, with teacher"),
        Head("parameters"),
        Head("multiply-adds", "per image"),
        Head("training time", "mean of a run, min:s"),
        Head("calibration error", "ECE, %; 0 is best"),
    ]
    rows = []
    for line in lines:
        cell = line.cell
        tds = [Td(f'<i class="swatch" style="{line.style}"></i>{_e(line.label)}', line.label), Td(str(cell.n), cell.n)]
        tds += [Td(_e(spread(cell, name)), cell.mean.get(name)) for name in shown]
        gain = gain_text(cell.gain, cell.low, cell.high) if cell.gain is not None else ""
        tds += [
            Td(_e(gain), cell.gain, kind="nowrap"),
            _told(cell),
            Td(percent(cell.agreement) if cell.agreement is not None else "", cell.agreement),
            Td(render._count(cell.params), cell.params),
            Td(render._count(cell.multiply_adds) if cell.multiply_adds else "", cell.multiply_adds),
            Td(render._time(cell.seconds), cell.seconds),
            Td(_percents([j.ece for j in line.judged]), fmean(j.ece for j in line.judged) if line.judged else None),
        ]
        rows.append((_base(cell), tds))
    used = [i for i in range(len(head)) if i < 2 or any(row[i].html for _, row in rows)]
    return _grid(
        ident + "t",
        "results",
        [head[i] for i in used],
        [(kind, [row[i] for i in used]) for kind, row in rows],
        "cards",
    )


def _told(cell: Cell) -> Td:
    """yes; = with the seeds that would tell; nothing without a test."""
    if cell.gain is None:
        return Td("")
    if cell.equal is None or cell.p is None:
        return Td("one seed, no test" if cell.pairs == 1 else "no test", 2)
    p = f"p {cell.p:.3f}" if cell.p >= 0.001 else "p < 0.001"
    if not cell.equal:
        of = "<br><span class='soft'>test images only</span>" if cell.test == "mcnemar" else ""
        return Td(f'<span class="yes">yes</span> ({_e(p)}){of}', f"0 {cell.p:.12f}", kind="nowrap")
    need = ""
    if cell.needed and cell.needed > cell.pairs:
        need = f"<br><span class='soft'>{cell.needed:,} seeds would tell</span>"
    return Td(f"= ({_e(p)}){need}", f"1 {cell.p:.12f}", kind="nowrap")


def _percents(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, sd = mean_sd(values)
    return percent(mean) + (f" ± {percent(sd)}" if sd is not None else "")


# Tables ------------------------------------------------------------------------------------------------------------------


def _grid(ident: str, name: str, head: list[Head], rows: list[tuple[str, list[Td]]], kind: str) -> str:
    """A table that sorts and filters. `kind`: cards (a row becomes a card on a phone) or scroll (sideways, in its own box)."""
    ths = "".join(
        f'<th scope="col" role="columnheader" aria-sort="none" class="{"number" if h.numeric else ""}"{" data-numeric" * h.numeric}>'
        f'<button type="button">{_e(h.name)}</button>{f"<small>{_e(h.more)}</small>" if h.more else ""}</th>'
        for h in head
    )
    body = []
    for style, tds in rows:
        cells = []
        for i, (h, td) in enumerate(zip(head, tds, strict=True)):
            value = "" if td.value is None else f' data-value="{_e(td.value)}"'
            look = " ".join(filter(None, ["number" if h.numeric else "", td.kind]))
            extra = (f' class="{look}"' if look else "") + (f' style="{td.style}"' if td.style else "") + value
            if i == 0:
                cells.append(f'<th scope="row" role="rowheader"{extra}><span>{td.html}</span></th>')
            else:
                inner = f"<span>{td.html}</span>" if td.html else ""
                cells.append(
                    f'<td role="cell" data-label="{_e(h.name + ", %" * h.more.startswith("%"))}"{extra}>{inner}</td>'
                )
        body.append(f'<tr role="row"{f" class={style!r}" if style else ""}>{"".join(cells)}</tr>')
    return (
        f'<div class="tools"><label>Filter rows <input type="search" aria-controls="{ident}"></label>'
        f'<span role="status"></span><span class="soft">click a heading to sort</span></div>'
        f'<div class="box {kind}" tabindex="0" role="region" aria-label="{_e(name)}">'
        f'<table id="{ident}" role="table"><thead role="rowgroup"><tr role="row">{ths}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{chr(10).join(body)}\n</tbody></table></div>'
    )


# Strip plots -------------------------------------------------------------------------------------------------------------


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


def _strips(table: Table, lines: list[Line]) -> str:
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
        name = _e(f"teacher {teacher[0]}: {teacher[1]:.2f}")
        parts.append(
            f'<line class="teach" x1="{x(teacher[1])}" x2="{x(teacher[1])}" y1="0" y2="{tall}"><title>{name}</title></line>'
        )
    for number, s in enumerate(strips):
        y = ROW * number + 26
        parts.append(
            f'<g style="{s.line.style}"><text x="0" y="{y - 11}">{_e(_cut(s.line.label))}<title>{_e(s.line.label)}</title></text>'
        )
        parts.append(f'<text x="100%" y="{y - 11}" text-anchor="end">{_e(s.text)}</text>')
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
    parts.append(f'<text class="soft" x="50%" y="{tall + 30}" text-anchor="middle">{_e(axis)}</text>')
    said = _e(f"{axis}: " + "; ".join(f"{s.line.label} {s.text}" for s in strips))
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


# Learning curves ---------------------------------------------------------------------------------------------------------


def _curves(table: Table, lines: list[Line]) -> str:
    """Test accuracy per epoch: the mean over seeds as a line, lowest to highest as a band, names at their ends."""
    drawn: list[tuple[Line, list[int], list[list[float]]]] = []
    missing = 0
    for line in lines:
        found, without = curves_of(line.cell)
        missing += without
        epochs = sorted(set.intersection(*map(set, found))) if found else []
        if epochs:
            drawn.append((line, epochs, [[100 * one[epoch] for one in found] for epoch in epochs]))
    lost = (
        f'<p class="soft">{_many(missing, "run")} without a readable curves.jsonl: not in the curves.</p>'
        if missing
        else ""
    )
    if not drawn:
        return f"<h4>Learning curves</h4>{lost}" if lost else ""
    taught = teachers_of(line.cell for line in lines)
    # The first half of the epochs may leave below: the end of training is what is compared.
    late = sorted(min(at) for _, _, values in drawn for at in values[len(values) // 2 :])
    low, top = late[len(late) // 20], max(max(at) for _, _, values in drawn for at in values)
    top = max([top, *(100 * value for _, value in taught if 100 * value < top + 0.4 * max(top - low, 1.0))])
    room = 0.06 * max(top - low, 0.5)
    low, top = low - room, top + room
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
        parts.append(f'<path class="line" {key} d="M{points}"><title>{_e(line.label)}</title></path>')
        ends.append((float(y(fmean(values[-1]))), line, f"{line.label}  {fmean(values[-1]):.2f}"))
    ends.sort(key=lambda end: end[0])
    places = _apart([min(max(at, 0.0), float(tall)) for at, _, _ in ends], 17.0, float(tall))
    names, leaders = [], []
    for (at, end, text), place in zip(ends, places, strict=True):
        style, key = f"--top:{place:.1f}px", ""
        at = min(max(at, 0.0), float(tall))
        if end is None:
            style += ";--c:var(--teacher)"
            names.append(
                f'<span class="still" style="{style}"><i class="swatch" style="--dash:dotted;--c:var(--teacher)"></i>{_e(text)}</span>'
            )
        else:
            key = f' data-series="{end.series}"'
            pressed = f'type="button" aria-pressed="false" title="{_e(text)}"'
            style += f";{end.style}"
            names.append(f'<button {pressed}{key} style="{style}"><i class="swatch"></i>{_e(text)}</button>')
        leaders.append(f'<path class="leader"{key} style="{style}" d="M2 {at:.1f}L20 {place:.1f}"/>')
    counts = sorted({len(at) for _, _, values in drawn for at in values})
    how = (
        "one seed each"
        if counts == [1]
        else f"line: mean over {'-'.join(map(str, sorted({counts[0], counts[-1]})))} seeds; band: lowest to highest seed"
    )
    steps = [t for t in ticks(first, last, 8) if t == int(t)] or [first]
    across = "".join(f'<span style="left:{float(x(t)) / 10:.2f}%">{_tick(t)}</span>' for t in steps)
    down = "".join(f'<span style="top:{y(t)}px">{_tick(t)}</span>' for t in levels)
    said = _e("test accuracy by epoch; at the end: " + "; ".join(text for _, _, text in ends))
    many = " many" if len(drawn) > 6 else ""
    box = f'width="100%" height="{tall}" viewBox="0 0 1000 {tall}" preserveAspectRatio="none"'
    wide = min(0.5 * max(len(text) for _, _, text in ends), 18)
    return (
        f"<h4>Learning curves</h4><figure><figcaption><b>Test accuracy (%) by epoch.</b> {how}. A name lifts out its line.</figcaption>"
        f'<div class="curves{many}"><div class="y" aria-hidden="true" style="height:{tall}px">{down}</div>'
        f'<svg {box} role="img" aria-label="{said}">{"".join(parts)}</svg>'
        f'<svg class="leaders" width="22" height="{tall}" aria-hidden="true">{"".join(leaders)}</svg>'
        f'<div class="ends" style="height:{tall}px;--wide:{wide:.1f}rem">{"".join(names)}</div>'
        f'<div class="x" aria-hidden="true">{across}<span class="name">epoch</span></div></div>{lost}</figure>'
    )  # fmt: skip


def _apart(places: Sequence[float], gap: float, tall: float) -> list[float]:
    """Sorted places moved as little as needed to lie `gap` apart, within 0 and tall."""
    found: list[float] = []
    pools: list[list[float]] = []
    for i, place in enumerate(places):
        pools.append([place - i * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    for pool in pools:
        found += [fmean(pool)] * len(pool)
    most = tall - gap * max(len(places) - 1, 0)
    return [max(min(at, most), 0.0) + i * gap for i, at in enumerate(found)]


# Test logits -------------------------------------------------------------------------------------------------------------


def _judged(cell: Cell) -> list[Judged]:
    return [found for _, run in sorted(cell.runs.runs.items()) if (found := _of_run(run)) is not None]


def _of_run(run: dict) -> Judged | None:
    """From the run's test_logits.safetensors; None where it is not there or not readable."""
    path = Path(run["folder"]) / "test_logits.safetensors" if run.get("folder") else None
    if path is None or not path.is_file():
        return None
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
        return judge(found["logits"], found["labels"])
    except Exception:  # a torn file, another layout, logits that are no numbers: left out, and the page says how many
        return None


def judge(logits: Any, labels: Any, bins: int = BINS) -> Judged:
    """Expected calibration error over bins of equal width (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    ECE = sum over bins of (n_bin / n) |accuracy - confidence|, confidence being the highest softmax probability; bin m holds
    confidences in ((m - 1) / bins, m / bins].
    """
    import numpy as np

    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels).astype(np.int64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels) or not np.isfinite(logits).all():
        raise ValueError("not a table of finite logits with a label per row")
    powers = np.exp(logits - logits.max(1, keepdims=True))
    sure = (powers.max(1) / powers.sum(1)).clip(0.0, 1.0)
    right = logits.argmax(1) == labels
    place = (np.ceil(sure * bins) - 1).clip(0, bins - 1).astype(np.int64)
    count = np.bincount(place, minlength=bins)
    confidence, hits = (np.bincount(place, weights=w.astype(np.float64), minlength=bins) for w in (sure, right))
    ece = float(np.abs(hits - confidence).sum() / len(labels))
    kinds = logits.shape[1]
    return Judged(
        ece,
        confidence.tolist(),
        hits.tolist(),
        count.tolist(),
        np.bincount(labels[right], minlength=kinds).tolist(),
        np.bincount(labels, minlength=kinds).tolist(),
    )


def _without(lines: list[Line]) -> str:
    """How many runs have no logits; nothing if all have."""
    missing = sum(line.cell.n - len(line.judged) for line in lines)
    return (
        f'<p class="soft">{_many(missing, "run")} without readable test_logits.safetensors: not in it.</p>'
        if missing
        else ""
    )


def _calibration(lines: list[Line], ident: str) -> str:
    """A reliability diagram per row, its seeds pooled, the baseline as a thin line in each."""
    seen = [line for line in lines if line.judged]
    if not seen:
        return f"<h4>Calibration</h4>{_without(lines)}"
    base = next((line for line in seen if line.cell.baseline), None)
    ghost = f'<path class="ghost" d="{_reliability(base.judged)[0]}"/>' if base else ""
    figures = []
    for line in seen:
        path, bars, sure, right = _reliability(line.judged)
        eces = _percents([j.ece for j in line.judged])
        gap = 100 * (sure - right)
        what = f"ECE {eces}: {'over' if gap > 0 else 'under'}confident by {abs(gap):.2f} points"
        figures.append(
            f'<figure style="{line.style}"><svg viewBox="-2 -2 104 104" role="img" aria-label="{_e(f"{line.label}: {what}")}">'
            f'<rect class="frame" x="0" y="0" width="100" height="100"/><line class="rule" x1="0" y1="100" x2="100" y2="0"/>{bars}'
            f'{ghost if line is not base else ""}<path class="line" d="{path}"/></svg>'
            f"<figcaption><b>{_e(line.label)}</b><br>{_e(what)}</figcaption></figure>"
        )
    return (
        "<h4>Calibration: does a network know when it is wrong?</h4><p class='soft'>Test images sorted by the network's confidence into "
        f"{BINS} bins. Across: confidence, 0 to 100 %; up: the share of them that is right. On the diagonal a network is as often right as "
        "it claims; below it, it claims too much. Pale bars: how many images. ECE, expected calibration error, is the mean distance from "
        "the diagonal, averaged over seeds; 0 is best. Thin line: none.</p>"
        f'<div class="multiples">{"".join(figures)}</div>{_without(lines)}'
    )  # fmt: skip


def _reliability(judged: list[Judged]) -> tuple[str, str, float, float]:
    """(path, bars, mean confidence, accuracy) over all seeds; places are percent."""
    count = [sum(at) for at in zip(*(j.count for j in judged), strict=True)]
    sure = [sum(at) for at in zip(*(j.confidence for j in judged), strict=True)]
    right = [sum(at) for at in zip(*(j.hits for j in judged), strict=True)]
    total, wide = sum(count), 100 / len(count)
    points = [f"{100 * s / n:.1f} {100 - 100 * r / n:.1f}" for n, s, r in zip(count, sure, right, strict=True) if n]
    path = "M" + "L".join(points) + ("h.1" if len(points) == 1 else "")
    high = [100 * n / total for n in count]
    bars = "".join(
        f'<rect class="share" x="{i * wide + 0.5:.1f}" y="{100 - up:.1f}" width="{wide - 1:.1f}" height="{up:.1f}"/>'
        for i, up in enumerate(high)
        if up
    )
    return path, bars, sum(sure) / total, sum(right) / total


def _classes(table: Table, lines: list[Line], ident: str) -> str:
    """Accuracy per class, mean over seeds: classes by rows, tinted by the difference to the baseline."""
    seen = [line for line in lines if line.judged]
    if not seen:
        return f"<h4>Accuracy per class</h4>{_without(lines)}"
    kinds = max(len(j.class_count) for line in seen for j in line.judged)
    names = [str(name) for name in table.dataset.get("classes") or []]
    names += [f"class {i}" for i in range(len(names), kinds)]

    def share(line: Line, kind: int) -> float | None:
        found = [
            j.class_hits[kind] / j.class_count[kind]
            for j in line.judged
            if kind < len(j.class_count) and j.class_count[kind]
        ]
        return fmean(found) if found else None

    base = next((line for line in seen if line.cell.baseline), None)
    shown = list(range(kinds))
    cut = ""
    if kinds > CLASSES:
        hardest = base or seen[0]
        shown = sorted(shown, key=lambda kind: (share(hardest, kind) is None, share(hardest, kind) or 0.0))[:CLASSES]
        cut = f" The {CLASSES} of {kinds:,} classes that are hardest for {_e(hardest.label)}."
    rows = []
    for kind in shown:
        tds, zero = [Td(_e(names[kind]), names[kind])], share(base, kind) if base else None
        for line in seen:
            value = share(line, kind)
            tint = ""
            if value is not None and zero is not None and line is not base:
                strength = min(abs(value - zero) / 0.15, 1.0) * 0.5
                tint = (
                    f"background:rgba(var(--{'more' if value > zero else 'less'}),{strength:.2f})"
                    if strength >= 0.01
                    else ""
                )
            tds.append(Td("" if value is None else f"{100 * value:.1f}", value, tint))
        rows.append(("", tds))
    head = [Head("class", "", False), *(Head(line.label) for line in seen)]
    tinted = " Blue: above none, orange: below; the fullest colour at 15 points." if base and len(seen) > 1 else ""
    return (
        f"<h4>Accuracy per class</h4><p class='soft'>In %, mean over seeds, last epoch.{tinted}{cut}</p>"
        + _grid(f"{ident}k", "accuracy per class", head, rows, f"scroll{' tall' * (len(rows) > 14)}")
        + _without(lines)
    )  # fmt: skip


# Failures, skipped files, runs -------------------------------------------------------------------------------------------


def _failures(runs: list[dict]) -> str:
    if not runs:
        return ""
    names = ("method", "student", "seed", "status", "stage", "step", "term", "error", "folder")
    head = [Head(name, "", name in ("seed", "step")) for name in names]
    rows = []
    for run in runs:
        error = run.get("error") or {}
        message = ": ".join(filter(None, [error.get("type"), error.get("message")]))
        bad = "" if run["status"] in ("running", "interrupted") else "bad"
        tds = [
            _text("+".join(run["method"])), _text(run["student"]["name"]), _number(run["seed"]), _text(run["status"], bad),
            _text(error.get("stage")), _number(error.get("step")), _text(error.get("term")), _text(message),
            _text(run.get("folder")),
        ]  # fmt: skip
        rows.append(("", tds))
    used = [i for i in range(len(head)) if any(tds[i].html for _, tds in rows)]
    rows = [(kind, [tds[i] for i in used]) for kind, tds in rows]
    return (
        f'<section id="failures"><h2>Not finished: {_many(len(runs), "run")}</h2>'
        f"<p class='soft'>In no number above. The same command takes them up again.</p>"
        f"{_grid('failed', 'runs that are not finished', [head[i] for i in used], rows, 'cards')}</section>"
    )


def _text(value: Any, kind: str = "") -> Td:
    return Td("", None) if value is None or value == "" else Td(_e(value), str(value), kind=kind)


def _number(value: Any) -> Td:
    return Td("" if value is None else _e(value), value)


def _skipped(skipped: list[str]) -> str:
    if not skipped:
        return ""
    items = "".join(f"<li>{_e(line)}</li>" for line in skipped)
    return (
        f'<section id="skipped"><h2>Skipped: {_many(len(skipped), "file")}</h2><p class="soft">Called record.json, and not read.</p>'
        f'<ul class="notes">{items}</ul></section>'
    )


def _runs(runs: list[dict], place: Path | None) -> str:
    head = [
        Head("method", "", False), Head("teacher", "", False), Head("student", "", False), Head("seed"), Head("status", "", False),
        Head("score", "%, own protocol"), Head("device", "", False), Head("git", "commit", False), Head("record", "", False),
        Head("command", "", False), Head("versions", "", False),
    ]  # fmt: skip
    rows = []
    for run in runs:
        value, git, engine = run.get("score"), run.get("git"), run.get("engine") or {}
        versions = ", ".join(f"{name} {version}" for name, version in (run.get("versions") or {}).items())
        commit = f"{str(git.get('commit'))[:12]}{' (changed since)' if git.get('dirty') else ''}" if git else None
        device = " ".join(filter(None, [engine.get("device"), engine.get("precision")]))
        command = run.get("command")
        rows.append(("", [
            _text("+".join(run["method"])), _text((run.get("teacher") or {}).get("name")), _text(run["student"]["name"]),
            _number(run["seed"]), _text(run["status"]), Td("" if value is None else percent(value), value),
            _text(device), _text(commit), _link(run.get("folder"), place),
            Td(f"<code>{_e(command)}</code>" if command else "", command), _text(versions),
        ]))  # fmt: skip
    used = [i for i in range(len(head)) if any(tds[i].html for _, tds in rows)]
    return (
        f'<section id="runs"><h2>All runs: {len(runs):,}</h2><p class="soft">One line each; its record holds everything: settings, code, '
        f"machine, times.</p>"
        + _grid(
            "all",
            "all runs",
            [head[i] for i in used],
            [(k, [tds[i] for i in used]) for k, tds in rows],
            f"scroll lines{' tall' * (len(rows) > 14)}",
        )
        + "</section>"
    )


def _link(folder: Any, place: Path | None) -> Td:
    """To the record, relative to the page; its path as text where there is no such way."""
    if not folder:
        return Td("")
    path = Path(folder) / "record.json"
    if place is not None:
        try:
            way = os.path.relpath(path.resolve(), place.resolve())
        except (OSError, ValueError):  # another drive
            way = ""
        if way:
            there = "/".join(quote(part, safe="") for part in Path(way).parts)
            return Td(f'<a href="./{_e(there)}">{_e(path)}</a>', str(path))
    return Td(_e(path), str(path))
