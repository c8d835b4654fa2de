"""Files of ultralytics: a .pt as a teacher's or a student's weights, and best.pt and last.pt of a run, which open without kdrun.

A .pt holds a pickled model. Reading one may run code, so it is read only where the user names it, by the library's own loader.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdrun.errors import KdrunError
from kdrun.tasks import cache
from kdrun.tasks.detection import library

library.ready()

from ultralytics import __version__ as RELEASE  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.nn.modules.head import Detect  # noqa: E402
from ultralytics.nn.tasks import load_checkpoint  # noqa: E402

from kdrun.tasks.detection.detector import plain  # noqa: E402


def load(model: nn.Module, path: str, name: str, role: str, classes: list[str]) -> str | None:
    """Load a .pt of ultralytics into a detector; returns a line for the user, or None for a file of another kind, which is not touched.

    KdrunError for a file that cannot be read, a model of another task, head or size, and other classes.
    """
    if Path(path).suffix != ".pt" or not Path(path).is_file():
        return None
    try:
        other, _ = load_checkpoint(path, device="cpu")
    except Exception as error:  # whatever an old or foreign pickle raises
        what = " ".join(str(error).split())[:200]
        raise KdrunError(
            f"{path} is no model that ultralytics {RELEASE} can load: {type(error).__name__}: {what}. A model of another release: export "
            "its weights there (torch.save of its state_dict)"
        ) from error
    other = getattr(other, "student_model", other)
    head = other.model[-1] if isinstance(getattr(other, "model", None), nn.Sequential) else None
    if type(head) is not Detect:
        raise KdrunError(
            f"{path} holds a model with the head {type(head).__name__}, not Detect: {role}={name} is a detector of boxes "
            f"(task of the file: {getattr(other, 'task', 'unknown')})"
        )
    theirs = [str(value) for _, value in sorted(dict(other.names).items())] if hasattr(other, "names") else []
    if head.nc != len(classes) or (theirs and theirs != classes):
        raise KdrunError(
            f"{path} was trained on {head.nc} classes ({_some(theirs)}), and the dataset has {len(classes)} ({_some(classes)}): they must "
            "be the same, in the same order"
        )
    mine, weights = model.state_dict(), {key: value.float() for key, value in other.state_dict().items()}
    wrong = next((key for key in mine if key not in weights or weights[key].shape != mine[key].shape), None)
    if wrong is not None or len(weights) != len(mine):
        raise KdrunError(
            f"{path} holds another model than {name} (its yaml: {_yaml_of(other)}); choose {role}={_yaml_of(other)}"
        )
    model.load_state_dict({key: value.to(mine[key].dtype) for key, value in weights.items()})
    return f"{path} is a pickle of ultralytics, which may run code when it is read; it was read because you named it"


def _yaml_of(model: Any) -> str:
    """The name of a model's yaml, such as yolov8s."""
    yaml = getattr(model, "yaml", {})
    stem, scale = Path(str(yaml.get("yaml_file", "unknown"))).stem, str(yaml.get("scale", ""))
    return stem if not scale or stem.endswith(scale) else stem + scale


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def export(folder: Path, dataset: Any, student: nn.Module, chosen: Mapping[str, Any], recipe: Any) -> None:
    """Write last.pt, and best.pt of the epoch that was best on val: the student alone, in half precision, as ultralytics writes them."""
    settings = {
        **vars(get_cfg()), "imgsz": dataset.imgsz, "batch": recipe.batch_size, "epochs": recipe.epochs, "task": "detect",
        "model": None, "data": None,
    }  # fmt: skip
    for which, weights in chosen.items():
        model = plain(student, weights, dataset.classes, settings).half()
        content = {
            "epoch": -1, "best_fitness": None, "model": model, "ema": None, "updates": None, "optimizer": None,
            "train_args": settings, "train_metrics": None, "train_results": None,
            "date": datetime.datetime.now().isoformat(), "version": RELEASE,
            "license": "AGPL-3.0 (https://ultralytics.com/license)", "docs": "https://docs.ultralytics.com",
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(content, buffer)
        cache.write(folder / f"{which}.pt", buffer.getvalue())
