"""What runs, models and datasets are called: on the screen, in reports, and in the names of folders."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from kdrun.config.registry import TASKS

LONGEST = 80  # bytes of a label in a folder's name: two labels and a dash are shorter than 255 bytes, the limit of most file systems


def label(node: Any) -> str:
    """The name of a model on the screen and in folders: its label, else the last part of an imported model's path, else its name."""
    return _shown(node.label) or _last_part(vars(node)) or node.name


def dataset_label(data: Any) -> str:
    """The name of a dataset on the screen and in folders: its label, else the name of its folder, else its name."""
    return _shown(data.label) or _shown(TASKS.of(data.name).label(data)) or data.name


def label_of(record: dict[str, Any], role: str) -> str:
    """The name of the "student", "teacher" or "dataset" of a record, also of an older one; "none" for a run without a teacher."""
    known = record[role] or {}
    if known.get("label"):
        return str(known["label"])
    node = record["identity"].get(role)
    node = node if isinstance(node, dict) else {}
    node = node.get("fresh", node)  # peers have the teacher's architecture
    return _last_part(node) or str(known.get("name") or node.get("name") or "none")


def run_name(run: dict[str, Any] | tuple[Iterable[str], str, Any]) -> str:
    """The name of a run for a person, as in `kd resnet8 seed 0`. `run`: its record, or (methods, label of the student, seed)."""
    methods, student, seed = (run["method"], label_of(run, "student"), run["seed"]) if isinstance(run, dict) else run
    return f"{'+'.join(methods)} {student} seed {seed}"


def safe(label: str) -> str:
    """A label as the name of a folder: without slashes, without a dot in front, not empty, not too long."""
    plain = re.sub(r"[^\w.+=-]+", "-", unicodedata.normalize("NFC", label)).strip("-.")
    return plain.encode()[:LONGEST].decode(errors="ignore") or "unnamed"


def _last_part(node: dict[str, Any]) -> str:
    return _shown(str(node.get("path") or "").rpartition(":")[2]) if node.get("name") == "import" else ""


def _shown(text: str | None) -> str:
    """The text on one line, in characters that every file and screen can show."""
    return " ".join(os.fsencode(text or "").decode("utf-8", "replace").split())
