"""A table of results: rows by columns, each cell a group of seeds beside its baseline, with what can be told apart.

Rows are methods and columns are teacher -> student pairs unless other keys are asked for. One table per dataset.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from kdrun.errors import KdrunError, choices
from kdrun.report.groups import (
    Row,
    data_key,
    difference,
    gather,
    in_order,
    is_pair,
    nearest,
    notes,
    resolution,
    setting,
    teacher_names,
    why_alone,
)
from kdrun.report.labels import ABSENT, Settings, Telling, natural, settings
from kdrun.report.models import Models
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
from kdrun.runs.identity import flat, label_of

LEVEL = 0.95


@dataclass
class Cell:
    """The finished runs of one group, and how they compare with the baseline of the same seeds.

    Scores are fractions. `equal` is None without a comparison; `p` is corrected by Holm for its family: the rows of its column
    with the same baseline settings (recipe, data, precision).
    """

    runs: Row
    base: Row | None  # what it is compared with: the student alone
    n: int = 0
    mean: dict[str, float] = field(default_factory=dict)  # by protocol
    sd: dict[str, float | None] = field(default_factory=dict)
    alone: str = ""  # why it is compared with nothing
    pairs: int = 0
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str = ""  # what p comes from: "t" over paired seeds, "mcnemar" on the test images of one seed
    p_sign_flip: float | None = None  # of the exact sign-flip test over paired seeds, uncorrected
    p_sign_flip_holm: float | None = None  # the same, corrected as p is
    family: int = 0  # how many comparisons p is corrected for
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

    dataset: dict[str, Any]  # as in a record; "label": what it is called, unlike all other tables' data
    columns: list[str]
    cells: dict[str, dict[str, Cell]]
    protocol: str
    runs: list[dict]  # the done runs that stand in it
    unfinished: list[dict]
    notes: list[str] = field(default_factory=list)  # what a reader must know before trusting it
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)  # {column: names of its teacher and its student}

    @property
    def seeds(self) -> list[int]:
        return sorted({run["seed"] for run in self.runs})


def tables(
    records: list[dict], *, rows: str = "method", columns: str = "pair", protocol: str | None = None
) -> list[Table]:
    """A table per dataset. `rows` and `columns` are "method", "pair" or a key of the config, as recipe.lr or teacher.seed.

    `protocol`: last, best or holdout; by default what all records agree on, else last. KdrunError for a key that no run has.
    """
    asked = {record["protocol"] for record in records}
    protocol = protocol or (asked.pop() if len(asked) == 1 else "last")
    if protocol == "holdout" and not any(record["holdout"] for record in records):
        raise KdrunError("no run here has a holdout; --protocol last or best, or train with dataset.holdout=N")
    models = Models(records)
    own = settings(records, models)
    _check_keys({rows, columns}, records, own)
    teachers = {record["teacher"]["run_id"] for record in records if record["teacher"]}
    taught = {models.key(record, "student") for record in records if record["method"] != ["none"]}
    by_data: dict[tuple, list[dict]] = {}
    for record in records:
        # A teacher's run is a baseline, too, where its model is some other run's student.
        is_only_teacher = record["id"] in teachers and record["method"] == ["none"]
        if not is_only_teacher or models.key(record, "student") in taught:
            by_data.setdefault(data_key(record), []).append(record)
    names = _data_names([members[0] for members in by_data.values()])
    found = []
    for members, name in zip(by_data.values(), names, strict=True):
        table = Pivot(members, rows, columns, models, own).table(protocol)
        table.dataset = {**table.dataset, "label": name}
        found.append(table)
    return found


def _check_keys(keys: set[str], records: list[dict], own: dict[str, Settings]) -> None:
    for key in keys - {"method", "pair"}:
        known = {name for one in own.values() for name in one.values}
        known |= {name for record in records for name in flat(record["identity"])}
        if key not in known:
            near = choices(key, known).partition("Choices:")[0]
            raise KdrunError(
                f"no key '{key}' in these runs. {near}Keys are those of a config, as recipe.lr; or say method, or pair"
            )


def _data_names(firsts: list[dict]) -> list[str]:
    """What the data of each table is called: its label, and where another table has that too, what tells them apart."""
    labels = [label_of(record, "dataset") for record in firsts]
    found = []
    for label, record in zip(labels, firsts, strict=True):
        rivals = [other["dataset"] for name, other in zip(labels, firsts, strict=True) if name == label]
        keys = [key for key in ("name", "train_n", "holdout_n", "test_n") if len({data[key] for data in rivals}) > 1]
        told = [f"{key}={record['dataset'][key]}" for key in keys]
        if sum(all(data[key] == record["dataset"][key] for key in keys) for data in rivals) > 1:
            told.append(f"checksum={record['dataset']['checksum'][:8]}")
        found.append(f"{label} ({', '.join(told)})" if told else label)
    return found


class Pivot:
    """The rows of one dataset, sorted into columns, named and compared."""

    def __init__(self, records: list[dict], rows: str, columns: str, models: Models, own: dict[str, Settings]):
        self.records, self.rows, self.columns = records, rows, columns
        self.models, self.own = models, own
        self.groups = gather(records)
        self.settings = {id(row): setting(row) for row in self.groups}
        self.homes = self._homes()
        members: dict[str, list[Settings]] = {}
        for row in self.groups:
            for column in self.homes[id(row)]:
                members.setdefault(column, []).append(self._own(row))
        self.telling = Telling(members.values(), {rows, columns})
        for row in self.groups:
            row.label = self.telling.label(self._own(row))
        self.groups = in_order(self.groups, own, self.telling)
        if rows != "method":
            self._rename()

    def _own(self, row: Row) -> Settings:
        return self.own[row.first["group"]]

    def _value(self, row: Row, key: str) -> str | None:
        """What a row or a column is called by its value of a key; None where the row has no such key."""
        if key == "method":
            return self._own(row).method
        if key in ("teacher", "student"):
            return self.models.called(row.first, key)
        values = {**flat(row.first["identity"]), **self._own(row).values}
        value = values.get(key, self._own(row).get(key))
        return None if value == ABSENT else f"{key}={value}"

    def _homes(self) -> dict[int, list[str]]:
        """The columns of every row. A row without a teacher, or without the key, stands beside every other of its setting."""
        is_pair_table = self.columns == "pair"
        own: dict[int, str | None] = {}
        for row in self.groups:
            if is_pair_table:
                own[id(row)] = self.models.pair(row.first) if self.models.key(row.first, "teacher") else None
            else:
                own[id(row)] = self._value(row, self.columns)
        found = {}
        for row in self.groups:
            home = own[id(row)]
            found[id(row)] = [home] if home is not None else self._beside(row, own)
        return found

    def _beside(self, row: Row, own: dict[int, str | None]) -> list[str]:
        """The columns of the same setting, else of the same student, else one of its own."""
        student = self.models.key(row.first, "student")
        like = [other for other in self.groups if self.models.key(other.first, "student") == student]
        same = [other for other in like if self.settings[id(other)] == self.settings[id(row)]]
        for others in (same, like):
            columns = {column: None for other in others if (column := own[id(other)]) is not None}
            if columns:
                return list(columns)
        return [self.models.pair(row.first) if self.columns == "pair" else f"{self.columns}={ABSENT}"]

    def _rename(self) -> None:
        """Rows stand for a pair or a key: its value, and the method and its settings where a column has several rows of it."""
        pair = self.rows == "pair"
        values = {id(row): self.models.pair(row.first) if pair else self._value(row, self.rows) for row in self.groups}
        shared = Counter((values[id(row)], column) for row in self.groups for column in self.homes[id(row)])
        several = {value for (value, _), count in shared.items() if count > 1}
        for row in self.groups:
            value = values[id(row)]
            row.label = row.label if value is None else f"{value}, {row.label}" if value in several else value
        if not pair:
            self.groups.sort(key=lambda row: (not row.baseline, natural(values[id(row)] or ABSENT)))

    def table(self, protocol: str) -> Table:
        bases = {id(row): self._base(row) for row in self.groups}
        baselines = [row for row in self.groups if row.baseline]
        cells: dict[str, dict[str, Cell]] = {}
        families: dict[tuple[str, str], list[Cell]] = {}
        for row in self.groups:
            cell = _cell(row, bases[id(row)], protocol)
            if not row.baseline and cell.base is None and baselines:
                cell.alone = why_alone(row, baselines)
            for column in self.homes[id(row)]:
                cells.setdefault(row.label, {})[column] = one = replace(cell)
                families.setdefault((column, self.settings[id(row)]), []).append(one)
        for family in families.values():
            _correct(family)
        ranked = dict(sorted(cells.items(), key=lambda item: not all(cell.baseline for cell in item[1].values())))
        columns = self._ordered(dict.fromkeys(column for row in self.groups for column in self.homes[id(row)]))
        table = Table(
            _facts(self.records[0]), columns, ranked, protocol,
            [run for row in self.groups for run in row.runs.values()],
            [record for record in self.records if record["status"] != "done"],
        )  # fmt: skip
        table.notes = [*notes(self.groups, lambda row: bases[id(row)]), *self._differences(ranked)]
        table.notes += self.models.notes([row.first for row in self.groups])
        if self.columns == "pair":
            table.pairs = {
                c: self._pair(row) for row in self.groups if row.first["teacher"] for c in self.homes[id(row)]
            }
        return table

    def _base(self, row: Row) -> Row | None:
        mine = self.settings[id(row)]
        return nearest(row, [other for other in self.groups if other.baseline and self.settings[id(other)] == mine])

    def _pair(self, row: Row) -> tuple[str, str]:
        return row.first["teacher"]["name"], row.first["student"]["name"]

    def _ordered(self, columns: Iterable[str]) -> list[str]:
        """Values of a key as numbers; pairs in the order in which they come, models of one label by what tells them apart."""
        columns = list(columns)
        if self.columns == "method":
            return columns
        if self.columns not in ("pair", "teacher", "student"):
            return sorted(columns, key=lambda column: natural(column.partition("=")[2]))
        plain = {column: re.sub(r" \([^()]*=[^()]*\)", "", column) for column in columns}
        order = list(dict.fromkeys(plain.values()))
        return sorted(columns, key=lambda column: (order.index(plain[column]), natural(column)))

    def _differences(self, cells: dict[str, dict[str, Cell]]) -> list[str]:
        """Rows of other settings in one column, and rows that are set differently from column to column, as in papers' tables."""
        found = list(self.telling.notes)
        everywhere: dict[str, None] = {}
        for label, line in cells.items():
            own = {cell.runs.first["group"]: self._own(cell.runs) for cell in line.values()}.values()
            keys = [key for key in self.telling.keys if len({one.get(key) for one in own if self._has(one, key)}) > 1]
            mine = [key for key in keys if key.startswith(("method.", "loss."))]
            everywhere |= dict.fromkeys(key for key in keys if key not in mine and not self._is_model(key))
            if mine:
                more = " ..." * (len(mine) > 3)
                found.append(f"{label} is set differently from column to column: {', '.join(mine[:3])}{more}")
        if everywhere:
            found.append(f"columns differ in {', '.join(everywhere)}: compare within a column")
        return found

    def _has(self, one: Settings, key: str) -> bool:
        """Whether a key can be compared in a row: one of another method, or of a teacher, may not be there at all."""
        return key in one.values or one.get(key) != ABSENT or not key.startswith("teacher")

    def _is_model(self, key: str) -> bool:
        """What a column says already, or what its teachers cannot share with those of another."""
        role, _, rest = key.partition(".")
        if role not in ("teacher", "student") or self.columns not in ("pair", role):
            return False
        return not rest.startswith(("seed", "recipe", "weights"))


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
    errors = [one["calibration"]["ece"] for run in runs if (one := run["details"] or {}).get("calibration")]
    cell.ece = fmean(errors) if errors else None
    classes = [one["class_scores"] for run in runs if (one := run["details"] or {}).get("class_scores")]
    cell.class_scores = [_mean(each) for each in zip(*classes, strict=True)]
    if base is not None:
        cell.pairs, gain, cell.low, cell.high, differences = difference(row, base, protocol)
        if cell.pairs:
            cell.gain = gain
        if cell.pairs > 1:
            cell.p, cell.test = p_value(differences, [0.0] * len(differences), resolution(row)), "t"
            cell.p_sign_flip = sign_flip(differences)
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
    """Holm over the comparisons of one family; `equal` where a difference cannot be told from 0, and what would tell it.

    The seeds that would tell are those at the level of the strictest comparison, 5 % over their number.
    """
    compared = [cell for cell in cells if cell.p is not None]
    for cell, p in zip(compared, holm([cell.p for cell in compared if cell.p is not None]), strict=True):
        cell.p, cell.equal, cell.family = p, p >= 1 - LEVEL, len(compared)
        if cell.spread is not None and cell.gain is not None:
            cell.needed = seeds_needed(cell.gain, cell.spread, 1 - (1 - LEVEL) / len(compared))
    flipped = [cell for cell in cells if cell.p_sign_flip is not None]
    for cell, p in zip(
        flipped, holm([cell.p_sign_flip for cell in flipped if cell.p_sign_flip is not None]), strict=True
    ):
        cell.p_sign_flip_holm = p


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
    """(name, score) of the teachers of these cells that have a score; those of one model by what tells them apart."""
    runs = [run for cell in cells for run in cell.runs.runs.values() if run["teacher"]]
    names = teacher_names(runs)
    found = {(names[run["teacher"]["sha256"]], run["teacher"]["score"]) for run in runs}
    return sorted((name, value) for name, value in found if value is not None)


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """What a table says of its dataset: the record's facts, with those of its preprocessing beside them."""
    facts = {key: value for key, value in record["dataset"].items() if key != "preprocessing"}
    return facts | record["dataset"]["preprocessing"]
