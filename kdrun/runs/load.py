"""A finished run in Python: its student as an nn.Module, its record, its logits."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.config.registry import MODELS, import_plugins
from kdrun.errors import KdrunError, choices
from kdrun.runs import record as records
from kdrun.runs.checkpoint import load_into, load_weights
from kdrun.runs.identity import label_of
from kdrun.runs.source import is_changed
from kdrun.tasks.model import build_model


class Normalised(nn.Module):
    """A student with its preprocessing: images (B, 3, H, W) as uint8, or as floats in [0, 1], to logits (B, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images_BCHW.shape)}; (B, 3, H, W) is wanted")
        if images_BCHW.dtype != torch.uint8 and not 0 <= images_BCHW.min() <= images_BCHW.max() <= 1:
            raise ValueError("images of floats must lie in [0, 1]; pixels from 0 to 255 are given as uint8")
        x_BCHW = images_BCHW.float() / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW
        return self.model((x_BCHW - self.mean) / self.std)


@dataclass(repr=False)
class Run:
    """`student` in eval mode, `record` as in docs/records.md, `folder` where its files lie."""

    student: nn.Module
    record: dict[str, Any]
    folder: Path

    def __repr__(self) -> str:
        name, score = "+".join(self.record["method"]), 100 * self.record["last"]["score"]
        return f"Run({name} {label_of(self.record, 'student')} seed {self.record['seed']}, last {score:.2f}, {self.folder})"

    def logits(self) -> tuple[Tensor, Tensor]:
        """The last epoch's test logits (N, classes) and labels (N,)."""
        found = load_weights(self.folder / "test_logits.safetensors")
        return found["logits"], found["labels"]


def load(folder: str | Path, which: str = "last") -> Run:
    """Load a finished run. `which`: last, best (chosen on the test set) or holdout."""
    folder = Path(folder).expanduser()
    record = records.read(folder)
    if record is None or record["status"] != "done":
        state = "holds no record.json" if record is None else f"is {record['status']}, not done"
        raise KdrunError(
            f"{folder} {state}; give the folder of a finished run, as in outputs/runs/DATASET/METHOD/PAIR/HASH/seed0"
        )
    files = {
        "last": "student.safetensors",
        "best": "student-best.safetensors",
        "holdout": "student-holdout.safetensors",
    }
    if which not in files or not (folder / files[which]).is_file():
        raise KdrunError(
            f"no weights '{which}' in {folder}. {choices(which, [k for k, f in files.items() if (folder / f).is_file()])}"
        )
    import_plugins(records.config(folder).get("plugins") or [])
    node = record["identity"]["student"]
    if is_changed(SimpleNamespace(**node), record["code"]["student"]):
        warnings.warn(
            f"the source of {label_of(record, 'student')} has changed since {folder} was trained", stacklevel=3
        )
    arguments = {name: node[name] for name in MODELS.entry(node["name"]).arguments if name in node}
    model = build_model(node["name"], len(record["dataset"]["classes"]), arguments, node.get("output"))
    load_into(model, load_weights(folder / files[which]), folder / files[which], record["student"]["name"])
    student = Normalised(model, record["dataset"]["mean"], record["dataset"]["std"]).eval()
    return Run(student, record, folder)
