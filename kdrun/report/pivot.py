"""A table of results: rows by columns, each cell a group of seeds beside its baseline, with what can be told apart.

Rows are methods and columns are teacher -> student pairs unless other keys are asked for. One table per dataset.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from kdrun.errors import KdrunError, choices
from kdrun.report.groups import Row, difference, flat, is_pair, labels, nearest, notes, resolution, rows_of, setting
from kdrun.report.stats import binomial_error, deviation, holm, mcnemar, mean_sd, p_value, paired, seeds_needed

LEVEL = 0.95


@dataclass
class Cell:
    """The finished runs of one group, and how they compare with the baseline of the same seeds.

    Scores are fractions. `equal` is None without a comparison; `p` is corrected by Holm for the methods of the column.
    """

    runs: Row
    base: Row | None  # what it is compared with: the student alone
    n: int = 0
    mean: dict[str, float] = field(default_factory=dict)  # by protocol
    sd: dict[str, float | None] = field(default_factory=dict)
    pairs: int = 0
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str = ""  # what p comes from: "t" over paired seeds, "mcnemar" on the test images of one seed
    spread: float | None = None  # standard deviation of the differences
    equal: bool | None = None
    needed: int | None = None  # paired seeds that would tell this difference apart
    agreement: float | None = None
    ece: float | None = None  # expected calibration error, mean over seeds
    class_scores: list[float | None] = field(default_factory=list)  # accuracy per class, mean over seeds
    params: int = 0
    multiply_adds: int | None = None
    seconds: float | None = None

    @property
    def baseline(self) -> bool:
        return self.runs.baseline


@dataclass
class Table:
    """One dataset's table: cells[row][column]."""

    dataset: dict[str, Any]
    columns: list[str]
    cells: dict[str, dict[str, Cell]]
    protocol: str
    runs: list[dict]  # the done runs that stand in it
    unfinished: list[dict]
    notes: list[str] = field(default_factory=list)  # what a reader must know before trusting it

    @property
    def seeds(self) -> list[int]:
        return sorted({run["seed"] for run in self.runs})


def tables(
    records: list[dict], *, rows: str = "method", columns: str = "pair", protocol: str | None = None
) -> list[Table]:
    """A table per dataset. `rows` and `columns` are "method", "pair" or a key of the identity, as recipe.lr.

    `protocol`: last, best or holdout; by default what all records agree on, else last. KdrunError for a key that no run has.
    """
    asked = {record["protocol"] for record in records}
    protocol = protocol or (asked.pop() if len(asked) == 1 else "last")
    if protocol == "holdout" and not any(record["holdout"] for record in records):
        raise KdrunError("no run here has a holdout; --protocol last or best, or train with dataset.holdout=N")
    teachers = {record["teacher"]["run_id"] for record in records if record["teacher"]}
    taught = {record["student"]["name"] for record in records if record["method"] != ["none"]}
    # A teacher's run is a baseline, too, where its model is some other run's student.
    students = [
        r for r in records if r["id"] not in teachers or r["method"] != ["none"] or r["student"]["name"] in taught
    ]
    for key in {rows, columns} - {"method", "pair"}:
        known = {name for record in records for name in flat(record["identity"])}
        if key not in known:
            near = choices(key, known).partition("Choices:")[0]
            raise KdrunError(
                f"no key '{key}' in these runs. {near}Keys are those of a config, as recipe.lr; or say method, or pair"
            )
    by_data: dict[str, list[dict]] = {}
    for record in students:
        data = record["dataset"]
        key = json.dumps([data[name] for name in ("name", "checksum", "train_n", "holdout_n")])
        by_data.setdefault(key, []).append(record)
    return [_table(members, rows, columns, protocol) for members in by_data.values()]


def _table(records: list[dict], rows: str, columns: str, protocol: str) -> Table:
    groups = rows_of(records)
    pairs = {id(row): _pair(row.first) for row in groups}
    settings = {id(row): setting(row) for row in groups}
    alone: dict[str, list[Row]] = {}  # baselines by setting
    beside: dict[str, dict[str, None]] = {}  # the pairs of a setting, in order
    for row in groups:
        if row.baseline:
            alone.setdefault(settings[id(row)], []).append(row)
        if "->" in pairs[id(row)]:
            beside.setdefault(settings[id(row)], {})[pairs[id(row)]] = None
    bases = {id(row): nearest(row, alone.get(settings[id(row)], [])) for row in groups}
    home = pairs if columns == "pair" else {id(row): _value(row.first, columns) for row in groups}
    names = _names(groups, rows, home)
    found: dict[str, dict[str, Cell]] = {}
    order: dict[str, None] = {}
    for row in groups:
        where = [home[id(row)]]
        if columns == "pair" and "->" not in pairs[id(row)]:  # without a teacher: beside every teacher of its student
            where = list(beside.get(settings[id(row)], where))
        base = bases[id(row)]
        for column in where:
            order[column] = None
            label = names[id(row)]
            if column in found.get(label, {}):  # another group of that name: the hash tells them apart
                label = f"{label} [{row.first['group'][:6]}]"
            found.setdefault(label, {})[column] = _cell(row, base, protocol)
    for column in order:
        _correct([line[column] for line in found.values() if column in line])
    done = [run for row in groups for run in row.runs.values()]
    ranked = dict(sorted(found.items(), key=lambda item: not _is_baseline(item[1])))
    unfinished = [record for record in records if record["status"] != "done"]
    said = notes(groups, lambda row: bases[id(row)]) + _unlike(ranked)
    return Table(records[0]["dataset"], [*order], ranked, protocol, done, unfinished, said)


def _unlike(cells: dict[str, dict[str, Cell]]) -> list[str]:
    """Rows whose method is set differently from column to column, as the tables of papers do."""
    found = []
    for label, line in cells.items():
        asked = [flat(cell.runs.first["identity"].get("method") or {}, "method.") for cell in line.values()]
        keys = sorted(key for key in {key for one in asked for key in one} if len({one.get(key) for one in asked}) > 1)
        if keys and not any(cell.baseline for cell in line.values()):
            found.append(
                f"{label} is set differently from column to column: {', '.join(keys[:3])}{' ...' * (len(keys) > 3)}"
            )
    return found


def _is_baseline(line: dict[str, Cell]) -> bool:
    return all(cell.baseline for cell in line.values())


def _pair(record: dict) -> str:
    """teacher -> student; the student alone without a teacher."""
    peers = record["identity"].get("teacher") if record["teacher"] is None else None
    name = record["teacher"]["name"] if record["teacher"] else None
    if name is None and isinstance(peers, dict):  # peers of mutual learning
        name = peers.get("name")
    return f"{name} -> {record['student']['name']}" if name else record["student"]["name"]


def _names(groups: list[Row], rows: str, home: dict[int, str]) -> dict[int, str]:
    """What each group is called: the value of the key asked for, or its method and what tells it from others of its column."""
    if rows == "pair":
        return {id(row): _pair(row.first) for row in groups}
    found: dict[int, str] = {}
    columns: dict[str, list[Row]] = {}
    for row in groups:
        columns.setdefault(home[id(row)], []).append(row)
    for members in columns.values():
        told = labels([row.first for row in members])
        found |= {id(row): told[row.first["group"]] for row in members}
    if rows == "method":
        return found
    values = {id(row): _value(row.first, rows) for row in groups}
    shared = Counter((home[id(row)], values[id(row)]) for row in groups)
    return {key: value if shared[home[key], value] == 1 else f"{value}, {found[key]}" for key, value in values.items()}


def _value(record: dict, key: str) -> str:
    return "+".join(record["method"]) if key == "method" else f"{key}={flat(record['identity']).get(key, '-')}"


def _cell(row: Row, base: Row | None, protocol: str) -> Cell:
    """The numbers of one group; disputed seeds are in none of them."""
    first, runs = row.first, list(row.runs.values())
    cell = Cell(row, base, len(runs), params=first["student"]["params"])
    cell.multiply_adds = first["student"].get("multiply_adds")
    for column in ("last", "best", "holdout"):
        scores = row.scores(column)
        if scores:
            cell.mean[column], cell.sd[column] = mean_sd(scores)
    agreements = [run["agreement"] for run in runs if run["agreement"] is not None]
    cell.agreement = fmean(agreements) if agreements else None
    if len({run["engine"]["device"] for run in runs}) == 1:  # times of different devices have no mean
        cell.seconds = fmean(run["time"]["train_s"] for run in runs)
    errors = [run["calibration"]["ece"] for run in runs if run.get("calibration")]
    cell.ece = fmean(errors) if errors else None
    classes = [run["class_scores"] for run in runs if run.get("class_scores")]
    cell.class_scores = [_mean(each) for each in zip(*classes, strict=True)]
    if base is not None:
        cell.pairs, gain, cell.low, cell.high, differences = difference(row, base, protocol)
        if cell.pairs:
            cell.gain = gain
        if cell.pairs > 1:
            cell.p, cell.test = p_value(differences, [0.0] * len(differences), resolution(row)), "t"
            cell.spread = deviation(differences, resolution(row))
        elif cell.pairs == 1 and protocol == "last":
            (seed,) = [s for s in row.runs if s in base.runs and is_pair(row.runs[s], base.runs[s])]
            cell.p = one_seed(row.runs[seed], base.runs[seed])
            cell.test = "mcnemar" if cell.p is not None else ""
    return cell


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _correct(cells: list[Cell]) -> None:
    """Holm over the comparisons of one column; `equal` where a difference cannot be told from 0, and what would tell it.

    The seeds that would tell are those at the level of the strictest comparison, 5 % over their number.
    """
    compared = [cell for cell in cells if cell.p is not None]
    for cell, p in zip(compared, holm([cell.p for cell in compared if cell.p is not None]), strict=True):
        cell.p, cell.equal = p, p >= 1 - LEVEL
        if cell.spread is not None and cell.gain is not None:
            cell.needed = seeds_needed(cell.gain, cell.spread, 1 - (1 - LEVEL) / len(compared))


def one_seed(run: dict, other: dict) -> float | None:
    """McNemar's p of two runs' last test logits; None where a run's logits are not there (portable records have none)."""
    right = [_right(run), _right(other)]
    if right[0] is None or right[1] is None or len(right[0]) != len(right[1]):
        return None
    ours, theirs = right
    return mcnemar(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()))


def _right(run: dict) -> Any:
    path = Path(run.get("folder", "")) / "test_logits.safetensors"
    if not path.is_file():
        return None
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
        return found["logits"].argmax(1) == found["labels"]
    except Exception:  # a torn file, or another layout: as if it were not there
        return None


def interval(cell: Cell, protocol: str, test_n: int) -> tuple[float, float | None, float | None, str]:
    """(mean, low, high, kind) of a cell's score at 95 %, as fractions.

    Kind "seeds": a t interval of the mean over seeds; "images": one seed, 1.96 standard errors of an accuracy on so many images,
    which says nothing about other seeds; "": none can be given.
    """
    scores = cell.runs.scores(protocol)
    if len(scores) > 1:
        return *paired(scores, [0.0] * len(scores)), "seeds"
    if test_n > 0 and 0 <= scores[0] <= 1:
        half = 1.96 * binomial_error(scores[0], test_n)
        return scores[0], scores[0] - half, scores[0] + half, "images"
    return scores[0], None, None, ""


def teachers_of(cells: Iterable[Cell]) -> list[tuple[str, float]]:
    """(name, score) of the teachers of these cells that have a score."""
    runs = [run for cell in cells for run in cell.runs.runs.values()]
    found = {(r["teacher"]["name"], r["teacher"]["score"]) for r in runs if r["teacher"]}
    return sorted((name, value) for name, value in found if value is not None)
