"""`kdrun methods` and `kdrun models`: what there is, read from the sources in a few milliseconds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from kdrun.registry import METHODS, MODELS, REQUIRED


def show_methods() -> None:
    """A line per method: what it is, and what it needs of a teacher."""
    table = _table("method", "what it does")
    for name, entry in sorted(METHODS.entries().items()):
        table.add_row(name, entry.summary)
    _print(table, "kdrun method=NAME, several at once with 'method=[rkd,kd]'; settings of each: conf/method/NAME.yaml")


def show_models() -> None:
    """A line per model, with the options that its builder takes."""
    table = _table("model", "what it is", "options")
    for name, entry in MODELS.entries().items():
        options = ", ".join(k if a.default is REQUIRED else f"{k}={a.default}" for k, a in entry.arguments.items())
        table.add_row(name, entry.summary, options)
    _print(
        table,
        "kdrun teacher=NAME student=NAME; an option is student.shortcut=A; taps are listed in docs/adding-a-method.md",
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table, way_on: str) -> None:
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{way_on}", markup=False)
