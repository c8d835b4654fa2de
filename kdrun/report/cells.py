"""The cells of a table: the numbers of one row in one column, and what a test says about its gain over the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from kdrun.report.display import Display, display_of
from kdrun.report.facts import details_of, right_answers
from kdrun.report.rows import Difference, Row, difference, is_pair, resolution
from kdrun.report.stats import (
    binomial_error,
    deviation,
    holm,
    mcnemar,
    mean_sd,
    p_value,
    paired,
    seeds_needed,
    sign_flip,
)
from kdrun.runs.folder import PREDICTIONS

LEVEL = 0.95
CANDIDATES = ("last", "best", "holdout")  # the epochs that a run may report


@dataclass
class Cell:
    """The finished runs of one row, and their gain over the baseline of the same seeds.

    Scores are numbers of their metric: an accuracy is a fraction. `equal` is None without a test; `p` is corrected by Holm for its
    family: the rows of its column with the same conditions (recipe, data, precision, student).
    """

    row: Row
    base: Row | None  # its baseline: the student alone
    n: int = 0
    mean: dict[str, float] = field(default_factory=dict)  # by protocol
    sd: dict[str, float | None] = field(default_factory=dict)
    alone: str = ""  # why it has no baseline
    pairs: int = 0
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    gains: dict[int, float] = field(default_factory=dict)  # by seed
    p: float | None = None
    test: str = ""  # the test behind p: "t" over paired seeds, "mcnemar" on the test samples of one seed
    p_sign_flip: float | None = None  # of the exact sign-flip test over paired seeds, uncorrected
    p_sign_flip_holm: float | None = None  # the same, corrected as p is
    family: int = 0  # how many comparisons p is corrected for
    spread: float | None = None  # standard deviation of the gains
    equal: bool | None = None  # True where the gain is not significant
    needed: int | None = None  # paired seeds with which this gain would be significant
    agreement: float | None = None
    ece: float | None = None  # expected calibration error, mean over seeds
    class_scores: list[float | None] = field(default_factory=list)  # accuracy per class, mean over seeds
    params: int = 0
    multiply_adds: int | None = None
    seconds: float | None = None

    @property
    def baseline(self) -> bool:
        """Whether this is the student alone."""
        return self.row.baseline

    @property
    def display(self) -> Display:
        """How its scores are shown."""
        return display_of(self.row.first)


def cell_of(row: Row, base: Row | None, protocol: str) -> Cell:
    """The numbers of one row; disputed seeds are in none of them."""
    first, runs = row.first, list(row.runs.values())
    cell = Cell(row, base, len(runs), params=first["student"]["params"])
    cell.multiply_adds = first["student"].get("multiply_adds")
    for candidate in CANDIDATES:
        scores = row.scores(candidate)
        if scores:
            cell.mean[candidate], cell.sd[candidate] = mean_sd(scores)
    cell.agreement = _mean(run["agreement"] for run in runs)
    if len({run["engine"]["device"] for run in runs}) == 1:  # a mean of times on different devices would mean nothing
        cell.seconds = fmean(run["time"]["train_s"] for run in runs)
    cell.ece = _mean(one["ece"] for run in runs if (one := details_of(run, "calibration")))
    classes = [one for run in runs if (one := details_of(run, "class_scores"))]
    cell.class_scores = [_mean(each) for each in zip(*classes, strict=True)]
    if base is not None and (gain := difference(row, base, protocol)):
        _compare(cell, base, gain, protocol)
    return cell


def _compare(cell: Cell, base: Row, gain: Difference, protocol: str) -> None:
    """The gain over the baseline, and a test of it: over seeds where there are several, else over the samples of the test set."""
    row = cell.row
    cell.pairs, cell.gain, cell.low, cell.high = len(gain.by_seed), gain.mean, gain.low, gain.high
    cell.gains = gain.by_seed
    if cell.pairs > 1:
        each = list(gain.by_seed.values())
        cell.p, cell.test = p_value(each, [0.0] * len(each), resolution(row)), "t"
        cell.p_sign_flip = sign_flip(each)
        cell.spread = deviation(each, resolution(row))
    elif protocol == "last" and cell.display.metric.counts:
        (seed,) = [seed for seed in row.runs if seed in base.runs and is_pair(row.runs[seed], base.runs[seed])]
        cell.p = one_seed_p(row.runs[seed], base.runs[seed])
        cell.test = "mcnemar" if cell.p is not None else ""


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def correct_family(cells: Sequence[Cell]) -> None:
    """Correct the p values of one family by Holm, and say which gains are not significant and how many seeds they need.

    The seeds needed are those at the level of the strictest comparison, 5 % over the number of comparisons.
    """
    tested = [(cell, cell.p) for cell in cells if cell.p is not None]
    for (cell, _), p in zip(tested, holm([p for _, p in tested]), strict=True):
        cell.p, cell.equal, cell.family = p, p >= 1 - LEVEL, len(tested)
        if cell.spread is not None and cell.gain is not None:
            cell.needed = seeds_needed(cell.gain, cell.spread, 1 - (1 - LEVEL) / len(tested))
    flipped = [(cell, cell.p_sign_flip) for cell in cells if cell.p_sign_flip is not None]
    for (cell, _), p in zip(flipped, holm([p for _, p in flipped]), strict=True):
        cell.p_sign_flip_holm = p


def one_seed_p(run: dict, other: dict) -> float | None:
    """McNemar's p of two runs on the test set; None where a run's logits are not there (portable records have none)."""
    ours, theirs = _right_answers(run), _right_answers(other)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return None
    return mcnemar(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()))


def _right_answers(run: dict) -> Any:
    """For each sample of the test set, whether the last epoch classified it correctly; None without its logits."""
    path = Path(run.get("folder", "")) / PREDICTIONS
    if not path.is_file():
        return None
    from safetensors.numpy import load_file

    try:
        return right_answers(load_file(path))
    except Exception:  # a damaged file, or other tensors: as if it were not there
        return None


def interval(cell: Cell, protocol: str, test_n: int) -> tuple[float, float | None, float | None, str]:
    """(mean, low, high, kind): a cell's score and its 95 % interval, as fractions.

    Kind "seeds": a t interval of the mean over seeds. Kind "samples": one seed, 1.96 standard errors of an accuracy on this number
    of samples, which does not cover other seeds. Kind "": there is no interval.
    """
    scores = cell.row.scores(protocol)
    if len(scores) > 1:
        return *paired(scores, [0.0] * len(scores)), "seeds"
    if cell.display.metric.counts and test_n > 0 and 0 <= scores[0] <= 1:
        half = 1.96 * binomial_error(scores[0], test_n)
        return scores[0], scores[0] - half, scores[0] + half, "samples"
    return scores[0], None, None, ""
