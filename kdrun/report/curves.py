"""The picture of a sweep: test score per epoch of every row, and each row against its baseline."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.report.forest import columns, forest, height
from kdrun.report.groups import Block, Row, blocks, difference, teachers
from kdrun.report.look import (
    ABOVE,
    BELOW,
    BETWEEN,
    LINE,
    SIDE,
    TEACHER,
    WIDE,
    Look,
    apart,
    axis_at,
    axis_size,
    beside,
    family,
    head,
    head_room,
    inches,
    looks,
)
from kdrun.report.stats import mean_sd
from kdrun.report.strips import Strip, gain, window
from kdrun.runs.identity import label_of

Curve = dict[int, float]  # {epoch: test score as a fraction}


def curves(runs: list[tuple[dict, Path]], path: str | Path) -> Path:
    """Draw the test score per epoch of every row of `runs` = [(record, folder)] into one PNG, and return its path.

    Per block, left: mean over seeds, lowest to highest as a band, the teacher dashed; right: each row against `none`, per
    seed and with the interval of the table. A run whose curves.jsonl cannot be read is left out of the lines; the picture
    and stderr say which. KdrunError if no run is done.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = [{**record, "folder": str(folder)} for record, folder in runs]
    drawn = [block for block in blocks(records) if any(row.runs for row in block.rows)]
    if not drawn:
        raise KdrunError("no curves to draw: no run is done")
    known, lost = read_curves([row for block in drawn for row in block.rows])
    for line in lost:
        print(f"note     {line}", file=sys.stderr)
    # No text of a record is a formula: without parse_math "$" is a letter.
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}):
        panels = [_Panel(block) for block in drawn]
        margin = max(panel.margin for panel in panels)
        wide = SIDE + WIDE + margin + max(panel.right for panel in panels) + 0.15
        foot = foot_lines(lost, wide)
        figure = Figure(figsize=(wide, sum(panel.tall + ABOVE + BELOW for panel in panels) + 0.18 * len(foot)))
        FigureCanvasAgg(figure)
        top = figure.get_figheight()
        for panel in panels:
            bottom = top - ABOVE - panel.tall
            axis = axis_at(figure, SIDE, bottom, WIDE, panel.tall)
            draw_curves(axis, panel.block, known, panel.looks)
            if panel.gains:
                panel.draw_gains(figure, SIDE + WIDE + margin, bottom)
            top = bottom - BELOW
        draw_foot(figure, foot)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, facecolor="white")
    return path


class _Panel:
    """The two pictures of a block, and the inches that they need."""

    def __init__(self, block: Block):
        self.block, self.looks = block, looks({row.label: family(row.label, [row]) for row in block.rows})
        self.protocol = _protocol(block)
        self.gains = self._gains()
        names = [row.label for row in block.rows] + [label for label, _, _ in teachers(block)]
        space = BETWEEN if self.gains else 0.0
        self.margin = space + max(
            [*(0.3 + inches(f"{name}  00.00") for name in names), head_room(title_of(block)) - WIDE]
        )
        self.tall = max(2.9, LINE * 1.2 * len(names), height(self.gains))
        self.right = max(sum(columns(self.gains)) + 2.6, head_room(self._said())) if self.gains else 0.0

    def _gains(self) -> list[Strip]:
        """Every row that can be compared with `none`, under the protocol of the records."""
        found = []
        for row in self.block.rows:
            base = self.block.baseline_of(row)
            if base and (against := difference(row, base, self.protocol))[0]:
                found.append(gain(row.label, against, self.looks[row.label]))
        return found

    def _said(self) -> list[str]:
        several = any(len(strip.dots) > 1 for strip in self.gains)
        return ["Against none", "ring: a seed; bar: 95 % interval" if several else "one seed: no interval"]

    def draw_gains(self, figure: Any, left: float, bottom: float) -> None:
        names, numbers = columns(self.gains)
        alone = [mean_sd(found)[0] for row in self.block.rows if row.baseline and (found := row.scores(self.protocol))]
        least, most = (-100 * alone[0], 100 - 100 * alone[0]) if len(alone) == 1 else (-100.0, 100.0)
        tall = height(self.gains)
        place = left, bottom + self.tall - tall, max(self.right - names - numbers, 2.6)
        axis = forest(figure, place, self.gains, window(self.gains, 0.0, least, most), 0.0)
        axis.set_xlabel(f"points over none ({self.protocol})")
        head(axis, "x", self._said(), names)


def _protocol(block: Block) -> str:
    asked = {run["protocol"] for run in block.done}
    return asked.pop() if len(asked) == 1 else "last"


# What a run wrote per epoch ----------------------------------------------------------------------------------------------


def read_curve(folder: str | Path) -> Curve:
    """The test scores of stage distil, from folder/curves.jsonl. KdrunError that says what is wrong with it, and in which line."""
    path, scores = Path(folder) / "curves.jsonl", {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise KdrunError(f"{path} cannot be read ({reason})") from error
    for number, line in enumerate(lines, 1):
        try:
            if line.strip() and (point := _point(line)):
                scores[point[0]] = point[1]
        except KdrunError as error:
            raise KdrunError(f"{path} cannot be read (line {number}: {error})") from error
    if not scores:
        raise KdrunError(f"{path} holds no test score")
    return scores


def _point(line: str) -> tuple[int, float] | None:
    """(epoch, test score) of a line; None for another stage, or for an epoch without a test. KdrunError if it is broken."""
    try:
        point = json.loads(line)
        if point["stage"] != "distil" or point["test"] is None:
            return None
        epoch, value = point["epoch"], point["test"]["score"]
    except KeyError as error:
        raise KdrunError(f"no {error}; another version wrote it?") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise KdrunError("torn, or not of kdrun") from error
    if not isinstance(epoch, int) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN is not
        raise KdrunError(f"epoch {str(epoch)[:20]}, score {str(value)[:20]}: no accuracy of an epoch")
    return epoch, value


def read_curves(rows: Iterable[Row]) -> tuple[dict[int, Curve], list[str]]:
    """({id of a run's dict: its curve}, a line for every run whose curve cannot be drawn)."""
    known: dict[int, Curve] = {}
    lost: list[str] = []
    for row in rows:
        for seed, run in row.runs.items():
            try:
                if not run.get("folder"):
                    raise KdrunError("its folder is not known")
                known[id(run)] = read_curve(run["folder"])
            except KdrunError as error:
                lost.append(f"{row.label} seed {seed} is not in the curves: {error}")
    return known, lost


def over_seeds(row: Row, known: Mapping[int, Curve]) -> tuple[list[int], list[list[float]]]:
    """(epochs that all seeds have, per epoch the scores of the seeds in percent); empty where no curve is known."""
    lines = [known[id(run)] for run in row.runs.values() if id(run) in known]
    epochs = sorted(set.intersection(*map(set, lines))) if lines else []
    return epochs, [[100 * line[epoch] for line in lines] for epoch in epochs]


def heights(values: Sequence[list[list[float]]], taught: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest accuracy that learning curves show, in percent; nothing beyond 0 and 100.

    The first half of the epochs may leave below: the end of training is what is compared. A teacher far above is not shown.
    """
    late = sorted(min(at) for each in values for at in each[len(each) // 2 :])
    low, top = late[len(late) // 20], max(max(at) for each in values for at in each)
    top = max([top, *(value for value in taught if value < top + 0.6 * max(top - low, 1.0))])
    room = 0.06 * max(top - low, 0.5)
    return max(low - room, 0.0), min(top + room, 100.0)


def foot_lines(lost: Sequence[str], wide: float) -> list[str]:
    """What is not in the picture, as lines of small print that fit into so many inches."""
    lines = [part for line in lost[:6] for part in textwrap.wrap(line, int(wide / 0.085))]
    return lines + [f"and {len(lost) - 6} more runs"] * (len(lost) > 6)


def draw_foot(figure: Any, lines: Sequence[str]) -> None:
    wide, tall = figure.get_size_inches()
    for number, line in enumerate(reversed(lines)):
        figure.text(0.1 / wide, (0.08 + 0.18 * number) / tall, line, fontsize=8.5, color="#8a4b00")


# Lines -------------------------------------------------------------------------------------------------------------------


def draw_curves(axis: Any, block: Block, known: Mapping[int, Curve], styles: Mapping[str, Look]) -> None:
    """A line per row that has a curve, its band, the teachers, and all their names beside the right end."""
    from matplotlib.ticker import MaxNLocator

    drawn = [(row, *over_seeds(row, known)) for row in block.rows]
    drawn = [(row, epochs, values) for row, epochs, values in drawn if epochs]
    taught = [(label, 100 * teacher["score"]) for label, teacher, _ in teachers(block)]
    if drawn:
        axis.set_ylim(*heights([values for _, _, values in drawn], [value for _, value in taught]))
    low, high = axis.get_ylim() if drawn else (0.0, 100.0)
    axis.set_ylim(low, high)
    ends = []
    for label, value in taught:
        where = "" if low <= value <= high else " ↑" if value > high else " ↓"
        ends.append((value, f"{label}  {value:.2f}{where}", TEACHER.day))
        if not where:
            axis.axhline(value, color=TEACHER.day, linestyle=(0, (4, 3)), linewidth=1.3, zorder=2)
    for row, epochs, values in drawn:
        means, look = [mean_sd(at)[0] for at in values], styles[row.label]
        axis.plot(epochs, means, color=look.day, ls=look.dashes, lw=1.8 if len(epochs) < 100 else 1.1, zorder=3)
        axis.plot(epochs[-1:], means[-1:], look.mark, color=look.day, ms=4.5, zorder=4, clip_on=False)
        if len(values[0]) > 1:
            lows, highs = [min(at) for at in values], [max(at) for at in values]
            axis.fill_between(epochs, lows, highs, color=look.day, alpha=0.15 if len(drawn) < 7 else 0.06, lw=0)
        ends.append((means[-1], f"{row.label}  {means[-1]:.2f}", look.day))
    axis.margins(x=0.02)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")
    record = block.rows[0].first
    axis.set_ylabel(f"test {record['metrics'][0]['label']} (%)")
    head(axis, "y", title_of(block))
    _label_ends(axis, ends)


def title_of(block: Block) -> list[str]:
    record, seeds = block.rows[0].first, sorted({len(row.runs) for row in block.rows if row.runs})
    count = "-".join(map(str, dict.fromkeys([seeds[0], seeds[-1]]))) if seeds else "0"
    title = f"{label_of(record, 'dataset')}, student {label_of(record, 'student')}, {count} seed{'s' * (count != '1')}"
    return [title, "one run per method" if count == "1" else "mean over seeds, band from lowest to highest"]


def _label_ends(axis: Any, ends: list[tuple[float, str, str]]) -> None:
    """Name each line beside its right end, outside of the data; labels that would overlap are moved apart."""
    low, high = axis.get_ylim()
    ends = sorted(ends)
    shares = [min(max((value - low) / (high - low), 0.0), 1.0) for value, _, _ in ends]
    wide, tall = axis_size(axis)
    for (_, label, colour), share, place in zip(ends, shares, apart(shares, LINE / tall, 0.0, 1.0), strict=True):
        way = 1 + 0.05 / wide, 1 + 0.16 / wide
        axis.plot(way, (share, place), transform=axis.transAxes, color=colour, lw=0.8, clip_on=False)
        beside(axis, place, label, colour)
