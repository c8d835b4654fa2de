"""The cells of a table as text: what the summary of a sweep, the reports and the page show of a cell."""

from __future__ import annotations

from kdrun.report.cells import CANDIDATES, Cell
from kdrun.report.display import percent
from kdrun.report.pivot import Table


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Head and rows of text. A single column of runs is shown with all its numbers; several columns show score and gain."""
    if len(table.columns) == 1:
        (column,) = table.columns
        cells = table.column(column)
        candidates = [name for name in CANDIDATES if any(name in cell.mean for cell in cells.values())]
        scores = ["holdout epoch" if name == "holdout" else name for name in candidates]
        head = [
            column,
            "n",
            *scores,
            table.display.over_none,
            "agreement",
            "ECE",
            "parameters",
            "multiply-adds",
            "time",
        ]
        rows = [[label, *_all_numbers(cell, candidates)] for label, cell in cells.items()]
        used = [i for i in range(len(head)) if i < 2 or any(row[i] for row in rows)]
        return [head[i] for i in used], [[row[i] for i in used] for row in rows]
    rows = [
        [label, *(_score_and_gain(line[c], table.protocol) if c in line else "" for c in table.columns)]
        for label, line in table.cells.items()
    ]
    return ["", *table.columns], rows


def _all_numbers(cell: Cell, candidates: list[str]) -> list[str]:
    return [
        str(cell.n),
        *(spread(cell, candidate) for candidate in candidates),
        gain(cell),
        percent(cell.agreement),
        percent(cell.ece),
        count(cell.params),
        count(cell.multiply_adds) if cell.multiply_adds else "",
        duration(cell.seconds),
    ]


def _score_and_gain(cell: Cell, protocol: str) -> str:
    score = f"{spread(cell, protocol)} ({cell.n})" if cell.n else "results differ"
    return "  ".join(filter(None, [score, gain(cell)]))


def spread(cell: Cell, protocol: str) -> str:
    """mean ± standard deviation; the mean alone for one seed; empty where no run has this score."""
    return cell.display.spread(cell.mean[protocol], cell.sd[protocol]) if protocol in cell.mean else ""


def gain(cell: Cell, tested: bool = True) -> str:
    """The gain over the baseline, or why there is none: with its interval and, if `tested`, with the result of its test.

    = stands for a gain that is not significant; in brackets, how many seeds would be needed.
    """
    if cell.gain is None:
        return cell.alone or ("no seed in common" if cell.base is not None and cell.n else "")
    if cell.low is None:
        return cell.display.gain(cell.gain, None, None, _one_seed(cell) if tested else "one seed")
    text = cell.display.gain(cell.gain, cell.low, cell.high)
    if cell.pairs < cell.n:
        text += f" ({cell.pairs} pairs)"
    if cell.equal and tested:
        text += f" = ({cell.needed:,} seeds)" if cell.needed else " ="
    return text


def _one_seed(cell: Cell) -> str:
    return f"one seed, {'= ' * bool(cell.equal)}{p_text(cell.p)}" if cell.p is not None else "one seed, not tested"


def p_text(p: float) -> str:
    """p 0.043; very small values as p < 0.001."""
    return f"p {p:.3f}" if p >= 0.001 else "p < 0.001"


def count(number: int) -> str:
    """A large number with two digits: 78.04 k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return str(number)


def duration(seconds: float | None) -> str:
    """minutes:seconds, with hours in front where there are any."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
