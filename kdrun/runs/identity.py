"""What makes two runs the same run: one function, one test.

An allow-list: what is named here separates runs, everything else (outputs, protocol, device, verbosity, rerun) does not.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdrun.config.nodes import method_schema, no_teacher
from kdrun.config.registry import METHODS, TASKS
from kdrun.config.schema import Config, Loss
from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.source import builder, model_sha256
from kdrun.tasks import task_of

SCHEMA = 1
LONGEST = 80  # bytes of a label in a folder's name: two of them and a dash stay below the 255 of most file systems
# Keys of a model's node that do not say which model it is. The checkpoint stands by its hash, the others in the teacher's own run.
NOT_IDENTITY = ("seed", "weights", "recipe", "checkpoint", "label", "allow_weak")
# Knobs added after a release, by path, with the value that stands for the behaviour before them: a run that has this value
# keeps the identity that it had before the knob existed, so finished runs are not orphaned.
NEUTRAL: dict[str, Any] = {
    "method.kd.standardize": False,
    "method.crd.positive": "exact",
    "method.cc.variant": "code",
    "method.ft.variant": "code",
    "method.fitnet.regressor": "unlike",
}


def identity(config: Config, checksum: str, teacher_id: str | None = None) -> dict[str, Any]:
    """The run's identity as a nested dict; `checksum` is the content checksum of its dataset, `teacher_id` the digest of the
    identity of the run that trains its teacher, where the caller has it already.

    The teacher stands in it by its own identity, so that it can be computed before the teacher is trained; a checkpoint from
    outside stands in it by the hash of its content.
    """
    task = task_of(config)
    values = {
        "schema": SCHEMA,
        "task": task.name,
        "dataset": {
            "name": config.dataset.name, "checksum": checksum, "holdout": config.dataset.holdout,
            **task.identity(config.dataset),
        },
        "student": _model(config.student),
        "method": {name: dataclasses.asdict(values) for name, values in sorted(config.method.items())},
        "task_weight": config.loss.task,
        "recipe": _recipe(config.recipe),
        "seed": config.seed,
        "precision": config.engine.precision,
        "deterministic": config.engine.deterministic,
        "teacher": _teacher(config, checksum, teacher_id),
    }  # fmt: skip
    return canonical(values, "")


def digest(identity: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def group(identity: dict[str, Any]) -> str:
    """The identity without the seed: runs of one group differ by their seed alone."""
    return digest({key: value for key, value in identity.items() if key != "seed"})


def folder(config: Config, identity: dict[str, Any]) -> Path:
    """outputs/runs/<dataset>/<method>/<teacher>-<student>/<group>/seed<k>, by their labels; a run of another label is found.

    Labels are no part of the identity. Where this run was begun under another label, its folder is the one that it has.
    """
    runs, method, tail = (
        Path(config.outputs, "runs"),
        "+".join(config.method),
        (group(identity)[:8], f"seed{config.seed}"),
    )
    pair = f"{safe(label(config.teacher))}-{safe(label(config.student))}"
    expected = runs.joinpath(safe(dataset_label(config.dataset)), method, pair, *tail)
    if (expected / records.NAME).is_file():
        return expected
    for other in sorted(runs.glob("/".join(("*", glob.escape(method), "*", *tail)))):
        try:
            record = records.read(other)
        except KdrunError:
            continue  # what cannot be read is no run of ours
        if record is not None and record["id"] == digest(identity):
            return other
    return expected


def label(node: Any) -> str:
    """What a model is called on the screen and in folders: its label, the last part of an imported model's path, its name."""
    return _shown(node.label) or _last_part(vars(node)) or node.name


def dataset_label(data: Any) -> str:
    """What a dataset is called: its label, the name of a folder of images, its name."""
    return _shown(data.label) or _shown(TASKS.of(data.name).label(data)) or data.name


def label_of(record: dict[str, Any], role: str) -> str:
    """What a record's "student", "teacher" or "dataset" is called, in older records too; "none" where nothing taught."""
    known = record[role] or {}
    if known.get("label"):
        return str(known["label"])
    node = record["identity"].get(role)
    node = node if isinstance(node, dict) else {}
    node = node.get("fresh", node)  # peers have the teacher's architecture
    return _last_part(node) or str(known.get("name") or node.get("name") or "none")


def run_name(run: dict[str, Any] | tuple[Iterable[str], str, Any]) -> str:
    """The name of a run for a person, `kd resnet8 seed 0`: of its record, or of (methods, label of the student, seed)."""
    methods, student, seed = (run["method"], label_of(run, "student"), run["seed"]) if isinstance(run, dict) else run
    return f"{'+'.join(methods)} {student} seed {seed}"


def safe(label: str) -> str:
    """A label as the name of a folder: no slash, no dot in front, neither empty nor long."""
    plain = re.sub(r"[^\w.+=-]+", "-", unicodedata.normalize("NFC", label)).strip("-.")
    return plain.encode()[:LONGEST].decode(errors="ignore") or "unnamed"


def _last_part(node: dict[str, Any]) -> str:
    return _shown(str(node.get("path") or "").rpartition(":")[2]) if node.get("name") == "import" else ""


def _shown(text: str | None) -> str:
    """On one line, and in characters that every file and screen can hold."""
    return " ".join(os.fsencode(text or "").decode("utf-8", "replace").split())


def teacher_config(config: Config) -> Config:
    """The run that trains this run's teacher: method none on the teacher's model, by its own recipe and seed."""
    student = dataclasses.replace(config.teacher, checkpoint=None, checkpoint_key=None)
    none = {"none": method_schema("none")(taps=[])}
    return dataclasses.replace(
        config, student=student, teacher=no_teacher(config.recipe), method=none, recipe=config.teacher.recipe, loss=Loss(),
        seed=config.teacher.seed, protocol="last", rerun=False,
    )  # fmt: skip


def is_fresh(config: Config) -> bool:
    """True where the method trains the teacher's architecture itself, from scratch (mutual learning)."""
    return any(METHODS.entry(name).attributes.get("teacher") == "fresh" for name in config.method)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex. A process reads a file again only if its size or its time has changed."""
    try:
        status = os.stat(path)
        return _bytes_sha256(os.path.abspath(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise KdrunError(f"cannot read {path}: {error.strerror}") from error


@lru_cache
def _bytes_sha256(path: str, size: int, time: int) -> str:
    value = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            value.update(chunk)
    return value.hexdigest()


def _teacher(config: Config, checksum: str, teacher_id: str | None) -> Any:
    if config.teacher.name == "none":
        return None
    if is_fresh(config):
        return {"fresh": _model(config.teacher)}
    if config.teacher.checkpoint:
        return {**_model(config.teacher), "checkpoint": file_sha256(config.teacher.checkpoint)}
    return {
        "run": teacher_id or digest(identity(teacher_config(config), checksum)),
        "weights": config.teacher.weights,
        "name": config.teacher.name,
    }


def _model(node: Any) -> dict[str, Any]:
    values = {key: value for key, value in dataclasses.asdict(node).items() if key not in NOT_IDENTITY}
    for key in ("checkpoint_key", "output"):  # younger than the first runs; unset, they are no part of a run
        if values.get(key) is None:
            values.pop(key, None)
    if builder(node) is not None:  # not kdrun's own: two projects may have models of one name
        values["source"] = model_sha256(node)
    if node.checkpoint:
        values["checkpoint"] = file_sha256(node.checkpoint)
    return values


def _recipe(recipe: Any) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(recipe).items() if key != "name"}


def canonical(value: Any, path: str) -> Any:
    """Numbers by value (4 and 4.0 are one), and neutral knobs left out."""
    if isinstance(value, dict):
        inner = {key: (f"{path}.{key}".lstrip("."), item) for key, item in value.items()}
        return {
            key: canonical(item, where)
            for key, (where, item) in inner.items()
            if where not in NEUTRAL or item != NEUTRAL[where]
        }
    if isinstance(value, list):
        return [canonical(item, path) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def flat(identity: dict, prefix: str = "") -> dict[str, str]:
    """{dotted key: value as text} of an identity, without its seed and schema number."""
    texts: dict[str, str] = {}
    for key, value in identity.items():
        if isinstance(value, dict) and value:
            texts |= flat(value, f"{prefix}{key}.")
        elif prefix or key not in ("seed", "schema"):
            texts[prefix + key] = as_text(value)
    return texts


def as_text(value: Any) -> str:
    """A value as on the command line; 4 and 4.0 are one number."""
    is_number = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_number else value).replace("'", "").replace(", ", ",")
