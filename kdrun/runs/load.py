"""A finished run in Python: its student as an nn.Module, its record, its logits."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from kdrun.config.registry import MODELS, TASKS, import_plugins
from kdrun.errors import KdrunError, choices
from kdrun.runs import record as records
from kdrun.runs.checkpoint import load_into, load_weights
from kdrun.runs.folder import PREDICTIONS, TASK, WEIGHTS
from kdrun.runs.labels import label_of, run_name
from kdrun.runs.source import is_changed
from kdrun.tasks.metric import metric_of
from kdrun.tasks.model import build_model


@dataclass(repr=False)
class Run:
    """`student`: the model, in eval mode. `record`: as in docs/records.md. `folder`: where the files of the run lie."""

    student: nn.Module
    record: dict[str, Any]
    folder: Path

    def __repr__(self) -> str:
        score = metric_of(self.record).text(self.record["last"]["score"])
        return f"Run({run_name(self.record)}, last {score}, {self.folder})"

    def logits(self) -> tuple[Tensor, Tensor]:
        """The logits (N, classes) and the labels (N,) of the test set, after the last epoch."""
        predictions = self.predictions()
        if "logits" not in predictions:
            raise KdrunError(f"{self.folder} has no logits; run.predictions() has {', '.join(predictions)}")
        return predictions["logits"], predictions["labels"]

    def predictions(self) -> dict[str, Tensor]:
        """What the student gives for the test set after the last epoch, by name. Of detectors: boxes (n, 6) in px of the image with
        confidence and class, and how many of them each image has (boxes_of_image); the same of the truth."""
        return load_weights(self.folder / PREDICTIONS)


def _built(node: dict[str, Any], outputs: int) -> nn.Module:
    arguments = {name: node[name] for name in MODELS.entry(node["name"]).arguments if name in node}
    return build_model(node["name"], outputs, arguments, node.get("output"))


def load(folder: str | Path, which: str = "last") -> Run:
    """Load a finished run. `which`: last, best (chosen on the test set) or holdout."""
    folder = Path(folder).expanduser()
    record = records.read(folder)
    if record is None or record["status"] != "done":
        state = "holds no record.json" if record is None else f"is {record['status']}, not done"
        raise KdrunError(
            f"{folder} {state}; give the folder of a finished run, as in outputs/runs/DATASET/METHOD/PAIR/HASH/seed0"
        )
    if which not in WEIGHTS or not (folder / WEIGHTS[which]).is_file():
        present = [name for name, file in WEIGHTS.items() if (folder / file).is_file()]
        raise KdrunError(f"no weights '{which}' in {folder}. {choices(which, present)}")
    import_plugins(records.config(folder).get("plugins") or [])
    node = record["identity"]["student"]
    if is_changed(SimpleNamespace(**node), record["code"]["student"]):
        warnings.warn(
            f"the source of {label_of(record, 'student')} has changed since {folder} was trained", stacklevel=3
        )
    task = TASKS.get(record["task"])
    model = task.rebuild(record, folder / TASK) or _built(node, task.outputs_of(record))
    load_into(model, load_weights(folder / WEIGHTS[which]), folder / WEIGHTS[which], record["student"]["name"])
    return Run(task.preprocessor(model, record, folder / TASK).eval(), record, folder)
