"""The data of learning curves, for paper and for the page: the test score per epoch, read from what the runs wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from kdrun.errors import KdrunError
from kdrun.report.cells import Cell
from kdrun.report.display import Display
from kdrun.report.pivot import Table, teachers_of
from kdrun.report.style import Style
from kdrun.runs.folder import CURVES

Curve = dict[int, float]  # {epoch: test score }


@dataclass
class CurveLine:
    """A row: per epoch the scores of its seeds, in the numbers that a reader sees."""

    label: str
    style: Style
    epochs: list[int]
    values: list[list[float]]

    @property
    def means(self) -> list[float]:
        """The mean over seeds, for each epoch."""
        return [fmean(seeds) for seeds in self.values]

    @property
    def lowest(self) -> list[float]:
        """The lowest seed of each epoch."""
        return [min(seeds) for seeds in self.values]

    @property
    def highest(self) -> list[float]:
        """The highest seed of each epoch."""
        return [max(seeds) for seeds in self.values]

    @property
    def has_band(self) -> bool:
        """Whether there are several seeds."""
        return len(self.values[0]) > 1


@dataclass
class CurveChart:
    """Learning curves with the window of their axis; `missing`: a sentence for every run without a readable curve."""

    lines: list[CurveLine]
    teachers: list[tuple[str, float]]  # (label, score)
    window: tuple[float, float]
    missing: list[str]
    display: Display

    def end(self, line: CurveLine) -> str:
        """The name at the end of a line, with its last mean."""
        return f"{line.label}  {self.display.number(line.means[-1])}"

    def place(self, value: float) -> int:
        """-1 below the window, 0 in it, 1 above it."""
        low, high = self.window
        return (value > high) - (value < low)


def curve_chart(table: Table, cells: Mapping[str, Cell], styles: Mapping[str, Style]) -> CurveChart:
    """The learning curves of the cells of a column."""
    curves, missing = read_curves(cells)
    display = table.display
    lines = [CurveLine(label, styles[label], *over_seeds(cell, curves, display)) for label, cell in cells.items()]
    lines = [line for line in lines if line.epochs]
    teachers = [(f"teacher {one.name}", display.shown(one.score)) for one in teachers_of(cells.values())]
    window = (0.0, 100.0)
    if lines:
        window = curve_window([line.values for line in lines], [score for _, score in teachers], display)
    return CurveChart(lines, teachers, window, missing, display)


def read_curves(cells: Mapping[str, Cell]) -> tuple[dict[int, Curve], list[str]]:
    """({id of a run's dict: its curve}, a sentence for every run whose curve cannot be read)."""
    curves: dict[int, Curve] = {}
    missing: list[str] = []
    for label, cell in cells.items():
        for seed, run in cell.row.runs.items():
            try:
                if not run.get("folder"):
                    raise KdrunError("its folder is not known")
                curves[id(run)] = read_curve(run["folder"], cell.display)
            except KdrunError as error:
                missing.append(f"{label} seed {seed} is not in the curves: {error}")
    return curves, missing


def read_curve(folder: str | Path, display: Display) -> Curve:
    """The test scores of stage distil, from folder/curves.jsonl. KdrunError that says what is wrong with it, and in which line."""
    path, scores = Path(folder) / CURVES, {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise KdrunError(f"{path} cannot be read ({reason})") from error
    for number, line in enumerate(lines, 1):
        try:
            if line.strip() and (point := _point(line, display)):
                scores[point[0]] = point[1]
        except KdrunError as error:
            raise KdrunError(f"{path} cannot be read (line {number}: {error})") from error
    if not scores:
        raise KdrunError(f"{path} holds no test score")
    return scores


def _point(line: str, display: Display) -> tuple[int, float] | None:
    """(epoch, test score) of a line; None for another stage, or for an epoch without a test. KdrunError if it is broken."""
    try:
        point = json.loads(line)
        if point["stage"] != "distil" or point["test"] is None:
            return None
        epoch, score = point["epoch"], point["test"]["score"]
    except KeyError as error:
        raise KdrunError(f"no key {error}; was it written by another version?") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise KdrunError("incomplete, or not written by kdrun") from error
    low, high = display.range
    is_number = isinstance(score, int | float) and math.isfinite(score) and low <= display.shown(score) <= high
    if not isinstance(epoch, int) or not is_number:
        raise KdrunError(f"epoch {str(epoch)[:20]}, score {str(score)[:20]}: not the {display.name} of an epoch")
    return epoch, score


def over_seeds(cell: Cell, curves: Mapping[int, Curve], display: Display) -> tuple[list[int], list[list[float]]]:
    """(epochs that all seeds have, per epoch the scores of the seeds as shown); empty where no curve is known."""
    known = [curves[id(run)] for run in cell.row.runs.values() if id(run) in curves]
    epochs = sorted(set.intersection(*map(set, known))) if known else []
    return epochs, [[display.shown(curve[epoch]) for curve in known] for epoch in epochs]


def curve_window(
    values: Sequence[list[list[float]]], teachers: Sequence[float], display: Display
) -> tuple[float, float]:
    """The lowest and highest score that the axis shows, within the range of the metric.

    The first half of the epochs may leave the axis on the worse side: the end of training is what is compared. A teacher that is far
    better is not shown.
    """
    good = [[[display.goodness(seed) for seed in seeds] for seeds in each] for each in values]
    late = sorted(min(seeds) for each in good for seeds in each[len(each) // 2 :])
    worst, best = late[len(late) // 20], max(max(seeds) for each in good for seeds in each)
    step = 1.0 if display.is_share else max(abs(best), 1e-9) / 100
    best = max([best, *(x for x in map(display.goodness, teachers) if x < best + 0.6 * max(best - worst, step))])
    room = 0.06 * max(best - worst, step / 2)
    ends = sorted(display.goodness(end) for end in (worst - room, best + room))
    low, high = display.range
    return max(ends[0], low), min(ends[1], high)
