"""Which models stand in a table: what makes two of them one model, and what each is called.

A model is its architecture: its name or import path, its arguments and, where the record has it, the hash of its source. Where its
weights come from (a checkpoint, a seed, a recipe) and what its tensors are called (taps) make no other model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdrun.runs.identity import flat, label_of

ROLES = ("teacher", "student")
NOT_ARCHITECTURE = ("checkpoint", "checkpoint_key", "taps")


@dataclass(frozen=True)
class Model:
    """One model of a record. `parts`: {dotted key: value} of what it is, sorted; `is_known` is False for a teacher of which
    only the name and the size are on record (its own record is not among those that are read)."""

    label: str
    parts: tuple[tuple[str, str], ...]
    params: int
    is_known: bool = True


class Models:
    """The teacher and the student of every group of records, and names that tell unlike models of one label apart.

    A model with several labels has the first one. `runs`: {id: record} of all runs that are known, teachers among them.
    """

    def __init__(self, records: Iterable[dict]):
        records = list(records)
        self.runs = known_runs(records)
        first = first_of_groups(records)
        self._of = {(role, group): _model(record, role, self.runs) for role in ROLES for group, record in first.items()}
        self._complete()
        labels: dict[tuple, dict[str, None]] = {}
        for model in self._of.values():
            if model is not None:
                labels.setdefault(model.parts, {})[model.label] = None
        self._notes = [
            (set(names), f"{' and '.join(names)} are one model") for names in labels.values() if len(names) > 1
        ]
        self._label = {parts: next(iter(names)) for parts, names in labels.items()}
        self._telling = self._tell_apart()
        called = {parts: self._heading(parts) for parts in self._label}
        twice = {name for name in called.values() if list(called.values()).count(name) > 1}
        self._called = {
            parts: f"{name} (model={_hash(parts)})" if name in twice else name for parts, name in called.items()
        }

    def key(self, record: dict, role: str) -> tuple | None:
        """What the model is; None where nothing taught. Equal for equal models, whatever their labels."""
        model = self._of[role, record["group"]]
        return None if model is None else model.parts

    def called(self, record: dict, role: str) -> str | None:
        """Its label, with the keys that tell it from other models of this label: net (arguments.width=32)."""
        key = self.key(record, role)
        return None if key is None else self._called[key]

    def label(self, record: dict, role: str) -> str | None:
        key = self.key(record, role)
        return None if key is None else self._label[key]

    def telling(self, record: dict, role: str) -> dict[str, str]:
        """{key: value} that tell this model from others of its label."""
        key = self.key(record, role)
        return {} if key is None else self._telling[key]

    def pair(self, record: dict) -> str:
        """teacher -> student; the student alone without a teacher."""
        return " -> ".join(name for role in ROLES if (name := self.called(record, role)))

    def notes(self, records: Iterable[dict]) -> list[str]:
        """What a reader must know of the names of the models of these records."""
        labels = {self.label(record, role) for record in records for role in ROLES}
        return [note for names, note in self._notes if names & labels]

    def _complete(self) -> None:
        """A teacher of which little is on record is the one known model of this label and size, where there is one."""
        known = {model for model in self._of.values() if model is not None and model.is_known}
        for place, model in self._of.items():
            if model is None or model.is_known:
                continue
            source = dict(model.parts).get("source")
            like = {
                other.parts: other
                for other in known
                if (other.label, other.params) == (model.label, model.params)
                and source in (None, dict(other.parts).get("source"))
            }
            if len(like) == 1:
                (self._of[place],) = like.values()

    def _tell_apart(self) -> dict[tuple, dict[str, str]]:
        """{parts: the keys in which models of its label differ}; the source only where the same path has several."""
        found: dict[tuple, dict[str, str]] = {}
        for label in dict.fromkeys(self._label.values()):
            rivals = {parts: dict(parts) for parts, other in self._label.items() if other == label}
            keys = [key for key in dict.fromkeys(key for own in rivals.values() for key in own)]
            differ = [key for key in keys if len({own.get(key) for own in rivals.values()}) > 1]
            sources = {(own.get("path"), own.get("name"), own.get("source")) for own in rivals.values()}
            if "source" in differ and len({place[:2] for place in sources}) == len(sources):
                differ.remove("source")
            if "source" in differ:
                self._notes.append(
                    ({label}, f"{label} is {len(rivals)} different models: source= is a hash of their code")
                )
            for parts, own in rivals.items():
                found[parts] = {key: short(key, own[key]) for key in differ if key in own}
        return found

    def _heading(self, parts: tuple) -> str:
        telling = ", ".join(f"{key}={value}" for key, value in self._telling[parts].items())
        return f"{self._label[parts]} ({telling})" if telling else self._label[parts]


def first_of_groups(records: Iterable[dict]) -> dict[str, dict]:
    """{group: its first record}, in the order given."""
    found: dict[str, dict] = {}
    for record in records:
        found.setdefault(record["group"], record)
    return found


def known_runs(records: Iterable[dict]) -> dict[str, dict]:
    """{id: record} of the runs that are there, the teachers that `collect` put beside their students among them."""
    found: dict[str, dict] = {}
    for record in records:
        for one in (record, record.get("taught_by")):
            if one is not None:
                found.setdefault(one["id"], one)
    return found


def teacher_node(record: dict) -> dict[str, Any]:
    """The teacher in a record's identity; empty where there is none."""
    node = record["identity"].get("teacher")
    return node if isinstance(node, dict) else {}


def short(key: str, value: str) -> str:
    """A hash by its first digits; every other value as it is."""
    is_hash = key.rpartition(".")[2] in ("checkpoint", "source", "run", "checksum", "sha256")
    return value[:8] if is_hash and len(value) > 12 and all(letter in "0123456789abcdef" for letter in value) else value


def _model(record: dict, role: str, runs: dict[str, dict]) -> Model | None:
    if role == "student":
        node = record["identity"].get("student") or {"name": record["student"]["name"]}
        return Model(label_of(record, "student"), _parts(node), record["student"]["params"])
    node, taught = teacher_node(record), record["teacher"]
    if not node and not taught:
        return None
    label = label_of(record, "teacher")
    if "fresh" in node:  # a peer: only the architecture is given
        return Model(label, _parts(node["fresh"]), 0)
    params = taught["params"] if taught else 0
    own = runs.get(node.get("run") or (taught or {}).get("run_id") or "")
    if own is not None and own["identity"].get("student"):
        label = label if (taught or {}).get("label") else label_of(own, "student")
        return Model(label, _parts(own["identity"]["student"]), params)
    if "checkpoint" in node:
        return Model(label, _parts(node), params)
    name = (taught or node).get("name") or label
    source = record["code"].get("teacher")
    parts = {"name": name, "params": str(params), **({"source": source} if source else {})}
    return Model(label, tuple(parts.items()), params, is_known=False)


def _parts(node: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    found = flat({"model": {key: value for key, value in node.items() if key not in NOT_ARCHITECTURE}})
    parts = [(key.removeprefix("model."), value) for key, value in found.items() if value != "{}"]
    return tuple(sorted(parts, key=lambda part: (part[0] not in ("name", "path"), part)))


def _hash(parts: tuple) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:6]
