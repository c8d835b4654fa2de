"""The results as one HTML file that opens from disk: tables, curves, intervals, calibration, classes, failures, every run.

Nothing is loaded from a network and every text of a record is escaped; a policy in the head forbids any script but the page's
own. Tables sort and filter with a script and read without one. The same runs give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun.report import render
from kdrun.report.groups import labels
from kdrun.report.look import Look
from kdrun.report.page.markup import Head, Td, figure, grid, link, many, safe, text
from kdrun.report.page.svg import Line, learning_curves, percents, reliability, strips
from kdrun.report.pivot import Cell, Table, teachers_of
from kdrun.report.render import percent, spread
from kdrun.report.strips import table_looks, titled
from kdrun.report.table import PROTOCOLS, gain_text
from kdrun.runs.identity import label_of

HERE = Path(__file__).parent
CLASSES = 200  # a table of more classes is cut


def page(
    tables: list[Table],
    skipped: list[str],
    runs: list[dict],
    place: Path | None = None,
    more: Sequence[render.Plain] = (),
) -> str:
    """The whole file. `place`: the folder that it will lie in, for relative links to the records; without it, paths are text."""
    names = list(dict.fromkeys(titled(table) for table in tables))
    called_runs = _called(runs)
    unfinished = [run for run in runs if run["status"] != "done"]
    done = len(runs) - len(unfinished)
    links = [(f"t{i}", titled(table)) for i, table in enumerate(tables)]
    links += [(f"m{i}", "published scores") for i, _ in enumerate(more)]
    links += [("failures", f"not finished ({len(unfinished)})")] * bool(unfinished)
    links += [("skipped", f"skipped files ({len(skipped)})")] * bool(skipped) + [("runs", f"all runs ({len(runs)})")]
    script = (HERE / "page.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    comma = base64.b64encode(render.comma(tables, more).encode("utf-8", "replace")).decode()
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src \'unsafe-inline\'; '
        f"script-src 'sha256-{allowed}'; img-src data:\">",
        f"<title>{safe(', '.join(names))}: distillation results</title>",
        f"<style>\n{(HERE / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>",
        f"<header><h1>Knowledge distillation on {safe(', '.join(names))}</h1>",
        "<p>Each row of a table is one way of training a small network, the <b>student</b>: a <b>method</b>, which mostly learns from "
        "a larger, trained network, the <b>teacher</b>. The row <b>none</b> is the student trained on the labels alone, and what every "
        "other row is measured against. Every row is trained several times where it can be, with different random <b>seeds</b>.</p>",
        f'<p class="soft">{many(done, "finished run")}'
        + (f", {len(unfinished)} not finished" if unfinished else "")
        + (f", {many(len(skipped), 'file')} skipped" if skipped else "")
        + f'. <a download="results.csv" href="data:text/csv;base64,{comma}">The numbers as CSV</a>.</p>',
        '<nav aria-label="sections">' + "".join(f'<a href="#{to}">{safe(name)}</a>' for to, name in links) + "</nav></header>\n<main>",
        *(_table(table, f"t{number}", len(skipped)) for number, table in enumerate(tables)),
        *(_plain(plain, f"m{number}") for number, plain in enumerate(more)),
        _failures(unfinished, called_runs),
        _skipped(skipped),
        _runs(runs, called_runs, place),
        f"</main>\n{_data(render.long(tables))}",
        '<footer class="soft"><p>Made by kdrun report. This file holds all that it shows; nothing is loaded.</p></footer>',
        f"<script>{script}</script>\n</body>\n</html>\n",
    ]  # fmt: skip
    return "\n".join(filter(None, parts)).encode("utf-8", "replace").decode("utf-8")


def _data(found: Any) -> str:
    """For programs: the numbers of every cell. No text in it can end the element."""
    text = json.dumps(found, ensure_ascii=True, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="data">{text}</script>'


# One dataset -------------------------------------------------------------------------------------------------------------


def _table(table: Table, ident: str, skipped: int) -> str:
    said = render.caption(table, skipped)
    notes = "".join(f"<li{_warns(line)}>{safe(line)}</li>" for line in said[1:])
    parts = [f'<section id="{ident}" class="dataset"><h2>{safe(said[0])}</h2>', f'<ul class="notes">{notes}</ul>']
    if len(table.columns) > 1:
        matrix = _matrix(table, f"{ident}m")
        parts.append(f'<div class="matrix"><h3>All pairs of teacher and student</h3>{matrix}</div>')
    styles = table_looks(table)
    for number, column in enumerate(table.columns):
        parts.append(_column(table, column, f"{ident}c{number}", styles))
    return "\n".join([*parts, "</section>"])


def _warns(line: str) -> str:
    return ' class="warning"' if line.startswith(("note", "not finished")) else ""


def _matrix(table: Table, ident: str) -> str:
    """Rows by columns: the compared score, and the difference below it."""
    head = [Head(_rows_are(table), "", False), *(Head(column.replace("->", "→")) for column in table.columns)]
    rows = []
    for label, line in table.cells.items():
        tds = [Td(safe(label), label)]
        for column in table.columns:
            cell = line.get(column)
            text = (
                f"{safe(spread(cell, table.protocol))}<br><span class='soft'>{safe(render.against(cell))}</span>"
                if cell
                else ""
            )
            tds.append(Td(text, cell.mean.get(table.protocol) if cell else None))
        rows.append((_base(next(iter(line.values()))), tds))
    return grid(ident, f"{PROTOCOLS[table.protocol]}, every pair", head, rows, "scroll")


def _rows_are(table: Table) -> str:
    labelled = all(
        label.startswith("+".join(cell.runs.first["method"]))
        for label, line in table.cells.items()
        for cell in line.values()
    )
    return "method" if labelled else "row"


def _base(cell: Cell) -> str:
    return "baseline" if cell.baseline else ""


def _column(table: Table, column: str, ident: str, styles: Mapping[str, Look]) -> str:
    """A student's table and pictures; on a phone the pictures come first."""
    lines = [
        Line(label, line[column], f"{ident}s{number}", styles[label])
        for number, (label, line) in enumerate(table.cells.items())
        if column in line
    ]
    return (
        f'<section id="{ident}" class="column"><h3>{safe(column).replace("-&gt;", "→")}</h3>\n{_finding(table, lines)}\n'
        f'<div class="numbers">{_results(table, lines, ident)}</div>\n'
        f'<div class="pictures">{strips(table, lines)}\n{learning_curves(table, lines)}</div>\n'
        f'<div class="rest">{reliability(lines)}\n{_classes(table, lines, ident)}</div>\n</section>'
    )


def _finding(table: Table, lines: list[Line]) -> str:
    """The table in a sentence or two."""
    scored = [line for line in lines if table.protocol in line.cell.mean]
    if not scored:
        return ""
    best = max(scored, key=lambda line: line.cell.mean[table.protocol])
    said = [
        f"Highest mean: <b>{safe(best.label)}</b>, {safe(spread(best.cell, table.protocol))} % ({_seeds(best.cell)})."
    ]
    alone = [line for line in scored if line.cell.baseline]
    if len(alone) == 1 and alone[0] is not best:
        (base,) = alone
        said.append(
            f"The student alone (<b>{safe(base.label)}</b>): {safe(spread(base.cell, table.protocol))} % ({_seeds(base.cell)})."
        )
    if len(alone) > 1:
        said.append(f"There are {len(alone)} students alone; each row is compared with the one of its own recipe.")
    taught = teachers_of(line.cell for line in lines)
    said += [f"The teacher {safe(name)}: {percent(value)} %." for name, value in taught]
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
                f"{word}: {', '.join(safe(line.label) + one * (line.cell.test == 'mcnemar') for line in chosen)}."
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
        tds = [
            Td(f'<i class="swatch" style="{line.style}"></i>{safe(line.label)}', line.label),
            Td(str(cell.n), cell.n),
        ]
        tds += [Td(safe(spread(cell, name)), cell.mean.get(name)) for name in shown]
        gain = gain_text(cell.gain, cell.low, cell.high) if cell.gain is not None else ""
        tds += [
            Td(safe(gain), cell.gain, kind="nowrap"),
            _told(cell),
            Td(percent(cell.agreement) if cell.agreement is not None else "", cell.agreement),
            Td(render.count(cell.params), cell.params),
            Td(render.count(cell.multiply_adds) if cell.multiply_adds else "", cell.multiply_adds),
            Td(render.duration(cell.seconds), cell.seconds),
            Td(percents([found["ece"] for found in line.calibrations]), cell.ece),
        ]
        rows.append((_base(cell), tds))
    used = [i for i in range(len(head)) if i < 2 or any(row[i].html for _, row in rows)]
    return grid(
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
    p = render.p_text(cell.p)
    if not cell.equal:
        of = "<br><span class='soft'>test images only</span>" if cell.test == "mcnemar" else ""
        return Td(f'<span class="yes">yes</span> ({safe(p)}){of}', f"0 {cell.p:.12f}", kind="nowrap")
    need = ""
    if cell.needed and cell.needed > cell.pairs:
        need = f"<br><span class='soft'>{cell.needed:,} seeds would tell</span>"
    return Td(f"= ({safe(p)}){need}", f"1 {cell.p:.12f}", kind="nowrap")


def _classes(table: Table, lines: list[Line], ident: str) -> str:
    """Accuracy per class, mean over seeds: classes by rows, tinted by the difference to the baseline."""
    seen = [line for line in lines if len(line.cell.class_scores) == len(table.dataset["classes"]) > 0]
    if not seen:
        return ""
    scores = {line.label: line.cell.class_scores for line in seen}
    names = [str(name) for name in table.dataset["classes"]]
    base = next((line for line in seen if line.cell.baseline), None)
    alone = scores[(base or seen[0]).label]
    shown = list(range(len(names)))
    cut = ""
    if len(names) > CLASSES:
        shown = sorted(shown, key=lambda kind: (alone[kind] is None, alone[kind] or 0.0))[:CLASSES]
        cut = f" The {CLASSES} of {len(names):,} classes that are hardest for {safe((base or seen[0]).label)}."
    rows = []
    for kind in shown:
        tds = [Td(safe(names[kind]), names[kind])]
        for line in seen:
            value = scores[line.label][kind]
            tint = "" if line is base or base is None else _tint(value, alone[kind])
            tds.append(Td("" if value is None else f"{100 * value:.1f}", value, tint))
        rows.append(("", tds))
    head = [Head("class", "", False), *(Head(line.label) for line in seen)]
    tinted = " Blue: above none, orange: below; the fullest colour at 15 points." if base and len(seen) > 1 else ""
    return (
        f"<h4>Accuracy per class</h4><p class='soft'>In %, mean over seeds, last epoch.{tinted}{cut}</p>"
        + grid(f"{ident}k", "accuracy per class", head, rows, f"scroll{' tall' * (len(rows) > 14)}")
    )  # fmt: skip


def _tint(value: float | None, alone: float | None) -> str:
    """The background of a class's accuracy beside that of the student alone."""
    if value is None or alone is None:
        return ""
    strength = min(abs(value - alone) / 0.15, 1.0) * 0.5
    return f"background:rgba(var(--{'more' if value > alone else 'less'}),{strength:.2f})" if strength >= 0.01 else ""


def _plain(plain: render.Plain, ident: str) -> str:
    head = [Head(name, "", name in ("published", "ours", "n")) for name in plain.head]
    rows = [("", [Td(safe(cell), cell.partition(" ±")[0]) for cell in row]) for row in plain.rows]
    table = grid(f"{ident}t", "published scores beside ours", head, rows, "cards") if rows else ""
    return f'<section id="{ident}"><h2>Published scores beside ours</h2><p class="soft">{safe(plain.caption)}.</p>{table}</section>'


# Failures, skipped files, runs -------------------------------------------------------------------------------------------


def _called(runs: list[dict]) -> dict[int, str]:
    """{id of a run's dict: its label}, which names what tells it from the other runs of its data, teacher and student."""
    found: dict[tuple, list[dict]] = {}
    for run in runs:
        taught = label_of(run, "teacher") if run.get("teacher") else None
        key = run["dataset"]["checksum"], label_of(run, "dataset"), taught, label_of(run, "student")
        found.setdefault(key, []).append(run)
    told: dict[int, str] = {}
    for members in found.values():
        names = labels(members)
        told |= {id(run): names[run["group"]] for run in members}
    return told


def _failures(runs: list[dict], names: dict[int, str]) -> str:
    if not runs:
        return ""
    heads = ("method", "student", "seed", "status", "stage", "step", "term", "error", "folder")
    head = [Head(name, "", name in ("seed", "step")) for name in heads]
    rows = []
    for run in runs:
        error = run.get("error") or {}
        message = ": ".join(filter(None, [error.get("type"), error.get("message")]))
        bad = "" if run["status"] in ("running", "interrupted") else "bad"
        tds = [
            text(names[id(run)]), text(label_of(run, "student")), figure(run["seed"]), text(run["status"], bad),
            text(error.get("stage")), figure(error.get("step")), text(error.get("term")), text(message),
            text(run.get("folder")),
        ]  # fmt: skip
        rows.append(("", tds))
    used = [i for i in range(len(head)) if any(tds[i].html for _, tds in rows)]
    rows = [(kind, [tds[i] for i in used]) for kind, tds in rows]
    return (
        f'<section id="failures"><h2>Not finished: {many(len(runs), "run")}</h2>'
        f"<p class='soft'>In no number above. The same command takes them up again.</p>"
        f"{grid('failed', 'runs that are not finished', [head[i] for i in used], rows, 'cards')}</section>"
    )


def _skipped(skipped: list[str]) -> str:
    if not skipped:
        return ""
    items = "".join(f"<li>{safe(line)}</li>" for line in skipped)
    return (
        f'<section id="skipped"><h2>Skipped: {many(len(skipped), "file")}</h2><p class="soft">Called record.json, and not read.</p>'
        f'<ul class="notes">{items}</ul></section>'
    )


def _runs(runs: list[dict], names: dict[int, str], place: Path | None) -> str:
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
            text(names[id(run)]), text(label_of(run, "teacher") if run.get("teacher") else None), text(label_of(run, "student")),
            figure(run["seed"]), text(run["status"]), Td("" if value is None else percent(value), value),
            text(device), text(commit), link(run.get("folder"), place),
            Td(f"<code>{safe(command)}</code>" if command else "", command), text(versions),
        ]))  # fmt: skip
    used = [i for i in range(len(head)) if any(tds[i].html for _, tds in rows)]
    return (
        f'<section id="runs"><h2>All runs: {len(runs):,}</h2><p class="soft">One line each; its record holds everything: settings, code, '
        f"machine, times.</p>"
        + grid(
            "all",
            "all runs",
            [head[i] for i in used],
            [(k, [tds[i] for i in used]) for k, tds in rows],
            f"scroll lines{' tall' * (len(rows) > 14)}",
        )
        + "</section>"
    )
