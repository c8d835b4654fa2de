"""Escaped text and tables that sort and filter: what every part of the page is made of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

Value = float | int | str | None


@dataclass
class Head:
    """A column: its name, a smaller line below it, and whether it sorts as numbers."""

    name: str
    more: str = ""
    numeric: bool = True


@dataclass
class Td:
    """A cell: escaped HTML and what it is sorted by."""

    html: str
    value: Value = None
    style: str = ""
    kind: str = ""


def safe(text: Any) -> str:
    return escape(str(text), quote=True)


def many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def grid(ident: str, name: str, head: list[Head], rows: list[tuple[str, list[Td]]], kind: str) -> str:
    """A table that sorts and filters. `kind`: cards (a row becomes a card on a phone) or scroll (sideways, in its own box)."""
    ths = "".join(
        f'<th scope="col" role="columnheader" aria-sort="none" class="{"number" if h.numeric else ""}"{" data-numeric" * h.numeric}>'
        f'<button type="button">{safe(h.name)}</button>{f"<small>{safe(h.more)}</small>" if h.more else ""}</th>'
        for h in head
    )
    body = []
    for style, tds in rows:
        cells = []
        for i, (h, td) in enumerate(zip(head, tds, strict=True)):
            value = "" if td.value is None else f' data-value="{safe(td.value)}"'
            look = " ".join(filter(None, ["number" if h.numeric else "", td.kind]))
            extra = (f' class="{look}"' if look else "") + (f' style="{td.style}"' if td.style else "") + value
            if i == 0:
                cells.append(f'<th scope="row" role="rowheader"{extra}><span>{td.html}</span></th>')
            else:
                inner = f"<span>{td.html}</span>" if td.html else ""
                cells.append(
                    f'<td role="cell" data-label="{safe(h.name + ", %" * h.more.startswith("%"))}"{extra}>{inner}</td>'
                )
        body.append(f'<tr role="row"{f" class={style!r}" if style else ""}>{"".join(cells)}</tr>')
    return (
        f'<div class="tools"><label>Filter rows <input type="search" aria-controls="{ident}"></label>'
        f'<span role="status"></span><span class="soft">click a heading to sort</span>'
        f'<span class="hint">{many(len(head), "column")}: scroll sideways →</span></div>'
        f'<div class="box {kind}" tabindex="0" role="region" aria-label="{safe(name)}">'
        f'<table id="{ident}" role="table"><thead role="rowgroup"><tr role="row">{ths}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{chr(10).join(body)}\n</tbody></table></div>'
    )


def text(value: Any, kind: str = "") -> Td:
    """A cell of text; empty for nothing."""
    return Td("", None) if value is None or value == "" else Td(safe(value), str(value), kind=kind)


def figure(value: Any) -> Td:
    """A cell of a number; empty for nothing."""
    return Td("" if value is None else safe(value), value)


def link(folder: Any, place: Path | None) -> Td:
    """To the record, relative to the page; its path as text where there is no such way."""
    if not folder:
        return Td("")
    path = Path(folder) / "record.json"
    if place is not None:
        try:
            way = os.path.relpath(path.resolve(), place.resolve())
        except (OSError, ValueError):  # another drive
            way = ""
        if way:
            there = "/".join(quote(part, safe="") for part in Path(way).parts)
            return Td(f'<a href="./{safe(there)}">{safe(path)}</a>', str(path))
    return Td(safe(path), str(path))
