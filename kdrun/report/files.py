"""The files of one run, read for `kdrun verify` and `kdrun diff`: a broken file is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.runs import record as records


def no_record(folder: Path) -> KdrunError:
    """The error for a folder that holds no run."""
    return KdrunError(
        f"{folder} has no {records.NAME}; give a run's folder, such as outputs/runs/DATASET/METHOD/PAIR/HASH/seed0"
    )


def read_record(run: Path) -> dict[str, Any]:
    """The record of a run. KdrunError where there is none, or where a key is missing."""
    record = records.read(run)
    if record is None:
        raise no_record(run)
    return record


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of curves.jsonl. KdrunError, naming file and line, for a line that is broken or lacks a key."""
    epochs = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            _ = line["stage"], line["epoch"], line["test"] and line["test"]["score"]
        except (ValueError, LookupError, TypeError) as error:
            raise KdrunError(f"{path} is broken in line {number} ({type(error).__name__}: {error})") from error
        epochs.append(line)
    return epochs
