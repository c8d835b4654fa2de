"""The picture of a sweep: test score per epoch of every row, and each row against its baseline."""

from __future__ import annotations

import json
from pathlib import Path

from kdrun.errors import KdrunError
from kdrun.report.groups import Block, Row, blocks, difference, teachers
from kdrun.report.look import (
    ABOVE,
    BASELINE,
    BELOW,
    BETWEEN,
    FONT,
    LINE,
    SIDE,
    STEP,
    TEACHER,
    WIDE,
    apart,
    axis_at,
    dress,
    inches,
    ink,
    styles,
)
from kdrun.report.stats import mean_sd
from kdrun.report.table import gain_text


def curves(runs: list[tuple[dict, Path]], path: str | Path) -> Path:
    """Draw the test score per epoch of every row of `runs` = [(record, folder)] into one PNG, and return its path.

    Per block, left: mean over seeds, lowest to highest as a band, the teacher dashed; right: each row against `none`, per
    seed and with the interval of the table. KdrunError if no run is done or a curves.jsonl cannot be read.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [block for block in blocks([record for record, _ in runs]) if any(row.runs for row in block.rows)]
    if not drawn:
        raise KdrunError("no curves to draw: no run is done")
    folders = {id(record): Path(folder) for record, folder in runs}
    gains = [_gains(block) for block in drawn]
    ends = [
        [f"{row.label}  00.00" for row in b.rows] + [f"{label}  00.00" for label, _, _ in teachers(b)] for b in drawn
    ]
    margin = 0.3 + max(inches(label) for labels in ends for label in labels)
    right = max([2.6, *(inches(_gain_label(*gain)) + 0.1 for found in gains for gain in found)])
    wide = SIDE + WIDE + margin + (BETWEEN + right if any(gains) else 0.0) + 0.15
    tall = [max(2.9, LINE * 1.2 * len(labels), STEP * len(found)) for labels, found in zip(ends, gains, strict=True)]
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        size = wide, sum(tall) + len(drawn) * (ABOVE + BELOW)
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        top = size[1]
        for block, found, height in zip(drawn, gains, tall, strict=True):
            bottom = top - ABOVE - height
            colours = styles(block)
            draw_curves(axis_at(figure, SIDE, bottom, WIDE, height), block, folders, colours)
            if found:
                _draw_gains(axis_at(figure, wide - 0.15 - right, bottom, right, height), block, found, colours)
            top = bottom - BELOW
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white")
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


def curves_of(row: Row) -> tuple[list[dict[int, float]], int]:
    """({epoch: test score} of every seed that has a curve, how many have none that can be read)."""
    found, missing = [], 0
    for run in row.runs.values():
        try:
            curve = read_curve(run["folder"]) if run.get("folder") else {}
        except KdrunError:
            curve = {}
        if curve:
            found.append(curve)
        missing += not curve
    return found, missing


def draw_curves(axis, block: Block, folders: dict[int, Path], colours: dict) -> None:
    ends, late, tops, seeds = [], [], [], set()
    for row in block.rows:
        lines = [curve for run in row.runs.values() if (curve := read_curve(folders[id(run)]))]
        epochs = sorted(set.intersection(*map(set, lines))) if lines else []
        if not epochs:
            continue
        values = [[100 * line[epoch] for line in lines] for epoch in epochs]
        means, (colour, dashes) = [mean_sd(at)[0] for at in values], colours[row.label]
        width = 1.8 if len(epochs) < 100 else 1.1
        marker = "" if len(epochs) > 1 else "o"  # one epoch makes no line
        axis.plot(epochs, means, color=colour, linestyle=dashes, linewidth=width, marker=marker, zorder=3)
        lows, highs = [min(at) for at in values], [max(at) for at in values]
        if len(lines) > 1:
            axis.fill_between(epochs, lows, highs, color=colour, alpha=0.15 if len(block.rows) < 7 else 0.06, lw=0)
        ends.append((means[-1], f"{row.label}  {means[-1]:.2f}", colour))
        late += lows[len(lows) // 2 :]
        tops += highs
        seeds.add(len(lines))
    for label, teacher, _ in teachers(block):
        score = 100 * teacher["score"]
        axis.axhline(score, color=TEACHER, linestyle=(0, (4, 3)), linewidth=1.3, zorder=2)
        ends.append((score, f"{label}  {score:.2f}", TEACHER))
        tops.append(score)
    if late:
        # The first half of the epochs may leave below: the end of training is what is compared.
        low = sorted(late)[len(late) // 20]
        room = 0.06 * max(max(tops) - low, 0.5)
        axis.set_ylim(low - room, max(tops) + room)
    from matplotlib.ticker import MaxNLocator

    record = block.rows[0].first
    axis.margins(x=0.02)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")
    axis.set_ylabel(f"{record['metric']['split']} {record['metric']['name']} (%)")
    count = "-".join(map(str, sorted({min(seeds), max(seeds)}))) if seeds else "0"
    title = f"{record['dataset']['name']}, student {record['student']['name']}, {count} seed{'s' * (count != '1')}"
    dress(axis, "y", title, "one run per method" if count == "1" else "mean over seeds, band from lowest to highest")
    _label_ends(axis, ends)


def _label_ends(axis, ends: list[tuple[float, str, str]]) -> None:
    """Name each line beside its right end, outside of the data; labels that would overlap are moved apart."""
    low, high = axis.get_ylim()
    ends = sorted(ends)
    shares = [min(max((value - low) / (high - low), 0.0), 1.0) for value, _, _ in ends]
    gap = LINE / (axis.figure.get_figheight() * axis.get_position().height)
    for (_, label, colour), share, place in zip(ends, shares, apart(shares, gap), strict=True):
        axis.plot((1.005, 1.035), (share, place), transform=axis.transAxes, color=colour, lw=0.8, clip_on=False)
        axis.annotate(label, (1.045, place), xycoords="axes fraction", va="center", fontsize=FONT, color=ink(colour))


def _protocol(block: Block) -> str:
    asked = {run["protocol"] for run in block.done}
    return asked.pop() if len(asked) == 1 else "last"


def _gains(block: Block) -> list[tuple[str, tuple]]:
    """(label, difference) of every row that can be compared with `none`, under the protocol of the records."""
    found = []
    for row in block.rows:
        base = block.baseline_of(row)
        if base and (gain := difference(row, base, _protocol(block)))[0]:
            found.append((row.label, gain))
    return found


def _gain_label(label: str, gain: tuple) -> str:
    return f"{label}   {gain_text(*gain[1:4])}"


def _draw_gains(axis, block: Block, found: list[tuple[str, tuple]], colours: dict) -> None:
    """A ring per seed, the mean and its interval."""
    for height, (label, gain) in enumerate(reversed(found)):
        colour, (_, mean, low, high, each) = colours[label][0], gain
        if low is not None and high is not None:
            axis.plot([100 * low, 100 * high], [height] * 2, color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
        axis.plot([100 * x for x in each], [height] * len(each), "o", ms=5, mfc="white", mec=colour, mew=1.1, zorder=4)
        axis.plot([100 * mean], [height], "D", ms=6, color=colour, zorder=3)
        axis.annotate(
            _gain_label(label, gain),
            (0, height),
            xycoords=("axes fraction", "data"),
            xytext=(0, 9),
            textcoords="offset points",
            fontsize=FONT,
            color=ink(colour),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # or the line at zero runs through the letters
        )
    axis.axvline(0, color=BASELINE, linewidth=1, zorder=1)
    axis.margins(x=0.08)
    spare = max(3 - len(found), 0) / 2  # one or two rows stand in the middle instead of far apart
    axis.set_ylim(-0.6 - spare, len(found) - 0.2 + spare)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(f"points over none ({_protocol(block)})")
    several = any(gain[0] > 1 for _, gain in found)
    dress(axis, "x", "Against none", "ring: a seed; bar: 95 % interval" if several else "one seed: no interval")
