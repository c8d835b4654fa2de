"""Published tables: a file of conf/table as the jobs that it stands for. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from kdrun.config import conf_folder
from kdrun.errors import KdrunError, choices

KEYS = {"dataset", "recipe", "pairs", "methods", "students", "exceptions"}


@dataclass(frozen=True)
class Cell:
    """One cell: a pair, a method, and what the command line says beside them."""

    teacher: str
    student: str
    method: str
    overrides: tuple[str, ...]

    def command(self) -> list[str]:
        """The arguments of `kdrun` that train it."""
        return [f"teacher={self.teacher}", f"student={self.student}", f"method={self.method}", *self.overrides]


def table_names() -> list[str]:
    return sorted(file.stem for file in (conf_folder() / "table").glob("*.yaml"))


def cells(name: str) -> list[Cell]:
    """The cells of a table, pair by pair.

    The file names `dataset` and `recipe`; `pairs` as teacher-student; `methods` with the overrides of each; `students` with
    overrides for every cell of a student; `exceptions`: for a pair, other overrides of a method, or null where the table
    has no such cell.
    """
    if name not in table_names():
        raise KdrunError(f"no table '{name}'. {choices(name, table_names())}")
    table = yaml.safe_load((conf_folder() / "table" / f"{name}.yaml").read_text(encoding="utf-8"))
    unknown = set(table) - KEYS
    if unknown:
        raise KdrunError(f"table {name} has a key '{sorted(unknown)[0]}'. {choices(sorted(unknown)[0], KEYS)}")
    common = (f"dataset={table['dataset']}", f"recipe={table['recipe']}")
    found = []
    for pair in table["pairs"]:
        teacher, _, student = pair.partition("-")
        methods = {**table["methods"], **table.get("exceptions", {}).get(pair, {})}
        for method, overrides in methods.items():
            if overrides is not None:
                own = (*table.get("students", {}).get(student, []), *overrides)
                found.append(Cell(teacher, student, method, (*common, *own)))
    return found
