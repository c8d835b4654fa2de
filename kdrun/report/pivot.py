"""A table of results: rows by columns of cells. One table per dataset.

Rows are methods and columns are teacher -> student pairs, unless the caller names other keys. `kdrun report` and the summary at the
end of a sweep are made from these tables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from kdrun.errors import KdrunError, choices
from kdrun.report.cells import Cell, cell_of, correct_family
from kdrun.report.display import Display, display_of
from kdrun.report.facts import dataset_facts, protocol_of
from kdrun.report.labels import ABSENT, Naming, Settings, natural, settings
from kdrun.report.models import Models
from kdrun.report.rows import Row, conditions, data_key, gather, in_order, nearest, notes, why_alone
from kdrun.report.teachers import Teacher, teachers
from kdrun.runs.identity import flat
from kdrun.runs.labels import label_of


@dataclass
class Table:
    """One dataset's table: cells[row][column]."""

    dataset: dict[str, Any]  # as in a record; "label": its name, different from that of all other tables
    columns: list[str]
    cells: dict[str, dict[str, Cell]]
    protocol: str
    display: Display
    models: Models  # the names of teachers and students
    runs: list[dict]  # the finished runs that stand in it
    unfinished: list[dict]
    notes: list[str] = field(default_factory=list)  # what a reader must know before trusting it
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)  # {column: names of its teacher and its student}

    @property
    def seeds(self) -> list[int]:
        """The seeds of all its runs."""
        return sorted({run["seed"] for run in self.runs})

    @property
    def title(self) -> str:
        """The label of the dataset alone, which another table may share."""
        return label_of((self.runs + self.unfinished)[0], "dataset")

    def column(self, name: str) -> dict[str, Cell]:
        """The cells of a column, by row."""
        return {label: line[name] for label, line in self.cells.items() if name in line}


def teachers_of(cells: Iterable[Cell]) -> list[Teacher]:
    """The teachers of these cells that have a score."""
    return teachers(run for cell in cells for run in cell.row.all_runs)


def tables(
    records: list[dict], *, rows: str = "method", columns: str = "pair", protocol: str | None = None
) -> list[Table]:
    """A table per dataset. `rows` and `columns` are "method", "pair" or a key of the config such as recipe.lr or teacher.seed.

    `protocol`: last, best or holdout; by default the one that all records agree on, else last. KdrunError for a key that no run has.
    """
    protocol = protocol or protocol_of(records)
    if protocol == "holdout" and not any(record["holdout"] for record in records):
        raise KdrunError("no run here has a holdout: use --protocol last or best, or train with dataset.holdout=N")
    models = Models(records)
    own = settings(records, models)
    _check_keys({rows, columns}, records, own)
    teacher_ids = _teacher_ids(records)
    taught = {models.key(record, "student") for record in records if record["method"] != ["none"]}
    by_data: dict[tuple, list[dict]] = {}
    for record in records:
        # The run of a teacher is also a baseline where its model is the student of another run.
        is_only_teacher = record["id"] in teacher_ids and record["method"] == ["none"]
        if not is_only_teacher or models.key(record, "student") in taught:
            by_data.setdefault(data_key(record), []).append(record)
    names = _data_names([members[0] for members in by_data.values()])
    made = []
    for members, name in zip(by_data.values(), names, strict=True):
        table = Pivot(members, rows, columns, models, own).table(protocol)
        table.dataset = {**table.dataset, "label": name}
        made.append(table)
    return made


def tables_by_student(records: list[dict], protocol: str | None = None) -> list[Table]:
    """A table of one column for each dataset and student: what a sweep shows at its end.

    The runs of a student of which all served as teachers get no table.
    """
    protocol = protocol or protocol_of(records)
    models, teacher_ids = Models(records), _teacher_ids(records)
    members: dict[tuple, list[dict]] = {}
    for record in records:
        members.setdefault((*data_key(record), models.key(record, "student")), []).append(record)
    return [
        Pivot(group, "method", "student", models, settings(group, models)).table(protocol)
        for group in members.values()
        if not all(record["id"] in teacher_ids for record in group)
    ]


def _teacher_ids(records: Iterable[dict]) -> set[str | None]:
    return {record["teacher"]["run_id"] for record in records if record["teacher"]}


def _check_keys(keys: set[str], records: list[dict], own: dict[str, Settings]) -> None:
    for key in keys - {"method", "pair"}:
        known = {name for one in own.values() for name in one.values}
        known |= {name for record in records for name in flat(record["identity"])}
        if key not in known:
            near = choices(key, known).partition("Choices:")[0]
            raise KdrunError(
                f"no key '{key}' in these runs. {near}Give a key of the config such as recipe.lr, or method, or pair"
            )


def _data_names(firsts: list[dict]) -> list[str]:
    """The name of the data of each table: its label, and where several tables have this label, the keys in which they differ."""
    labels = [label_of(record, "dataset") for record in firsts]
    names = []
    for label, record in zip(labels, firsts, strict=True):
        rivals = [other["dataset"] for name, other in zip(labels, firsts, strict=True) if name == label]
        keys = [key for key in ("name", "train_n", "holdout_n", "test_n") if len({data[key] for data in rivals}) > 1]
        values = [f"{key}={record['dataset'][key]}" for key in keys]
        if sum(all(data[key] == record["dataset"][key] for key in keys) for data in rivals) > 1:
            values.append(f"checksum={record['dataset']['checksum'][:8]}")
        names.append(f"{label} ({', '.join(values)})" if values else label)
    return names


class Pivot:
    """Sorts the runs of one dataset into rows and columns, and names and compares them."""

    def __init__(self, records: list[dict], rows: str, columns: str, models: Models, own: dict[str, Settings]):
        self.records, self.rows, self.columns = records, rows, columns
        self.models, self.own = models, own
        self.groups = gather(records)
        self.conditions = {id(row): conditions(row) for row in self.groups}
        self.columns_of = self._columns_of()
        members: dict[str, list[Settings]] = {}
        for row in self.groups:
            for column in self.columns_of[id(row)]:
                members.setdefault(column, []).append(self._own(row))
        self.naming = Naming(members.values(), {rows, columns})
        for row in self.groups:
            row.label = self.naming.label(self._own(row))
        self.groups = in_order(self.groups, own, self.naming)
        if rows != "method":
            self._rename()

    def _own(self, row: Row) -> Settings:
        return self.own[row.first["group"]]

    def _value(self, row: Row, key: str) -> str | None:
        """The name of a row or column that stands for a value of a key; None where the row has no such key."""
        if key == "method":
            return self._own(row).method
        if key in ("teacher", "student"):
            return self.models.name(row.first, key)
        values = {**flat(row.first["identity"]), **self._own(row).values}
        value = values.get(key, self._own(row).get(key))
        return None if value == ABSENT else f"{key}={value}"

    def _columns_of(self) -> dict[int, list[str]]:
        """The columns of every row. A row without a teacher, or without the key, stands in the columns of all rows of its conditions."""
        is_pair_table = self.columns == "pair"
        own: dict[int, str | None] = {}
        for row in self.groups:
            if is_pair_table:
                own[id(row)] = self.models.pair(row.first) if self.models.key(row.first, "teacher") else None
            else:
                own[id(row)] = self._value(row, self.columns)
        columns = {}
        for row in self.groups:
            column = own[id(row)]
            columns[id(row)] = [column] if column is not None else self._shared_columns(row, own)
        return columns

    def _shared_columns(self, row: Row, own: dict[int, str | None]) -> list[str]:
        """The columns of rows with the same conditions, else of rows with the same student, else a column of its own."""
        student = self.models.key(row.first, "student")
        like = [other for other in self.groups if self.models.key(other.first, "student") == student]
        same = [other for other in like if self.conditions[id(other)] == self.conditions[id(row)]]
        for others in (same, like):
            columns = {column: None for other in others if (column := own[id(other)]) is not None}
            if columns:
                return list(columns)
        return [self.models.pair(row.first) if self.columns == "pair" else f"{self.columns}={ABSENT}"]

    def _rename(self) -> None:
        """Label rows by a pair or by the value of a key, and by the method and its settings where a column has several such rows."""
        pair = self.rows == "pair"
        values = {id(row): self.models.pair(row.first) if pair else self._value(row, self.rows) for row in self.groups}
        shared = Counter((values[id(row)], column) for row in self.groups for column in self.columns_of[id(row)])
        several = {value for (value, _), count in shared.items() if count > 1}
        for row in self.groups:
            value = values[id(row)]
            row.label = row.label if value is None else f"{value}, {row.label}" if value in several else value
        if not pair:
            self.groups.sort(key=lambda row: (not row.baseline, natural(values[id(row)] or ABSENT)))

    def table(self, protocol: str) -> Table:
        """The table, with all cells compared under the protocol."""
        bases = {id(row): self._base(row) for row in self.groups}
        baselines = [row for row in self.groups if row.baseline]
        cells: dict[str, dict[str, Cell]] = {}
        families: dict[tuple[str, str], list[Cell]] = {}
        for row in self.groups:
            cell = cell_of(row, bases[id(row)], protocol)
            if not row.baseline and cell.base is None and baselines:
                cell.alone = why_alone(row, baselines)
            for column in self.columns_of[id(row)]:
                cells.setdefault(row.label, {})[column] = one = replace(cell)
                families.setdefault((column, self.conditions[id(row)]), []).append(one)
        for family in families.values():
            correct_family(family)
        ranked = dict(sorted(cells.items(), key=lambda item: not all(cell.baseline for cell in item[1].values())))
        columns = self._ordered(dict.fromkeys(column for row in self.groups for column in self.columns_of[id(row)]))
        table = Table(
            dataset_facts(self.records[0]), columns, ranked, protocol, display_of(self.records[0]), self.models,
            [run for row in self.groups for run in row.runs.values()],
            [record for record in self.records if record["status"] != "done"],
        )  # fmt: skip
        table.notes = [*notes(self.groups, lambda row: bases[id(row)]), *self._differences(ranked)]
        table.notes += self.models.notes([row.first for row in self.groups])
        if self.columns == "pair":
            table.pairs = {
                c: self._pair(row) for row in self.groups if row.first["teacher"] for c in self.columns_of[id(row)]
            }
        return table

    def _base(self, row: Row) -> Row | None:
        """The baseline of a row: the student alone under the same conditions."""
        own = self.conditions[id(row)]
        return nearest(row, [other for other in self.groups if other.baseline and self.conditions[id(other)] == own])

    def _pair(self, row: Row) -> tuple[str, str]:
        return row.first["teacher"]["name"], row.first["student"]["name"]

    def _ordered(self, columns: Iterable[str]) -> list[str]:
        """Values of a key as numbers; pairs in the given order, models of one label by the keys in which they differ."""
        columns = list(columns)
        if self.columns == "method":
            return columns
        if self.columns not in ("pair", "teacher", "student"):
            return sorted(columns, key=lambda column: natural(column.partition("=")[2]))
        plain = {column: re.sub(r" \([^()]*=[^()]*\)", "", column) for column in columns}
        order = list(dict.fromkeys(plain.values()))
        return sorted(columns, key=lambda column: (order.index(plain[column]), natural(column)))

    def _differences(self, cells: dict[str, dict[str, Cell]]) -> list[str]:
        """Notes on rows of other settings in one column, and on rows whose settings change from column to column."""
        lines = list(self.naming.notes)
        everywhere: dict[str, None] = {}
        for label, line in cells.items():
            own = {cell.row.first["group"]: self._own(cell.row) for cell in line.values()}.values()
            keys = [key for key in self.naming.keys if len({one.get(key) for one in own if self._has(one, key)}) > 1]
            mine = [key for key in keys if key.startswith(("method.", "loss."))]
            everywhere |= dict.fromkeys(key for key in keys if key not in mine and not self._is_model(key))
            if mine:
                more = " ..." * (len(mine) > 3)
                lines.append(f"{label} has different settings in different columns: {', '.join(mine[:3])}{more}")
        if everywhere:
            lines.append(f"columns differ in {', '.join(everywhere)}: compare only cells of one column")
        return lines

    def _has(self, one: Settings, key: str) -> bool:
        """Whether a key can be compared in a row: a key of another method or of a teacher may be absent."""
        return key in one.values or one.get(key) != ABSENT or not key.startswith("teacher")

    def _is_model(self, key: str) -> bool:
        """Whether the name of a column already says this key, or its teachers cannot share it with those of another column."""
        role, _, rest = key.partition(".")
        if role not in ("teacher", "student") or self.columns not in ("pair", role):
            return False
        return not rest.startswith(("seed", "recipe", "weights"))
