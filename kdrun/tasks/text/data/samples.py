"""Samples as a dataset gives them: texts and labels of its files, before they are cut into tokens. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kdrun.errors import KdrunError, choices
from kdrun.tasks import cache
from kdrun.tasks.text.data.files import Table
from kdrun.tasks.text.settings import COLUMNS

# name in conf/dataset -> the module beside this one that has parts(cfg, outputs) and listing(cfg, outputs)
SOURCES = {"text_files": "text_files", "sst2": "glue", "glue": "glue", "reviews": "reviews"}
MANY = 20  # class names that a message lists


@dataclass
class Part:
    """The samples of one file."""

    name: str  # what messages call it: the file's name
    texts: list[tuple[str, ...]]
    labels: list[Any]  # class numbers, or numbers to be predicted


@dataclass
class Samples:
    """All files of a dataset that are used. `test` is the one that reports."""

    classes: list[str]  # empty where labels are numbers
    train: Part
    validation: Part | None  # None where there is none, or where it is the one that reports
    test: Part
    notes: list[str] = field(default_factory=list)

    def checksum(self) -> str:
        """sha256 over class names, texts and labels, whatever the format of the files."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for role, part in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            if part is not None:
                digest.update(json.dumps([role, part.texts, part.labels]).encode())
        return digest.hexdigest()


@dataclass
class Columns:
    """Which columns hold what, and the class names in their order where they are known; a label is then a name or its number."""

    texts: tuple[str, ...]
    target: str
    numbers: bool = False
    classes: Sequence[str] | None = None
    own: bool = True  # False: the dataset knows columns and classes, and the settings say nothing of them
    empty: bool = False  # whether empty texts are allowed: some pairs of GLUE have one

    def of(self, table: Table) -> list[list[str | None]]:
        """The cells of the text columns."""
        keys = ("text", "second") if self.own else (None, None)
        return [table.column(name, key) for name, key in zip(self.texts, keys, strict=False)]

    def targets(self, table: Table) -> list[str | None]:
        """The cells of the label."""
        return table.column(self.target, "target" if self.own else None)


def read(cfg: Any, outputs: str) -> Samples:
    """The samples that `cfg` describes. KdrunError where a file is missing or broken, or does not suit the settings."""
    return _source(cfg).samples(cfg, outputs)  # type: ignore[no-any-return]


def summary(cfg: Any, outputs: str) -> dict[str, Any]:
    """{"checksum", "train", "test", "validation"}: sha256 and rows (0: no such file, or it reports).

    Kept in a file until a setting, or a file's size or time, changes.
    """

    def content() -> dict[str, Any]:
        samples = read(cfg, outputs)
        return {
            "checksum": samples.checksum(), "train": len(samples.train.texts), "test": len(samples.test.texts),
            "validation": len(samples.validation.texts) if samples.validation else 0,
        }  # fmt: skip

    settings = [getattr(cfg, key) for key in ("name", "task", "target", "numbers", "test", *COLUMNS)]
    key = json.dumps(
        ["1", settings, _source(cfg).listing(cfg, outputs)], default=list
    )  # "1": of this way to read files
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    kept: dict[str, Any] = cache.remembered(
        os.path.join(outputs, "cache", "text", f"summary-{name}.json"), key, content
    )
    return kept


def from_tables(tables: dict[str, Table], columns: Columns, test: str) -> Samples:
    """Samples of the tables of a folder: part (train, validation, test) -> table. test: dataset.test."""
    train = tables["train"]
    columns.targets(train)  # a wrong name is told as such, not as a file without labels
    for table in tables.values():
        columns.of(table)
    reports, notes = _reporting(tables, columns, test)
    classes = [] if columns.numbers else _classes(train, columns)
    roles = [role for role in ("train", "validation", reports) if role in tables]
    parts = {role: _part(tables[role], columns, classes) for role in dict.fromkeys(roles)}
    if len(set(parts["train"].labels)) < 2:
        kind = "number" if columns.numbers else "class"
        only = columns.targets(train)[0]
        raise KdrunError(
            f"{train.path} has one {kind} only ({only}): there is nothing to learn, two or more are needed"
        )
    for table in tables.values():
        if table.broken:
            n, first = len(table.broken), table.broken[0]
            notes.append(
                f"{table.path.name} has {n:,} rows with too few or too many cells, which are left out (first: line {first})"
            )
    validation = parts.get("validation") if reports != "validation" else None
    return Samples(classes, parts["train"], validation, parts[reports], notes)


def _reporting(tables: dict[str, Table], columns: Columns, test: str) -> tuple[str, list[str]]:
    """The part that reports, and a note where that is the validation file because there is no other."""
    folder = tables["train"].path.parent
    lacks = {part: _lack(tables[part], columns) for part in ("test", "validation") if part in tables}
    if not lacks:
        raise KdrunError(f"{folder} has neither a test nor a validation file: one of them must report the score")
    if test != "auto":
        if test not in lacks:
            raise KdrunError(f"dataset.test={test}: {folder} has no {test} file. {choices(test, lacks)}")
        if lacks[test]:
            raise KdrunError(f"dataset.test={test}: {lacks[test]}; auto takes a file that has labels")
        return test, []
    part = next((part for part in lacks if lacks[part] is None), None)
    if part is None:
        raise KdrunError(f"{' and '.join(filter(None, lacks.values()))}: a file with labels must report the score")
    if part == "test":
        return part, []
    why = lacks.get("test") or f"{folder} has no test file"
    return part, [
        f"{why}, so {tables[part].path.name} reports (dataset.holdout=N holds rows out of train to select on)"
    ]


def _lack(table: Table, columns: Columns) -> str | None:
    """Why a file has no labels: no such column, or nothing but -1 in it, as the tests of GLUE; None where it has."""
    if columns.target not in table.columns:
        return f"{table.path} has no column '{columns.target}' ({', '.join(table.columns[:MANY])})"
    if all(cell in (None, "", "-1", "-1.0") for cell in columns.targets(table)):
        return f"{table.path} has no labels"
    return None


def _classes(train: Table, columns: Columns) -> list[str]:
    """The class names in the order of their numbers: those that are known, else the training labels, sorted."""
    names = [_label(train, row, cell) for row, cell in enumerate(columns.targets(train))]
    distinct = sorted(set(names))
    if columns.classes is None:
        return sorted(distinct, key=float) if all(_is_number(name) for name in distinct) else distinct
    known = list(columns.classes)
    if not columns.own or all(_is_place(name, known) for name in distinct):
        return known
    for row, name in enumerate(names):
        if name not in known:
            raise KdrunError(
                f"{train.at(row)} has label '{name}', which dataset.classes has not. {choices(name, known)}"
            )
    for name in known:
        if name not in distinct:
            raise KdrunError(f"dataset.classes has '{name}', which {train.path} has not. {choices(name, distinct)}")
    return known


def _part(table: Table, columns: Columns, classes: list[str]) -> Part:
    """The samples of one table, checked row by row."""
    cells = columns.of(table)
    for name, column in zip(columns.texts, cells, strict=True):
        for row, cell in enumerate(column):
            if cell is None or (not columns.empty and not cell.strip()):
                raise KdrunError(f"{table.at(row)} has an empty text (column '{name}'): write one, or remove the row")
    targets = columns.targets(table)
    if columns.numbers:
        labels: list[Any] = [_number(table, row, cell) for row, cell in enumerate(targets)]
    else:
        places = {name: place for place, name in enumerate(classes)}
        known = columns.classes is not None
        labels = [_place(table, row, _label(table, row, cell), places, known) for row, cell in enumerate(targets)]
    return Part(table.path.name, list(zip(*cells, strict=True)), labels)  # type: ignore[arg-type]


def _label(table: Table, row: int, cell: str | None) -> str:
    if cell is None or not cell.strip():
        raise KdrunError(f"{table.at(row)} has no label: write one, or remove the row")
    return cell.strip()


def _place(table: Table, row: int, name: str, places: dict[str, int], is_known: bool) -> int:
    """The number of a class: of its name, or the number itself where the names are known from elsewhere (`is_known`)."""
    if name in places:
        return places[name]
    if is_known and _is_place(name, places):
        return int(name)
    known = choices(name, places) if len(places) <= MANY else f"It has {len(places)} classes"
    raise KdrunError(f"{table.at(row)} has label '{name}', which no training row has. {known}")


def _is_place(name: str, names: Any) -> bool:
    """Whether a label is the number of a class instead of its name: "1" of negative, positive."""
    return not any(_is_number(known) for known in names) and name.isdecimal() and int(name) < len(names)


def _number(table: Table, row: int, cell: str | None) -> float:
    name = _label(table, row, cell)
    if not _is_number(name):
        raise KdrunError(
            f"{table.at(row)} has label '{name}', which is no finite number (dataset.numbers=false reads class names)"
        )
    return float(name)


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _source(cfg: Any) -> Any:
    return importlib.import_module(f"{__name__.rpartition('.')[0]}.{SOURCES[cfg.name]}")
