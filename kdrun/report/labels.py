"""The label of a row of a table: its method, and every setting in which the rows of the table differ.

Settings are written as on the command line, in the order of the config: the method's own, loss, recipe, teacher, student, dataset,
engine. Two different rows never have the same label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kdrun.report.models import NOT_ARCHITECTURE, Models, first_of_groups, short, teacher_node
from kdrun.runs.identity import NEUTRAL, as_text, flat

TYPED = {"task_weight": "loss.task", "precision": "engine.precision", "deterministic": "engine.deterministic"}
ORDER = ("method.", "loss.", "recipe.", "teacher", "student", "dataset.", "engine.")
KINDS = ("taps", "", "stages", "weights", "schedules")  # of a method's settings, as its yaml has them; "": its own
ABSENT = "-"
_NEUTRAL = {key: as_text(value) for key, value in NEUTRAL.items()}


@dataclass(frozen=True)
class Settings:
    """The method of a group and its settings, {key: value as text}, in the order of the config."""

    group: str
    method: str
    values: dict[str, str]

    def get(self, key: str) -> str:
        """The value of a key; for a key that the run does not have, the value that stands for its absence."""
        return self.values.get(key, _NEUTRAL.get(key, ABSENT))


def settings(records: Iterable[dict], models: Models) -> dict[str, Settings]:
    """The settings of every group. A teacher is described by its seed and recipe where the records of all teachers are known."""
    first = first_of_groups(records)
    teachers = {node["run"] for record in first.values() if "run" in (node := teacher_node(record))}
    known = models.runs if teachers <= models.runs.keys() else {}
    by_group = {}
    for group, record in first.items():
        values = _own(record) | _teacher(record, known)
        for role in ("teacher", "student"):
            if (name := models.label(record, role)) is not None:
                values[role] = name
                values |= {f"{role}.{key}": value for key, value in models.differing(record, role).items()}
        ordered = {key: values[key] for key in sorted(values, key=_place)}
        by_group[group] = Settings(group, "+".join(record["method"]), ordered)
    return by_group


def _own(record: dict) -> dict[str, str]:
    """All settings but the two models, under the keys of the command line."""
    values = {}
    for key, value in flat(record["identity"]).items():
        group = key.partition(".")[0]
        if group not in ("teacher", "student", "task"):
            values[TYPED.get(key, key)] = short(key, value)
    return values | _weights("student", record["identity"].get("student") or {})


def _weights(role: str, node: dict) -> dict[str, str]:
    """The settings of a model that are no part of its architecture: the origin of its weights, and its taps."""
    given = {key: node[key] for key in NOT_ARCHITECTURE if node.get(key)}
    return {key: short(key, value) for key, value in flat({role: given}).items() if value != "{}"}


def _teacher(record: dict, known: dict[str, dict]) -> dict[str, str]:
    """The origin of the teacher's weights: its seed and recipe, or, where its record is not known, the id of its run."""
    node = teacher_node(record)
    if not node or "fresh" in node:
        return {}
    if "checkpoint" in node:
        return _weights("teacher", node)
    values = {"teacher.checkpoint": "null"}
    if "run" not in node:
        return values | {key: value for key, value in flat({"teacher": node}).items() if key != "teacher.name"}
    run = known.get(node["run"])
    if run is None:
        return values | {"teacher.weights": str(node.get("weights")), "teacher.run": short("run", node["run"])}
    values |= {"teacher.seed": str(run["seed"]), "teacher.weights": str(node.get("weights"))}
    return values | flat(run["identity"].get("recipe") or {}, "teacher.recipe.")


def _place(key: str) -> tuple[int, int]:
    kind = next((i for i, start in enumerate(ORDER) if key.startswith(start)), len(ORDER))
    part = key.split(".")[2] if kind == 0 and key.count(".") > 1 else ""
    return kind, KINDS.index(part) if part in KINDS else 1


class Naming:
    """Chooses the settings that stand in the labels of a table: those in which rows of one column differ.

    A setting of a method is compared among the rows of that method, a setting of the teacher among the rows with a teacher, every
    other setting among all rows: where one row names recipe.epochs=12, all rows name their epochs. `without`: keys that the rows or
    columns of the table stand for.
    """

    def __init__(self, columns: Iterable[Sequence[Settings]], without: Iterable[str] = ()):
        columns = [list({one.group: one for one in members}.values()) for members in columns]
        without = sorted(set(without))
        everyone = {one.group: one for members in columns for one in members}.values()
        self.keys = [key for key in _merged(everyone) if key not in without]
        named: dict[tuple[str, str], None] = {}
        for members in columns:
            for scope, rivals in _scopes(members):
                for key in self.keys:
                    if _scope(key, rivals[0]) == scope and _differ(key, scope, rivals):
                        named[scope, key] = None
        self._named = named
        names = {one.group: (self._label(one), *(one.get(key) for key in without)) for one in everyone}
        twice = set()
        for members in columns:
            shared = Counter(names[one.group] for one in members)
            twice |= {name for name, count in shared.items() if count > 1}
        self._twice = {group for group, name in names.items() if name in twice}

    def label(self, one: Settings) -> str:
        """kd (temperature=2, recipe.epochs=12)."""
        return self._label(one, [f"group={one.group[:8]}"] if one.group in self._twice else [])

    def order(self, one: Settings) -> tuple:
        """A key that sorts the rows of one method: by the values in their labels, as numbers where they are numbers."""
        return tuple(natural(one.get(key)) for key in self._keys(one))

    @property
    def shared(self) -> list[str]:
        """The named keys that belong to no method: rows that differ in them are different experiments."""
        return list(dict.fromkeys(key for scope, key in self._named if not scope.startswith("method ")))

    @property
    def notes(self) -> list[str]:
        """A note where the rows of one column are different experiments."""
        if not self.shared:
            return []
        values = "value" if len(self.shared) == 1 else "values"
        return [f"rows differ in {', '.join(self.shared)}: compare only rows with the same {values}"]

    def _keys(self, one: Settings) -> list[str]:
        return [key for key in self.keys if (_scope(key, one), key) in self._named]

    def _label(self, one: Settings, more: Sequence[str] = ()) -> str:
        keys = [key for key in self._keys(one) if self._is_shown(key, one)]
        prefix = "method." if "+" in one.method else f"method.{one.method}."
        parts = [f"{key.removeprefix(prefix)}={one.get(key)}" for key in keys] + [*more]
        return f"{one.method} ({', '.join(parts)})" if parts else one.method

    def _is_shown(self, key: str, one: Settings) -> bool:
        """A key that a row does not have is shown as absent, but not beside `schedules={}` or where it cannot be set."""
        if key in one.values or key in _NEUTRAL:
            return True
        related = any(key.startswith(f"{own}.") or own.startswith(f"{key}.") for own in one.values)
        return not related and not key.startswith("teacher")


def _merged(members: Iterable[Settings]) -> list[str]:
    """All keys, in the order of the config; a key that only some have stands where these have it."""
    keys = dict.fromkeys(key for one in members for key in one.values)
    return sorted(keys, key=_place)


def _scope(key: str, one: Settings) -> str:
    if key.startswith(("method.", "loss.", "student.taps", "teacher.taps")):
        return f"method {one.method}"
    return "teacher" if key.startswith("teacher") else ""


def _scopes(members: Sequence[Settings]) -> Iterator[tuple[str, list[Settings]]]:
    """(scope, the settings that are compared in it)."""
    if members:
        yield "", list(members)
    with_teacher = [one for one in members if "teacher" in one.values]
    if with_teacher:
        yield "teacher", with_teacher
    for method in dict.fromkeys(one.method for one in members):
        yield f"method {method}", [one for one in members if one.method == method]


def _differ(key: str, scope: str, rivals: Sequence[Settings]) -> bool:
    values = {one.get(key) for one in rivals if scope != "teacher" or key in one.values}
    return len(values) > 1


def natural(text: str) -> tuple:
    """A key that sorts texts as a reader does: 2 before 10, stage2 before stage10, absent values first."""
    if text in (ABSENT, "None", "null"):
        return ((0, 0.0, ""),)
    try:
        return ((1, float(text), ""),)
    except ValueError:
        parts = re.split(r"(\d+(?:\.\d+)?)", text)
        return tuple((1, float(part), "") if i % 2 else (2, 0.0, part) for i, part in enumerate(parts) if part)
