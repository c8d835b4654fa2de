"""What makes two runs the same run: one function, one test. Labels (kdrun/runs/labels.py) are no part of it.

An allow-list: two runs differ if a value named here differs. All other values (outputs, protocol, device, verbosity, rerun) make no
difference.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from pathlib import Path
from typing import Any

from kdrun.config.nodes import method_schema, no_teacher
from kdrun.config.registry import METHODS
from kdrun.config.schema import Config, Loss
from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.labels import dataset_label, label, safe
from kdrun.runs.source import builder, model_sha256
from kdrun.tasks import task_of
from kdrun.tasks.cache import file_sha256

IDENTITY_SCHEMA = 1
# Keys of a model's node that do not say which model it is. The hash of the checkpoint takes the place of its path; the other keys are
# part of the identity of the teacher's own run.
NOT_IDENTITY = ("seed", "weights", "recipe", "checkpoint", "label", "allow_weak")
# Settings that are newer than a release, with the value that means the behaviour before. A run with this value keeps the identity that
# it had before the setting existed, so that finished runs are still recognised.
NEUTRAL: dict[str, Any] = {
    "method.kd.standardize": False,
    "method.crd.positive": "exact",
    "method.cc.variant": "code",
    "method.ft.variant": "code",
    "method.fitnet.regressor": "unlike",
}


def identity(config: Config, checksum: str, teacher_id: str | None = None) -> dict[str, Any]:
    """The identity of the run as a nested dict.

    `checksum`: the checksum of the content of its dataset. `teacher_id`: the digest of the identity of the run that trains its teacher,
    if the caller knows it already.
    The teacher is named by the identity of its own run, so that this function works before the teacher is trained. A checkpoint from
    outside is named by the hash of its content.
    """
    task = task_of(config)
    values = {
        "schema": IDENTITY_SCHEMA,
        "task": task.name,
        "dataset": {
            "name": config.dataset.name, "checksum": checksum, "holdout": config.dataset.holdout,
            **task.identity(config.dataset),
        },
        "student": _model(config.student, task),
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
    """The digest of an identity without its seed. Runs of one group differ only in the seed."""
    return digest({key: value for key, value in identity.items() if key != "seed"})


def folder(config: Config, identity: dict[str, Any]) -> Path:
    """outputs/runs/<dataset>/<method>/<teacher>-<student>/<group>/seed<k>, with the labels of dataset and models.

    Labels are no part of the identity. If the same run was started under other labels, its folder is the existing one.
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
            continue  # a record that cannot be read is not this run
        if record is not None and record["id"] == digest(identity):
            return other
    return expected


def alone_config(config: Config) -> Config:
    """The same student trained alone: method none, by this run's recipe and seed."""
    none = {"none": method_schema("none")(taps=[])}
    return dataclasses.replace(
        config, teacher=no_teacher(config.recipe), method=none, loss=Loss(), protocol="last", rerun=False
    )


def teacher_config(config: Config) -> Config:
    """The run that trains this run's teacher: method none on the teacher's model, by its own recipe and seed."""
    student = dataclasses.replace(config.teacher, checkpoint=None, checkpoint_key=None)
    teacher = config.teacher
    return dataclasses.replace(alone_config(config), student=student, recipe=teacher.recipe, seed=teacher.seed)


def is_fresh(config: Config) -> bool:
    """True if a method itself trains networks of the teacher's architecture from scratch (mutual learning)."""
    return any(METHODS.entry(name).attributes.get("teacher") == "fresh" for name in config.method)


def _teacher(config: Config, checksum: str, teacher_id: str | None) -> Any:
    if config.teacher.name == "none":
        return None
    if is_fresh(config):
        return {"fresh": _model(config.teacher, task_of(config))}
    if config.teacher.checkpoint:
        return {**_model(config.teacher, task_of(config)), "checkpoint": file_sha256(config.teacher.checkpoint)}
    return {
        "run": teacher_id or digest(identity(teacher_config(config), checksum)),
        "weights": config.teacher.weights,
        "name": config.teacher.name,
    }


def _model(node: Any, task: Any) -> dict[str, Any]:
    own = {key: value for key, value in dataclasses.asdict(node).items() if key not in NOT_IDENTITY}
    values = task.model_identity(own)
    for key in (
        "checkpoint_key",
        "output",
    ):  # newer than the first runs; if they are not set, they are no part of the identity
        if values.get(key) is None:
            values.pop(key, None)
    if builder(node) is not None:  # not kdrun's own: two projects may have different models of one name
        values["source"] = model_sha256(node)
    if node.checkpoint:
        values["checkpoint"] = file_sha256(node.checkpoint)
    return values


def _recipe(recipe: Any) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(recipe).items() if key != "name"}


def canonical(value: Any, path: str) -> Any:
    """The same values with 4.0 as 4, and without settings that have their neutral value (NEUTRAL)."""
    if isinstance(value, dict):
        inner = {key: (f"{path}.{key}".lstrip("."), item) for key, item in value.items()}
        return {
            key: canonical(item, where)
            for key, (where, item) in inner.items()
            if (where not in NEUTRAL or item != NEUTRAL[where]) and not (key == "optimizer" and item == {})
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
    """A value as a user types it on the command line; 4 and 4.0 are both 4."""
    is_number = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_number else value).replace("'", "").replace(", ", ",")
