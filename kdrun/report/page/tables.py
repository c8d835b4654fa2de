"""Tables of the page that sort and filter: columns, cells, and what a cell is sorted by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from kdrun.report.page.rendering import render
from kdrun.runs.folder import RECORD

Value = float | int | str | None


@dataclass
class Head:
    """A column: its name, a smaller line below it, and whether it sorts as numbers."""

    name: str
    more: str = ""
    numeric: bool = True

    @property
    def label(self) -> str:
        """The name on a phone, where the smaller line is hidden."""
        return self.name + ", %" * self.more.startswith("%")


@dataclass
class Td:
    """A cell: its text, escaped unless it is Markup, and the value that it is sorted by."""

    content: str | Markup = ""
    value: Value = None
    style: str = ""
    kind: str = ""

    def classes(self, head: Head) -> str:
        """The CSS classes of the cell in this column."""
        return " ".join(filter(None, ["number" if head.numeric else "", self.kind]))


@dataclass
class SortableTable:
    """A table with the rows [(class of the row, its cells)].

    `kind`: cards (on a phone a row becomes a card) or scroll (it scrolls sideways in its own box).
    """

    ident: str
    name: str
    head: list[Head]
    rows: list[tuple[str, list[Td]]]
    kind: str

    def without_empty(self, kept: int = 0) -> SortableTable:
        """The table without its empty columns; the first `kept` columns always stay."""
        used = [i for i in range(len(self.head)) if i < kept or any(cells[i].content for _, cells in self.rows)]
        rows = [(kind, [cells[i] for i in used]) for kind, cells in self.rows]
        return SortableTable(self.ident, self.name, [self.head[i] for i in used], rows, self.kind)

    def html(self) -> Markup:
        """The table as HTML."""
        return render("table.html", table=self)


def text(value: Any, kind: str = "") -> Td:
    """A cell of text; empty for None."""
    return Td() if value is None or value == "" else Td(str(value), str(value), kind=kind)


def number(value: float | int | None) -> Td:
    """A cell of a number; empty for None."""
    return Td() if value is None else Td(str(value), value)


def record_link(run: Mapping[str, Any], place: Path | None) -> Td:
    """A link to the record in a run's folder, and one to its picture where there is one, relative to the page in `place`; the record's path
    as text where there is no such link."""
    folder = run.get("folder")
    if not folder:
        return Td()
    record, picture = Path(folder) / RECORD, (run.get("details") or {}).get("picture")
    address = _address(record, place)
    if address is None:
        return Td(str(record), str(record))
    link = Markup('<a href="./{}">{}</a>').format(address, record)
    if picture and (Path(folder) / picture).is_file():
        link += Markup(' <a href="./{}">picture</a>').format(_address(Path(folder) / picture, place))
    return Td(link, str(record))


def _address(path: Path, place: Path | None) -> str | None:
    """The way from the page's folder to a file, for a link; None where there is none (another drive, or a page that lies nowhere)."""
    if place is None:
        return None
    try:
        way = os.path.relpath(path.resolve(), place.resolve())
    except (OSError, ValueError):
        return None
    return "/".join(quote(part, safe="") for part in Path(way).parts)
