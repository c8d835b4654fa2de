"""What a sweep found: a table of mean, spread and paired difference per group of runs, and its curves in one picture.

A group is the runs that differ in nothing but the seed. Groups are compared within a block: one dataset, one student.
Scores are fractions in the records and percent here.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from kdrun.errors import KdrunError
from kdrun.report.stats import mean_sd, paired

PROTOCOLS = {
    "last": "last epoch",
    "best": "best epoch, chosen on the test set",
    "holdout": "epoch chosen on the holdout",
}
# Okabe and Ito's colours for all kinds of colour vision, less yellow (pale on white); the baseline is near black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE, TEACHER = "#222222", "#888888"
DASHES = ("-", (0, (6, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass
class Row:
    """The done runs of one group. A seed with different results is in `disputed`, and in nothing that is averaged."""

    label: str
    runs: dict[int, dict] = field(default_factory=dict)
    disputed: dict[int, list[dict]] = field(default_factory=dict)

    @property
    def first(self) -> dict:
        """A run to read the group's settings from."""
        return next(iter(self.runs.values()), None) or next(iter(self.disputed.values()))[0]

    @property
    def baseline(self) -> bool:
        return self.first["method"] == ["none"]

    def scores(self, column: str) -> list[float]:
        return [value for run in self.runs.values() if (value := _score(run, column)) is not None]


@dataclass
class Block:
    """What can stand in one table: the groups of one dataset and student, the baselines first."""

    records: list[dict]  # all of them, the unfinished ones too
    rows: list[Row]

    @property
    def done(self) -> list[dict]:
        return [record for record in self.records if record["status"] == "done"]

    def baseline_of(self, row: Row) -> Row | None:
        """The `none` of the same recipe and precision in this block; of several, the one whose identity is nearest."""

        def setting(other: Row) -> list:
            identity, record = other.first["identity"], other.first
            return [identity.get("recipe", record["recipe"]), identity.get("precision", record["engine"]["precision"])]

        def shared(other: Row) -> int:
            return len(_flat(row.first["identity"]).items() & _flat(other.first["identity"]).items())

        fitting = [other for other in self.rows if other.baseline and setting(other) == setting(row)]
        return None if row.baseline else max(fitting, key=shared, default=None)


def blocks(records: list[dict]) -> list[Block]:
    """Sort records into blocks and rows, in the order in which they come. Runs that only taught get no block."""
    teachers = {record["teacher"]["run_id"] for record in records if record["teacher"]}
    sorted_records: dict[str, list[dict]] = {}
    for record in records:
        data, identity = record["dataset"], record["identity"]
        key = [data["name"], data["checksum"], data["train_n"], data["holdout_n"], identity.get("dataset")]
        key += [record["student"]["name"], identity.get("student")]
        sorted_records.setdefault(json.dumps(key, sort_keys=True), []).append(record)
    return [
        Block(members, _rows(members))
        for members in sorted_records.values()
        if not all(record["id"] in teachers for record in members)
    ]


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


def difference(row: Row, base: Row, column: str) -> tuple[int, float, float | None, float | None, list[float]]:
    """`row` against `base` over the seeds of both: (pairs, difference, low, high, differences per seed), as fractions.

    A pair needs one seed and the same initial weights; (0, nan, None, None, []) if there is none.
    """
    pairs = [
        (_score(run, column), _score(base.runs[seed], column))
        for seed, run in sorted(row.runs.items())
        if seed in base.runs and _is_pair(run, base.runs[seed])
    ]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        return 0, float("nan"), None, None, []
    ours, theirs = zip(*pairs, strict=True)
    return len(pairs), *paired(ours, theirs), [x - y for x, y in zip(ours, theirs, strict=True)]


def _is_pair(run: dict, other: dict) -> bool:
    return run["student"]["init_sha256"] == other["student"]["init_sha256"]


# ---------------------------------------------------------------------------------------------- grouping and names


def _rows(records: list[dict]) -> list[Row]:
    """The rows of one block. Copies of one result count once; different results of one identity are not averaged."""
    labels = _labels(records)
    found: dict[str, dict[int, list[dict]]] = {}
    for record in records:
        if record["status"] == "done":
            results = found.setdefault(record["group"], {}).setdefault(record["seed"], [])
            if _result(record) not in map(_result, results):
                results.append(record)
    rows = []
    for group, seeds in found.items():
        row = Row(labels[group])
        for seed, results in seeds.items():
            if len(results) == 1:
                row.runs[seed] = results[0]
            else:
                row.disputed[seed] = results
        rows.append(row)
    return sorted(rows, key=lambda row: not row.baseline)  # stable: else in the order given


def _result(record: dict) -> tuple:
    return record["student"]["sha256"], record["last"]["score"], record["best"]["score"], _score(record, "holdout")


def _score(record: dict, column: str) -> float | None:
    """The test score of a candidate epoch, as a fraction."""
    chosen = record[column]
    return chosen and chosen["test_score" if column == "holdout" else "score"]


def _labels(records: list[dict]) -> dict[str, str]:
    """{group: label}: the methods joined by +, and what tells groups of the same ones apart: `kd (recipe.lr=0.1)`."""
    groups = {record["group"]: record for record in records}
    labels = {}
    for group, record in groups.items():
        rivals = [_flat(other["identity"]) for other in groups.values() if other["method"] == record["method"]]
        keys = sorted({key for rival in rivals for key in rival if len({other.get(key, "-") for other in rivals}) > 1})
        # A name that differs stands for all that lies under it.
        named = {key.removesuffix("name") for key in keys if key.endswith(".name")}
        keys = [key for key in keys if key.endswith(".name") or not any(key.startswith(name) for name in named)]
        own, prefix = _flat(record["identity"]), f"method.{record['method'][0]}."
        shown = [f"{key.removeprefix(prefix).removesuffix('.name')}={_short(own.get(key, '-'))}" for key in keys]
        label = "+".join(record["method"])
        labels[group] = f"{label} ({', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''})" if shown else label
    repeated = {label for label, count in Counter(labels.values()).items() if count > 1}
    return {group: f"{label} [{group[:6]}]" if label in repeated else label for group, label in labels.items()}


def _flat(identity: dict, prefix: str = "") -> dict[str, str]:
    """{dotted key: value as text} of an identity, without its seed and schema number."""
    flat: dict[str, str] = {}
    for key, value in identity.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif prefix or key not in ("seed", "schema"):
            is_number = isinstance(value, float) and value.is_integer()  # 4 and 4.0 are one number
            flat[prefix + key] = str(int(value) if is_number else value).replace("'", "").replace(", ", ",")
    return flat


def _short(value: str) -> str:
    return value if len(value) <= 24 else f"{value[:8]}..."


def _name(record: dict) -> str:
    return f"{'+'.join(record['method'])} {record['student']['name']} seed {record['seed']}"


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


# ------------------------------------------------------------------------------------------------------ the picture


def curves(runs: list[tuple[dict, Path]], path: str | Path) -> Path:
    """Draw the test score per epoch of every group of `runs` = [(record, folder)] into one PNG, and return its path.

    Per block, left: mean over seeds, lowest to highest as a band, the teacher dashed; right: each group against `none`,
    per seed and with the interval of the table. KdrunError if no run is done or a curves.jsonl cannot be read.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [block for block in blocks([record for record, _ in runs]) if any(row.runs for row in block.rows)]
    if not drawn:
        raise KdrunError("no curves to draw: no run is done")
    folders = {id(record): Path(folder) for record, folder in runs}
    with plt.rc_context(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.wspace": 0.05,
        }
    ):
        heights = [max(4.4, 1.2 + 0.36 * len(block.rows)) for block in drawn]
        figure, axes = plt.subplots(
            len(drawn),
            2,
            figsize=(9, sum(heights)),
            width_ratios=(1.75, 1),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        for block, (left, right) in zip(drawn, axes, strict=True):
            colours = _colours(block)
            _draw_curves(left, block, folders, colours)
            _draw_gains(right, block, colours)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200, facecolor="white")
        plt.close(figure)
    return path


def read_curve(folder: str | Path) -> dict[int, float]:
    """{epoch: test score as a fraction} of stage distil, from folder/curves.jsonl. KdrunError if a line is broken."""
    path, scores = Path(folder) / "curves.jsonl", {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            point = json.loads(line)
            if point["stage"] == "distil" and point["test"] is not None:
                scores[point["epoch"]] = point["test"]["score"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KdrunError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    return scores


def _colours(block: Block) -> dict[str, tuple]:
    """{label: (colour, dashes)}: baselines near black; when the colours are used up, the dashes change."""
    style: dict[str, tuple] = {}
    used: Counter[bool] = Counter()
    for row in block.rows:
        number = used[row.baseline]
        used[row.baseline] += 1
        colour = BASELINE if row.baseline else COLOURS[number % len(COLOURS)]
        style[row.label] = colour, DASHES[(number if row.baseline else number // len(COLOURS)) % len(DASHES)]
    return style


def _draw_curves(axis, block: Block, folders: dict[int, Path], colours: dict) -> None:
    ends, late, tops, seeds = [], [], [], set()
    for row in block.rows:
        lines = [curve for run in row.runs.values() if (curve := read_curve(folders[id(run)]))]
        epochs = sorted(set.intersection(*map(set, lines))) if lines else []
        if not epochs:
            continue
        values = [[100 * line[epoch] for line in lines] for epoch in epochs]
        means, (colour, dashes) = [mean_sd(at)[0] for at in values], colours[row.label]
        axis.plot(epochs, means, color=colour, linestyle=dashes, linewidth=1.8 if len(epochs) < 100 else 1.1, zorder=3)
        lows, highs = [min(at) for at in values], [max(at) for at in values]
        if len(lines) > 1:
            axis.fill_between(epochs, lows, highs, color=colour, alpha=0.15 if len(block.rows) < 7 else 0.06, lw=0)
        ends.append((means[-1], f"{row.label}  {means[-1]:.2f}", colour))
        late += lows[len(lows) // 3 :]
        tops += highs
        seeds.add(len(lines))
    for label, teacher, _ in _teachers(block):
        score = 100 * teacher["score"]
        axis.axhline(score, color=TEACHER, linestyle=(0, (4, 3)), linewidth=1.3, zorder=2)
        ends.append((score, f"{label}  {score:.2f}", TEACHER))
        tops.append(score)
    if late:
        # The first third of the epochs may leave below: the end of training is what is compared.
        low = sorted(late)[len(late) // 20]
        room = 0.06 * max(max(tops) - low, 0.5)
        axis.set_ylim(low - room, max(tops) + room)
    record = block.rows[0].first
    axis.margins(x=0.02)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("epoch")
    axis.set_ylabel(f"{record['metric']['split']} {record['metric']['name']} (%)")
    count = "-".join(map(str, sorted({min(seeds), max(seeds)}))) if seeds else "0"
    title = f"{record['dataset']['name']}, student {record['student']['name']}, {count} seed{'s' * (count != '1')}"
    _dress(axis, "y", title, "one run per method" if count == "1" else "mean over seeds, band from lowest to highest")
    _label_ends(axis, ends)


def _dress(axis, grid: str, title: str, subtitle: str) -> None:
    axis.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_title(f"{title}\n", loc="left", fontweight="bold", fontsize=11.5)
    axis.text(0, 1.025, subtitle, transform=axis.transAxes, fontsize=9, color="#666666")


def _ink(colour: str) -> tuple[float, ...]:
    """A line's colour, darker: letters are thinner than lines and need more contrast."""
    from matplotlib.colors import to_rgb

    return tuple(0.75 * part for part in to_rgb(colour))


def _label_ends(axis, ends: list[tuple[float, str, str]]) -> None:
    """Name each line beside its right end, outside of the data; labels that would overlap are moved apart."""
    low, high = axis.get_ylim()
    ends = sorted(ends)
    shares = [min(max((value - low) / (high - low), 0.0), 1.0) for value, _, _ in ends]
    gap = 0.18 / (axis.figure.get_figheight() * axis.get_position().height)  # a line of text, 0.18 inch, of the height
    for (_, label, colour), share, place in zip(ends, shares, _apart(shares, gap), strict=True):
        axis.plot((1.005, 1.035), (share, place), transform=axis.transAxes, color=colour, lw=0.8, clip_on=False)
        axis.annotate(label, (1.045, place), xycoords="axes fraction", va="center", fontsize=9.5, color=_ink(colour))


def _apart(places: list[float], gap: float) -> list[float]:
    """The nearest places (least squares) at least `gap` apart, in order: isotonic regression of place - i gap."""
    pools: list[list[float]] = []
    for i, place in enumerate(places):
        pools.append([place - i * gap])
        while len(pools) > 1 and mean_sd(pools[-2])[0] > mean_sd(pools[-1])[0]:
            pools[-2:] = [pools[-2] + pools[-1]]
    moved = [mean_sd(pool)[0] for pool in pools for _ in pool]
    return [place + i * gap for i, place in enumerate(moved)]


def _draw_gains(axis, block: Block, colours: dict) -> None:
    """Each group against `none` under the protocol of the records: a ring per seed, the mean and its interval."""
    asked = {run["protocol"] for run in block.done}
    protocol = asked.pop() if len(asked) == 1 else "last"
    found = []
    for row in block.rows:
        base = block.baseline_of(row)
        if base and (gains := difference(row, base, protocol))[0]:
            found.append((row.label, gains))
    if not found:
        axis.set_axis_off()
        return
    for height, (label, (_, gain, low, high, each)) in enumerate(reversed(found)):
        colour = colours[label][0]
        if low is not None and high is not None:
            axis.plot([100 * low, 100 * high], [height] * 2, color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
        axis.plot([100 * x for x in each], [height] * len(each), "o", ms=5, mfc="white", mec=colour, mew=1.1, zorder=3)
        axis.plot([100 * gain], [height], "D", ms=6, color=colour, zorder=4)
        axis.annotate(
            f"{label}   {_gain(gain, low, high)}",
            (0, height),
            xycoords=("axes fraction", "data"),
            xytext=(0, 9),
            textcoords="offset points",
            fontsize=9.5,
            color=_ink(colour),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # or the line at zero runs through the letters
        )
    axis.axvline(0, color=BASELINE, linewidth=1, zorder=1)
    axis.margins(x=0.08)
    axis.set_ylim(-0.6, len(found) - 0.2)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(f"points over none ({protocol})")
    several = any(gains[0] > 1 for _, gains in found)
    _dress(axis, "x", "Against none", "a ring per seed; bar: 95 % interval" if several else "one seed: no interval")
