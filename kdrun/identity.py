"""What makes two runs the same run: one function, one test.

An allow-list: what is named here separates runs, everything else (outputs, protocol, device, verbosity, rerun) does not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from kdrun.config import Config, Loss, method_schema, no_teacher
from kdrun.errors import KdrunError
from kdrun.registry import METHODS

SCHEMA = 1
# Knobs added after a release, by path, with the value that stands for the behaviour before them: a run that has this value
# keeps the identity that it had before the knob existed, so finished runs are not orphaned.
NEUTRAL: dict[str, Any] = {
    "method.kd.standardize": False,
    "method.crd.positive": "exact",
    "method.cc.variant": "code",
    "method.ft.variant": "code",
    "method.fitnet.regressor": "unlike",
}


def identity(config: Config, checksum: str) -> dict[str, Any]:
    """The run's identity as a nested dict; `checksum` is the content checksum of its dataset.

    The teacher stands in it by its own identity, so that it can be computed before the teacher is trained; a checkpoint from
    outside stands in it by the hash of its content.
    """
    found = {
        "schema": SCHEMA,
        "task": "image",
        "dataset": {
            "name": config.dataset.name, "checksum": checksum, "holdout": config.dataset.holdout,
            "size": config.dataset.size, "mean": config.dataset.mean, "std": config.dataset.std, "flip": config.dataset.flip,
        },
        "student": _model(config.student),
        "method": {name: dataclasses.asdict(values) for name, values in sorted(config.method.items())},
        "task_weight": config.loss.task,
        "recipe": _recipe(config.recipe),
        "seed": config.seed,
        "precision": config.engine.precision,
        "deterministic": config.engine.deterministic,
        "teacher": _teacher(config, checksum),
    }  # fmt: skip
    return canonical(found, "")


def digest(found: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def group(found: dict[str, Any]) -> str:
    """The identity without the seed: runs of one group differ by their seed alone."""
    return digest({key: value for key, value in found.items() if key != "seed"})


def folder(config: Config, found: dict[str, Any]) -> Path:
    """outputs/runs/<dataset>/<method>/<teacher>-<student>/<group>/seed<k>."""
    pair = f"{config.teacher.name}-{config.student.name}"
    return Path(
        config.outputs,
        "runs",
        config.dataset.name,
        "+".join(config.method),
        pair,
        group(found)[:8],
        f"seed{config.seed}",
    )


def label_of(record: dict[str, Any], role: str) -> str:
    """What a record's "student", "teacher" or "dataset" is called, in older records too; "none" where nothing taught."""
    known = record[role] or {}
    if known.get("label"):
        return str(known["label"])
    node = record["identity"].get(role)
    node = node if isinstance(node, dict) else {}
    node = node.get("fresh", node)  # peers have the teacher's architecture
    path = str(node.get("path") or "") if node.get("name") == "import" else ""
    return path.rpartition(":")[2] or str(known.get("name") or node.get("name") or "none")


def teacher_config(config: Config) -> Config:
    """The run that trains this run's teacher: method none on the teacher's model, by its own recipe and seed."""
    student = dataclasses.replace(config.teacher, checkpoint=None)
    none = {"none": method_schema("none")(taps=[])}
    return dataclasses.replace(
        config, student=student, teacher=no_teacher(config.recipe), method=none, recipe=config.teacher.recipe, loss=Loss(),
        seed=config.teacher.seed, protocol="last", rerun=False,
    )  # fmt: skip


def is_fresh(config: Config) -> bool:
    """True where the method trains the teacher's architecture itself, from scratch (mutual learning)."""
    return any(METHODS.entry(name).attributes.get("teacher") == "fresh" for name in config.method)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    value = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                value.update(chunk)
    except OSError as error:
        raise KdrunError(f"cannot read {path}: {error.strerror}") from error
    return value.hexdigest()


def _teacher(config: Config, checksum: str) -> Any:
    if config.teacher.name == "none":
        return None
    if is_fresh(config):
        return {"fresh": _model(config.teacher)}
    if config.teacher.checkpoint:
        return {**_model(config.teacher), "checkpoint": file_sha256(config.teacher.checkpoint)}
    return {
        "run": digest(identity(teacher_config(config), checksum)),
        "weights": config.teacher.weights,
        "name": config.teacher.name,
    }


def _model(node: Any) -> dict[str, Any]:
    values = {k: v for k, v in dataclasses.asdict(node).items() if k not in ("seed", "weights", "recipe", "checkpoint")}
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
