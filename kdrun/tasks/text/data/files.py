"""Tables in files: TSV, CSV (RFC 4180) and JSON lines, in UTF-8. Every error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError, choices

# A part of a dataset -> the names that its file may have, in front of the suffix.
STEMS = {"train": ("train",), "validation": ("validation", "dev", "val", "valid"), "test": ("test",)}
SUFFIXES = (".tsv", ".csv", ".jsonl")
ONE_OBJECT = "each line must hold one object, with the columns as its keys"
LAYOUT = "train.*, test.* and validation.* (or dev.*), each .tsv, .csv or .jsonl"


@dataclass
class Table:
    """The rows of one file. A cell is a string; None where JSON lines have no value."""

    path: Path
    columns: list[str]
    rows: list[list[str | None]]
    lines: list[int]  # where each row starts in the file, from 1
    broken: list[int] = field(default_factory=list)  # lines that were left out, where `lenient` allows it

    def column(self, name: str, key: str | None) -> list[str | None]:
        """The cells of one column. KdrunError if there is none of this name, or two. `key`: the setting that names it, if one does."""
        if self.columns.count(name) > 1:
            raise KdrunError(f"{self.path} has two columns '{name}': rename one of them")
        if name not in self.columns:
            way = f" (dataset.{key}=COLUMN says which)" if key else ""
            raise KdrunError(f"{self.path} has no column '{name}'. {choices(name, self.columns)}{way}")
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def at(self, row: int) -> str:
        """The place of a row, for a message."""
        return f"{self.path}:{self.lines[row]}"


def find(root: str | None, stems: dict[str, tuple[str, ...]] | None = None) -> dict[str, Path]:
    """Part -> file, for the parts that a folder has. KdrunError without a train file, or with two files for one part."""
    if root is None:
        raise KdrunError(f"dataset.root is not set: it must be a folder with {LAYOUT}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise KdrunError(f"dataset.root={root} is not a folder; it must hold {LAYOUT}")
    parts = {}
    for part, names in (stems or STEMS).items():
        files = [
            folder / (name + suffix) for name in names for suffix in SUFFIXES if (folder / (name + suffix)).is_file()
        ]
        if len(files) > 1:
            raise KdrunError(f"{folder} has {files[0].name} and {files[1].name}: keep one file for {part}")
        if files:
            parts[part] = files[0]
    if "train" not in parts:
        raise KdrunError(f"{folder} has no train file; it must hold {LAYOUT}")
    return parts


def listing(parts: dict[str, Path]) -> list[Any]:
    """What changes when a file does: its absolute path, its size and its time."""
    return [[part, str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for part, file in parts.items()]


def read(path: Path, columns: Sequence[str] | None = None, quoted: bool | None = None, lenient: bool = False) -> Table:
    """The table in a file. KdrunError, with the line, where it is broken or has no rows.

    columns: names for a file without a header. quoted: whether a TSV has CSV's quotes; None: whether all its quotes read as such.
    lenient: rows with too few or too many cells are left out and counted.
    """
    text = _text(path)
    lines = path.suffix == ".jsonl"
    table = _json_lines(path, text) if lines else _separated(path, text, columns, quoted, lenient)
    if not table.rows:
        raise KdrunError(
            f"{path} has no rows" + (" below its header" if table.columns else "") + "; it must hold samples"
        )
    return table


def _text(path: Path) -> str:
    """The file's text. A byte-order mark is taken away."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KdrunError(f"{path} cannot be read ({error.strerror}): change its permissions or remove it") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[error.start]
        raise KdrunError(f"{path}:{line} is not UTF-8 (byte 0x{byte:02x}): save the file as UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise KdrunError(f"{path}:{line} has a zero byte, which text has not: save the file as UTF-8")
    return text


def _separated(path: Path, text: str, columns: Sequence[str] | None, quoted: bool | None, lenient: bool) -> Table:
    """A CSV or TSV file. Quotes in a TSV: see _is_quoted."""
    tabs = path.suffix == ".tsv"
    if tabs and quoted is None:
        quoted = _is_quoted(text)
    plain = tabs and not quoted
    rows: list[list[str | None]] = []
    lines, broken = [], []
    names = None if columns is None else list(columns)
    for line, cells in _cells(path, text, "\t" if tabs else ",", plain):
        if not cells:
            continue  # an empty line
        if names is None:
            names = [cell.strip() for cell in cells]
            if len(names) == 1 and not tabs and (other := next((sign for sign in ";\t" if sign in names[0]), None)):
                sign = "tabs" if other == "\t" else f"'{other}'"
                raise KdrunError(
                    f"{path} has {sign} between its columns: save it with commas, or with tabs as {path.stem}.tsv"
                )
        elif len(cells) == len(names):
            rows.append([*cells])
            lines.append(line)
        elif lenient:
            broken.append(line)
        else:
            _refuse_row(path, line, cells, names, tabs)
    if names is None:
        raise KdrunError(f"{path} is empty; its first line must name the columns")
    return Table(path, names, rows, lines, broken)


def _cells(path: Path, text: str, delimiter: str, plain: bool) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row."""
    limit = csv.field_size_limit(len(text) + 1)  # the module's own limit of 131,072 characters is for no reason of ours
    line = 1
    try:
        source = io.StringIO(text, newline="")
        quoting: Any = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
        reader = csv.reader(source, delimiter=delimiter, quoting=quoting, strict=True)
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        reason = "a quote is never closed" if "end of data" in str(error) else str(error)
        raise KdrunError(
            f'{path}:{line} is not CSV ({reason}): a text with commas or quotes stands in quotes, and quotes in it are doubled ("")'
        ) from error
    finally:
        csv.field_size_limit(limit)


def _is_quoted(text: str) -> bool:
    """Whether the quotes of a TSV are those of CSV, which stand around a cell, or signs of the text itself.

    They are CSV's if the file can be read so: each quote at the start of a cell has its end at the end of a cell, every row has as
    many cells as the header, and no cell holds a tab and a line break, as a cell would that runs from one sentence into another.
    """
    if '"' not in text:
        return False
    width = None
    try:
        for _, cells in _cells(Path(), text, "\t", plain=False):
            width = width or len(cells)
            if cells and (len(cells) != width or any("\t" in cell and "\n" in cell for cell in cells)):
                return False
    except KdrunError:
        return False
    return True


def _refuse_row(path: Path, line: int, cells: list[str], names: list[str], tabs: bool) -> None:
    many = len(cells) > len(names)
    way = "a text with commas must stand in quotes" if many and not tabs else "each row has one cell for each column"
    n, wanted = len(cells), len(names)
    raise KdrunError(
        f"{path}:{line} has {n} cell{'s' * (n != 1)}, the header has {wanted} ({', '.join(names[:8])}{', ...' * (wanted > 8)}): {way}"
    )


def _json_lines(path: Path, text: str) -> Table:
    """A JSON object on each line. Its columns are all keys that there are; a row without one has None."""
    objects: list[dict[str, Any]] = []
    lines: list[int] = []
    for line, words in enumerate(text.split("\n"), 1):
        if not words.strip():
            continue
        try:
            pairs = json.loads(words, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError) as error:
            if not objects and words.lstrip().startswith("["):
                raise KdrunError(f"{path} is one JSON list: {ONE_OBJECT}") from error
            raise KdrunError(f"{path}:{line} is not JSON ({error}): {ONE_OBJECT}") from error
        if not isinstance(pairs, _Pairs):
            raise KdrunError(f"{path}:{line} is no JSON object: {ONE_OBJECT}")
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise KdrunError(f"{path}:{line} has two values of '{twice}': keep one")
        objects.append(row)
        lines.append(line)
    columns = list(dict.fromkeys(name for row in objects for name in row))
    rows = [[_cell(row.get(name)) for name in columns] for row in objects]
    return Table(path, columns, rows, lines)


class _Pairs(list):
    """The keys and values of a JSON object in their order, doubled keys included."""


def _cell(value: Any) -> str | None:
    """A JSON value as a cell: text as it is, numbers as JSON writes them, true and false; None for null and for lists."""
    if value is None or isinstance(value, str):
        return value
    return None if isinstance(value, list) else json.dumps(value)
