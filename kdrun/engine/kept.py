"""The teacher's logits on every training sample, computed once and kept on disk: one pass of the teacher serves a whole sweep.

Only where a sample is the same input in every epoch, and where the methods need the teacher's logits alone. Such a run always
learns from kept logits, so its bits do not depend on whether the file was there before.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import torch
from torch import Tensor

from kdrun.engine.build import Parts
from kdrun.errors import KdrunError
from kdrun.runs.checkpoint import load_weights, save_tensors
from kdrun.runs.plan import Plan


def keep_logits(plan: Plan, parts: Parts, teacher_sha256: str) -> str | None:
    """Let the distillation use kept logits; returns a line for the screen. None where the teacher must run in every step."""
    distillation, config = parts.distillation, plan.config
    if parts.task.augments(config.recipe) or not distillation.needs_logits_alone:
        return None
    file = _file(plan, parts, teacher_sha256)
    began = time.perf_counter()
    logits = _read(file)
    kept = "read from"
    if logits is None:
        logits, kept = teacher_logits(parts), "computed and kept in"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, {"logits": logits})
    distillation.kept = logits.to(parts.compute.device)
    seconds = time.perf_counter() - began
    return f"logits   of the teacher for {len(parts.train.split):,} {parts.task.unit}: {kept} {file} ({seconds:.0f} s)"


def teacher_logits(parts: Parts) -> Tensor:
    """float32 (train_n, ...), by the row in the training set before any split; NaN for rows of the holdout."""
    teacher, facts = parts.distillation.teacher, parts.distillation.data
    assert teacher is not None
    teacher.eval()
    logits: Tensor | None = None
    with torch.no_grad():
        for batch in parts.train.batches():
            output = teacher(batch["input"]).logits.cpu()
            if logits is None:
                logits = torch.full((facts.train_n, *output.shape[1:]), float("nan"))
            logits[batch["index"].cpu()] = output
    assert logits is not None
    return logits


def _read(file: Path) -> Tensor | None:
    """The logits in a file; None where it is missing or broken."""
    if not file.is_file():
        return None
    try:
        return load_weights(file)["logits"]
    except (KdrunError, KeyError):
        return None


def _file(plan: Plan, parts: Parts, teacher_sha256: str) -> Path:
    """Named after all that the logits depend on: teacher, data, and how they are computed."""
    content = {
        "teacher": teacher_sha256, "model": plan.identity["teacher"],
        "dataset": plan.identity["dataset"], "precision": parts.compute.precision,
        "device": parts.compute.device.type, "torch": torch.__version__, "threads": torch.get_num_threads(),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Path(plan.config.outputs, "cache", "logits", f"{digest}.safetensors")
