"""HEAD"""
def summary(records: list[dict], protocol: str | None = None) -> Group:
    """A rich renderable: per block a caption, a table and notes; then every run that is not done, with its error.

    `protocol` (last, best, holdout) picks the score that is compared: by default what the records agree on, else last.
    """
    asked = {record["protocol"] for record in records}
    protocol = protocol or (asked.pop() if len(asked) == 1 else "last")
    parts: list = []
    for block in blocks(records):
        if block.rows:
            parts += [_caption(block, protocol), Text(), _table(block, protocol)]
            parts += [Text(f"note: {note}", style="yellow") for note in _notes(block)]
            parts.append(Text())
    parts += _unfinished(records)
    if not parts:
        parts = [Text("no runs")]
    return Group(*parts)


def text(records: list[dict], protocol: str | None = None, width: int = 120) -> str:
    """`summary` as plain text without colours, for files and logs."""
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False, highlight=False)
    console.print(summary(records, protocol))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


# ------------------------------------------------------------------------------------------------------- the table


def _caption(block: Block, protocol: str) -> Text:
    record = block.rows[0].first
    data, student = record["dataset"], record["student"]
    sizes, parts = f"{data['train_n']:,}/{data['test_n']:,}", "train/test"
    if data["holdout_n"]:
        sizes, parts = f"{data['train_n']:,}/{data['holdout_n']:,}/{data['test_n']:,}", "train/holdout/test"
    teachers = sorted({run["teacher"]["name"] for run in block.done if run["teacher"]})
    recipes = {(run["recipe"].get("name"), run["recipe"].get("epochs")) for run in block.done}
    name, epochs = recipes.pop() if len(recipes) == 1 else (None, None)
    recipe = f"{name or ''}{', ' if name and epochs else ''}{f'{epochs} epochs' if epochs else ''}"
    first = [
        f"{data['name']} {sizes} ({parts})",
        f"student {student['name']} ({_millions(student['params'])} params)",
        f"teacher {' or '.join(teachers)}" if teachers else "no teacher",
        recipe,
    ]
    metric = record["metric"]
    second = f"{metric['split']} {metric['name']} in percent, mean ± sd over seeds; protocol: {PROTOCOLS[protocol]}"
    compared = any(block.baseline_of(row) for row in block.rows)
    third = "95 % interval, paired by seed: it covers how seeds vary on this fixed test set, not other test images"
    return Text("\n".join([" | ".join(filter(None, first)), second] + ([third] if compared else [])), style="dim")


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1e5 else f"{count / 1e3:.1f}k"


def _table(block: Block, protocol: str) -> Table:
    columns = ["last", "best"] + ["holdout"] * any(run["holdout"] for run in block.done)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("")
    table.add_column("seeds", justify="right")
    for column in columns:
        table.add_column(column, no_wrap=True)
    compared = any(block.baseline_of(row) for row in block.rows)
    if compared:
        table.add_column(f"against none ({protocol})", no_wrap=True)
    for row in block.rows:
        if row.runs:
            cells = [_spread(row.scores(column)) for column in columns]
            _add(table, row.label, str(len(row.runs)), *cells, _against(row, block.baseline_of(row), protocol))
        for seed, results in row.disputed.items():
            for number, run in enumerate(results, start=1):
                label = f"{row.label} seed {seed}, result {number} of {len(results)}"
                _add(table, label, "-", *[_spread([value] if (value := _score(run, c)) else []) for c in columns], "")
    for label, teacher, column in _teachers(block):
        _add(table, label, "1", *[_percent(teacher["score"]) if c == column else "" for c in columns], "")
    return table


def _add(table: Table, *cells: str) -> None:
    # Text, not str: rich would read [+0.20, +2.26] as markup. The last cell has no column when nothing is compared.
    table.add_row(*[Text(cell) for cell in cells[: len(table.columns)]])


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _spread(scores: list[float]) -> str:
    if not scores:
        return ""
    mean, sd = mean_sd(scores)
    return _percent(mean) if sd is None else f"{_percent(mean)} ± {_percent(sd)}"


def _against(row: Row, base: Row | None, protocol: str) -> str:
    if row.baseline:
        return ""
    if base is None:
        return "no none of this recipe"
    n, gain, low, high, _ = difference(row, base, protocol)
    if n == 0:
        return "no seed in common"
    return f"{_gain(gain, low, high)}{f' ({n} seeds)' if 1 < n < len(row.runs) else ''}"


def _gain(gain: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"{100 * gain:+.2f} one seed"
    return f"{100 * gain:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def _teachers(block: Block) -> list[tuple[str, dict, str]]:
    """(label, teacher, column) of each teacher with a score; the column says which of its epochs taught."""
    found: dict[str, tuple[dict, str]] = {}
    for run in block.done:
        if run["teacher"] and run["teacher"]["score"] is not None:
            asked = run["identity"].get("teacher")
            best = isinstance(asked, dict) and asked.get("weights") == "best"
            found.setdefault(run["teacher"]["sha256"], (run["teacher"], "best" if best else "last"))
    names = Counter(teacher["name"] for teacher, _ in found.values())
    return [
        (f"teacher {teacher['name']}{f' [{sha[:6]}]' if names[teacher['name']] > 1 else ''}", teacher, column)
        for sha, (teacher, column) in found.items()
    ]


def _notes(block: Block) -> list[str]:
    """What a reader must know before trusting the table: disputed results, unpaired seeds, mixed sources."""
    notes = []
    for row in block.rows:
        for seed, results in row.disputed.items():
            where = ", ".join(
                f"{_percent(run['last']['score'])} ({run['host']}, {run['time']['end']})" for run in results
            )
            found = f"{row.label} seed {seed} has {len(results)} different results: {where}"
            notes.append(f"{found}; all are left out of the mean")
        base = block.baseline_of(row)
        for seed, other in base.runs.items() if base else ():
            if seed in row.runs and not _is_pair(row.runs[seed], other):
                notes.append(f"{row.label} seed {seed} and none began from different weights: not a pair, left out")
    sources: dict[str, set] = {}
    for run in block.done:
        for method, sha in run["code"]["method"].items():
            sources.setdefault(f"the source of {method}", set()).add(sha)
        sources.setdefault(f"the source of {run['student']['name']}", set()).add(run["code"]["student"])
        sources.setdefault("device", set()).add(run["engine"]["device"])
        sources.setdefault("torch", set()).add(run["versions"].get("torch"))
        if run["teacher"]:
            asked = json.dumps(run["identity"].get("teacher"), sort_keys=True)
            sources.setdefault(f"the weights of teacher {run['teacher']['name']}\0{asked}", set()).add(
                run["teacher"]["sha256"]
            )
    mixed = sorted({what.split("\0")[0] for what, values in sources.items() if len(values) > 1})
    return notes + ([f"this table mixes different versions of {', '.join(mixed)}"] if mixed else [])


def _unfinished(records: list[dict]) -> list[Text]:
    lines = []
    for record in records:
        if record["status"] != "done":
            message = ((record["error"] or {}).get("message") or "").strip().splitlines()
            reason = f": {message[0]}" if message else ""
            style = "red" if record["status"] in ("failed", "nan", "oom") else ""
            lines.append(Text(f"{record['status']:<11} {_name(record)}{reason}", style=style))
    return lines


