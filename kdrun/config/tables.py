"""Published tables: the jobs of a file of conf/table. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import yaml

from kdrun.config.schema import conf_folder
from kdrun.errors import KdrunError, choices

BUDGETS = {
    "full": None,
    "short": 12,
    "smoke": 1,
}  # epochs of student and teacher; schedules are given as shares of the epochs
KEYS = {"dataset", "recipe", "pairs", "methods", "students", "exceptions"}


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a pair of models, a method, and the other overrides of its command."""

    teacher: str
    student: str
    method: str
    overrides: tuple[str, ...]

    def command(self) -> list[str]:
        """The arguments of `kdrun` that train it."""
        return [f"teacher={self.teacher}", f"student={self.student}", f"method={self.method}", *self.overrides]


def full_epochs(recipe: str) -> int | None:
    """The epochs in a file of conf/recipe; None for a recipe that is not kdrun's own."""
    return _read("recipe", recipe).get("epochs")


def recipe_of(name: str) -> str | None:
    """The recipe of a published table; None if conf/table has no such file."""
    return _read("table", name).get("recipe")


@cache
def _read(group: str, name: str) -> dict:
    """The content of a file of conf/; empty if there is none."""
    file = conf_folder() / group / f"{name}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def table_names() -> list[str]:
    return sorted(file.stem for file in (conf_folder() / "table").glob("*.yaml"))


def jobs(name: str, overrides: list[str], pair: str | None = None, budget: str = "full") -> list[list[str]]:
    """The jobs of a table. `overrides`: the other overrides of the command; they win over those of the table.

    method=... in them chooses rows of the table. KdrunError for a pair, a method or a budget that does not exist.
    """
    if budget not in BUDGETS:
        raise KdrunError(f"no budget '{budget}'. {choices(budget, BUDGETS)}")
    table_cells = cells(name)
    pairs = {f"{cell.teacher}-{cell.student}" for cell in table_cells}
    if pair is not None and pair not in pairs:
        raise KdrunError(f"table {name} has no pair '{pair}'. {choices(pair, pairs)}")
    wanted = [item.partition("=")[2] for item in overrides if item.startswith("method=")]
    rows = {cell.method for cell in table_cells}
    for method in wanted:
        if method not in rows:
            raise KdrunError(f"table {name} has no row '{method}'. {choices(method, rows)}")
    epochs = BUDGETS[budget]
    scaled = [] if epochs is None else [f"recipe.epochs={epochs}", f"teacher.recipe.epochs={epochs}"]
    others = [*scaled, *(item for item in overrides if not item.startswith("method="))]
    keys = {item.partition("=")[0] for item in others}
    return [
        [*(item for item in cell.command() if item.partition("=")[0] not in keys), *others]
        for cell in table_cells
        if (pair is None or f"{cell.teacher}-{cell.student}" == pair) and (not wanted or cell.method in wanted)
    ]


def cells(name: str) -> list[Cell]:
    """The cells of a table, pair by pair.

    The keys of the file: `dataset` and `recipe`; `pairs`, written teacher-student; `methods`: overrides for each row, where
    method=NAME makes a second row of that method; `students`: overrides for every cell of a student; `exceptions`: for a pair, other
    overrides of a method, or null if the table has no such cell.
    """
    if name not in table_names():
        raise KdrunError(f"no table '{name}'. {choices(name, table_names())}")
    table = _read("table", name)
    unknown = set(table) - KEYS
    if unknown:
        raise KdrunError(f"table {name} has a key '{sorted(unknown)[0]}'. {choices(sorted(unknown)[0], KEYS)}")
    common = (f"dataset={table['dataset']}", f"recipe={table['recipe']}")
    table_cells = []
    for pair in table["pairs"]:
        teacher, _, student = pair.partition("-")
        methods = {**table["methods"], **table.get("exceptions", {}).get(pair, {})}
        for row, overrides in methods.items():
            if overrides is not None:
                method = next((item.partition("=")[2] for item in overrides if item.startswith("method=")), row)
                others = [item for item in overrides if not item.startswith("method=")]
                own = (*table.get("students", {}).get(student, []), *others)
                table_cells.append(Cell(teacher, student, method, (*common, *own)))
    return table_cells
