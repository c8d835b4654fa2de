"""What a sweep found, as a table of text: mean, spread and paired difference per row, with what a reader must know.

Scores are fractions in the records and percent here. Nothing is cut or folded: where a table is wider than the screen, each
row's name gets a line of its own; captions are laid out for the width; notes and failures are one line each.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from kdrun.report.groups import Block, Row, blocks, difference, name, notes, score, teachers
from kdrun.report.labels import natural
from kdrun.report.models import Models
from kdrun.report.stats import mean_sd
from kdrun.runs.identity import label_of

PROTOCOLS = {
    "last": "last epoch",
    "best": "best epoch (chosen on the test set)",
    "holdout": "epoch chosen on the holdout",
}


def summary(records: list[dict], protocol: str | None = None, width: int = 80) -> Text:
    """Per block a caption, a table and notes; then every run that is not done, with its error. Print it with soft_wrap.

    `protocol` (last, best, holdout) picks the score that is compared: by default what the records agree on, else last.
    """
    asked = {record["protocol"] for record in records}
    protocol = protocol or (asked.pop() if len(asked) == 1 else "last")
    lines: list[tuple[str, str]] = []
    for block in blocks(records):
        if block.rows:
            lines += [(line, "dim") for line in _caption(block, protocol, width)] + [("", "")]
            lines += [(line, "" if number else "bold") for number, line in enumerate(_table(block, protocol, width))]
            said = [*notes(block.rows, block.baseline_of), *block.notes]
            lines += [(f"note: {note}", "yellow") for note in said] + [("", "")]
    lines += [(line, "red") for line in _unfinished(records)]
    while lines and not lines[-1][0]:
        lines.pop()
    return Text("\n").join(Text(*line) for line in lines) if lines else Text("no runs")


def text(records: list[dict], protocol: str | None = None, width: int = 120) -> str:
    """`summary` without colours, for files and logs."""
    return f"{summary(records, protocol, width).plain}\n"


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def spread_text(mean: float, sd: float | None) -> str:
    """mean ± deviation in percent; the mean alone where there is no deviation."""
    return percent(mean) if sd is None else f"{percent(mean)} ± {percent(sd)}"


def gain_text(gain: float, low: float | None, high: float | None, test: str = "one seed") -> str:
    """A difference in points, never without its interval or, for one seed, what a test of its images says."""
    if low is None or high is None:
        return f"{100 * gain:+.2f} {test}"
    return f"{100 * gain:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _caption(block: Block, protocol: str, width: int) -> list[str]:
    record = block.rows[0].first
    data, student = record["dataset"], record["student"]
    sizes, parts = f"{data['train_n']:,}/{data['test_n']:,}", "train/test"
    if data["holdout_n"]:
        sizes, parts = f"{data['train_n']:,}/{data['holdout_n']:,}/{data['test_n']:,}", "train/holdout/test"
    models = block.models or Models(block.records)
    names = sorted({str(models.called(run, "teacher")) for run in block.done if run["teacher"]}, key=natural)
    recipes = {(run["recipe"].get("name"), run["recipe"].get("epochs")) for run in block.done}
    recipe, epochs = recipes.pop() if len(recipes) == 1 else (None, None)
    first = [
        f"{label_of(record, 'dataset')} {sizes} {parts}",
        f"{' or '.join(names) or 'no teacher'} -> {models.called(record, 'student')} ({_millions(student['params'])})",
        ", ".join(filter(None, [recipe, epochs and f"{epochs} epoch{'s' * (epochs != 1)}"])),
    ]
    metric = record["metrics"][0]
    second = [f"test {metric['label']} in %", "mean ± sd of n seeds", PROTOCOLS[protocol]]
    third = ["[95 % interval], paired by seed", "covers seeds, not another draw of test images"]
    compared = any(block.baseline_of(row) for row in block.rows)
    return [*_fill(first, " | ", width), *_fill(second, ", ", width), *(_fill(third, ": ", width) if compared else [])]


def _fill(parts: Iterable[str], between: str, width: int) -> list[str]:
    """Join parts into as few lines of at most `width` as they need; a part is not divided."""
    lines: list[str] = []
    for part in filter(None, parts):
        if lines and len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def _table(block: Block, protocol: str, width: int) -> list[str]:
    columns = ["last", "best"] + ["holdout"] * any(run["holdout"] for run in block.done)
    compared = any(block.baseline_of(row) for row in block.rows)
    head = ["", "n", *columns, *["against none" if protocol == "last" else f"against none ({protocol})"] * compared]
    rows = [head]
    for row in block.rows:
        if row.runs:
            cells = [_spread(row.scores(column)) for column in columns]
            rows.append([row.label, str(len(row.runs)), *cells, _against(block, row, protocol)])
        for seed, results in row.disputed.items():
            for number, run in enumerate(results, start=1):
                label = f"{row.label} seed {seed}, result {number} of {len(results)}"
                rows.append(
                    [label, "-", *[_spread([x for x in [score(run, column)] if x is not None]) for column in columns]]
                )
    for label, teacher, column in teachers(block):
        rows.append([label, "1", *[percent(teacher["score"]) if c == column else "" for c in columns]])
    return _layout([[*row, ""][: len(head)] for row in rows], width)


def _layout(rows: list[list[str]], width: int) -> list[str]:
    """Columns side by side, the second one to the right; names on lines of their own where that is too wide."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gap = next((gap for gap in (3, 2) if sum(wide) + gap * (len(wide) - 1) <= width), None)

    def numbers(row: list[str], between: str) -> str:
        cells = [row[1].rjust(wide[1]), *(cell.ljust(room) for cell, room in zip(row[2:], wide[2:], strict=True))]
        return between.join(cells).rstrip()

    if gap is None:
        return [
            line for row in rows for line in ([row[0]] if row[0] else []) + [f"  {numbers(row, '  ')}"] if line.strip()
        ]
    return [f"{row[0].ljust(wide[0])}{' ' * gap}{numbers(row, ' ' * gap)}" for row in rows]


def _spread(scores: Iterable[float]) -> str:
    scores = list(scores)
    return spread_text(*mean_sd(scores)) if scores else ""


def _against(block: Block, row: Row, protocol: str) -> str:
    if row.baseline:
        return ""
    base = block.baseline_of(row)
    if base is None:
        return block.why_alone(row)
    n, gain, low, high, _ = difference(row, base, protocol)
    if n == 0:
        return "no seed in common"
    return f"{gain_text(gain, low, high)}{f' (n={n})' if 1 < n < len(row.runs) else ''}"


def _unfinished(records: list[dict]) -> list[str]:
    lines = []
    for record in records:
        if record["status"] != "done":
            message = ((record["error"] or {}).get("message") or "").strip().splitlines()
            lines.append(f"{record['status']:<11} {name(record)}{f': {message[0]}' if message else ''}")
    return lines
