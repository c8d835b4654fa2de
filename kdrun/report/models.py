"""The models of a table: when two of them are the same model, and the name of each.

A model is its architecture: its name or import path, its arguments and, where the record has it, the hash of its source. The origin of
its weights (a checkpoint, a seed, a recipe) and its taps do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kdrun.runs.identity import flat
from kdrun.runs.labels import label_of

ROLES = ("teacher", "student")
NOT_ARCHITECTURE = ("checkpoint", "checkpoint_key", "taps")


@dataclass(frozen=True)
class Model:
    """One model of a record. `parts`: the sorted pairs (dotted key, value) of its architecture. `is_known` is False for a teacher of
    which only the name and the size are known, because its own record is not among the records that were read."""

    label: str
    parts: tuple[tuple[str, str], ...]
    params: int
    is_known: bool = True


class Models:
    """The teacher and the student of every group of records. Different models of one label get different names.

    A model with several labels has the first one. `runs`: {id: record} of all known runs, teachers among them.
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
            (set(names), f"{' and '.join(names)} are the same model") for names in labels.values() if len(names) > 1
        ]
        self._label = {parts: next(iter(names)) for parts, names in labels.items()}
        self._differing = self._differing_keys()
        names = {parts: self._heading(parts) for parts in self._label}
        twice = {name for name in names.values() if list(names.values()).count(name) > 1}
        self._name = {
            parts: f"{name} (model={_hash(parts)})" if name in twice else name for parts, name in names.items()
        }

    def key(self, record: dict, role: str) -> tuple | None:
        """Equal for the same models, whatever their labels; None where there is no teacher."""
        model = self._of[role, record["group"]]
        return None if model is None else model.parts

    def name(self, record: dict, role: str) -> str | None:
        """Its label, with the keys in which it differs from other models of this label: net (arguments.width=32)."""
        key = self.key(record, role)
        return None if key is None else self._name[key]

    def label(self, record: dict, role: str) -> str | None:
        """Its label alone, which other models may have, too."""
        key = self.key(record, role)
        return None if key is None else self._label[key]

    def differing(self, record: dict, role: str) -> dict[str, str]:
        """{key: value} in which this model differs from others of its label."""
        key = self.key(record, role)
        return {} if key is None else self._differing[key]

    def pair(self, record: dict) -> str:
        """teacher -> student; the student alone without a teacher."""
        return " -> ".join(name for role in ROLES if (name := self.name(record, role)))

    def notes(self, records: Iterable[dict]) -> list[str]:
        """Notes for a reader about the names of the models of these records."""
        labels = {self.label(record, role) for record in records for role in ROLES}
        return [note for names, note in self._notes if names & labels]

    def _complete(self) -> None:
        """A teacher of which little is known is taken for the only known model of this label and size, where there is one."""
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

    def _differing_keys(self) -> dict[tuple, dict[str, str]]:
        """{parts: the keys in which models of its label differ}; the source only where one path has several sources."""
        differing: dict[tuple, dict[str, str]] = {}
        for label in dict.fromkeys(self._label.values()):
            rivals = {parts: dict(parts) for parts, other in self._label.items() if other == label}
            keys = [key for key in dict.fromkeys(key for own in rivals.values() for key in own)]
            differ = [key for key in keys if len({own.get(key) for own in rivals.values()}) > 1]
            sources = {(own.get("path"), own.get("name"), own.get("source")) for own in rivals.values()}
            if "source" in differ and len({place[:2] for place in sources}) == len(sources):
                differ.remove("source")
            if "source" in differ:
                self._notes.append(
                    ({label}, f"{label} stands for {len(rivals)} different models: source= is the hash of their code")
                )
            for parts, own in rivals.items():
                differing[parts] = {key: short(key, own[key]) for key in differ if key in own}
        return differing

    def _heading(self, parts: tuple) -> str:
        keys = ", ".join(f"{key}={value}" for key, value in self._differing[parts].items())
        return f"{self._label[parts]} ({keys})" if keys else self._label[parts]


def first_of_groups(records: Iterable[dict]) -> dict[str, dict]:
    """{group: its first record}, in the order given."""
    first: dict[str, dict] = {}
    for record in records:
        first.setdefault(record["group"], record)
    return first


def known_runs(records: Iterable[dict]) -> dict[str, dict]:
    """{id: record} of all known runs, with the teachers that `collect` put beside their students."""
    runs: dict[str, dict] = {}
    for record in records:
        for one in (record, record.get("taught_by")):
            if one is not None:
                runs.setdefault(one["id"], one)
    return runs


def teacher_node(record: dict) -> dict[str, Any]:
    """The teacher in a record's identity; empty where there is none."""
    node = record["identity"].get("teacher")
    return node if isinstance(node, dict) else {}


def short(key: str, value: str) -> str:
    """The first digits of a hash; every other value as it is."""
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
    values = flat({"model": {key: value for key, value in node.items() if key not in NOT_ARCHITECTURE}})
    parts = [(key.removeprefix("model."), value) for key, value in values.items() if value != "{}"]
    return tuple(sorted(parts, key=lambda part: (part[0] not in ("name", "path"), part)))


def _hash(parts: tuple) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:6]
