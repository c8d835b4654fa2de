"""The record of a run that begins."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from kdrun.engine.build import Parts
from kdrun.errors import KdrunError
from kdrun.runs import record as records
from kdrun.runs.checkpoint import plain_state, weights_sha256
from kdrun.runs.labels import dataset_label, label
from kdrun.runs.plan import Plan
from kdrun.runs.source import code
from kdrun.tasks.cost import parameters


def first_record(plan: Plan, parts: Parts, before: dict[str, Any] | None) -> dict[str, Any]:
    """The record of a run that begins; of a start before this one it keeps how it was started, when, and its peak memory."""
    config, dataset, task, student = plan.config, parts.dataset, parts.task, parts.distillation.student.module
    known = {term: weight for term, weight in parts.weights.items() if term not in parts.auto}
    record: dict[str, Any] = {
        "schema": records.SCHEMA, "id": plan.id, "group": plan.group, "seed": config.seed, "command": command(),
        "identity": plan.identity, "status": "running", "error": None, "task": task.name,
        "dataset": {
            "name": dataset.name, "label": dataset_label(config.dataset), "checksum": dataset.checksum,
            "train_n": len(dataset.train.labels),
            "holdout_n": len(dataset.holdout.labels) if dataset.holdout else 0, "test_n": len(dataset.test.labels),
            "classes": list(dataset.classes), "preprocessing": task.preprocessing(dataset),
        },
        "teacher": None,
        "student": {
            "name": config.student.name, "label": label(config.student),
            "init_sha256": weights_sha256(plain_state(student)), "sha256": None,
            "params": parameters(student), "multiply_adds": task.cost(student, parts.distillation.example),
        },
        "method": list(config.method), "weights": known, "recipe": dict(vars(config.recipe)), "protocol": config.protocol,
        "metrics": [metric.as_dict() for metric in task.metrics], "unit": task.unit,
        "score": None, "last": None, "best": None, "holdout": None, "agreement": None, "details": None,
        "time": {"start": records.now(), "end": None, "train_s": 0.0, "samples_per_s": 0.0, "data_wait": 0.0, "peak_memory": 0},
        "engine": {
            "device": parts.compute.device.type, "precision": parts.compute.precision, "compile": False, "cache": False,
            "deterministic": config.engine.deterministic,
        },
        "code": code(config), "versions": records.versions(), "git": records.git_state(Path.cwd()), "host": socket.gethostname(),
        "resumed": 0,
    }  # fmt: skip
    if parts.auto:
        record["weights_auto"] = {term: {"share": share, "weight": None} for term, share in parts.auto.items()}
    if before is not None:
        record |= {key: before[key] for key in ("command", "resumed")}
        record["time"] |= {key: before["time"][key] for key in ("start", "peak_memory")}
    wrong = records.misfit(record)
    if wrong:  # a task or a model of the user's gave it; found now, and not by a report after the training
        raise KdrunError(
            f"the record of this run could not be read again ({wrong}): does the task '{task.name}' give what it should?"
        )
    return record


def command() -> str:
    """The command line as typed."""
    return " ".join([Path(sys.argv[0]).name.replace("__main__.py", "kdrun"), *sys.argv[1:]])
