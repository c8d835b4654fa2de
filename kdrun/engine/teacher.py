"""The trained teacher of a run: its weights, held against its record, and its score before the student's first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdrun.engine.build import Parts
from kdrun.engine.loop import evaluate
from kdrun.errors import KdrunError
from kdrun.runs import folder as files
from kdrun.runs.checkpoint import load_into, load_weights, weights_sha256
from kdrun.runs.identity import file_sha256
from kdrun.runs.labels import label
from kdrun.runs.plan import Plan
from kdrun.screen import Screen
from kdrun.tasks.base import Evaluation
from kdrun.tasks.cost import parameters


def trained_weights(plan: Plan) -> dict[str, Tensor] | None:
    """The weights of the run's teacher where its own run is finished; None where it is not, or where there is none."""
    if plan.teacher is None:
        return None
    try:
        record = plan.teacher.finished()
    except KdrunError:
        return None  # readying the teacher says what is wrong with it
    return weights_of(plan.teacher, record, plan.config.teacher.weights)[1] if record is not None else None


def weights_of(plan: Plan, record: dict[str, Any], which: str) -> tuple[Path, dict[str, Tensor]]:
    """The file and the weights that a teacher's finished run left, held against its record.

    A record has the hash of the last epoch's weights alone; those of another best epoch are held against their score.
    """
    path = plan.folder / files.WEIGHTS[which]
    way = f"train the teacher again: kdrun teacher=none method=none student={plan.config.student.name} ... rerun=true"
    if not path.is_file():
        raise KdrunError(f"the teacher's weights {path} are gone; {way}")
    weights = load_weights(path)
    sha256, recorded = weights_sha256(weights), record["student"]["sha256"]
    if record[which]["epoch"] == record["last"]["epoch"] and sha256 != recorded:
        raise KdrunError(f"{path} has other weights ({sha256[:8]}) than its record says ({recorded[:8]}); {way}")
    return path, weights


def ready_teacher(
    plan: Plan, parts: Parts, trained: dict[str, Any] | None, screen: Screen
) -> tuple[dict[str, Any], Evaluation]:
    """Load the teacher, evaluate it and say its score.

    `trained`: the record of its own run; None for a checkpoint from outside. Returns what this run's record says of it.
    """
    config, teacher = plan.config, parts.distillation.teacher
    assert teacher is not None
    recorded = None
    if trained is None:
        sha256 = file_sha256(config.teacher.checkpoint)
    else:
        assert plan.teacher is not None
        path, weights = weights_of(plan.teacher, trained, config.teacher.weights)
        sha256, recorded = file_sha256(path), trained[config.teacher.weights]["score"]
        load_into(teacher.module, weights, path, config.teacher.name)
    params = parameters(teacher.module)
    parts.task.fold(teacher.module)
    evaluation = evaluate(parts.task, teacher.module, parts.evals["test"], parts.compute.autocast)
    note = _note(parts, evaluation, recorded)
    metric = parts.task.metrics[0]
    tell = screen.note if screen.brief and not note else screen.say
    tell(f"{'  ' * screen.brief}teacher  {label(config.teacher)}  test {metric.text(evaluation.score)}{note}")
    entry = {
        "name": config.teacher.name, "label": label(config.teacher), "run_id": trained["id"] if trained else None,
        "sha256": sha256, "params": params, "score": evaluation.score,
    }  # fmt: skip
    return entry, evaluation


def _note(parts: Parts, evaluation: Evaluation, recorded: float | None) -> str:
    """What is odd about the score of a teacher that kdrun trained."""
    if recorded is None:
        return ""
    metric = parts.task.metrics[0]
    if not metric.is_close(evaluation.score, recorded):
        return f"  (its record says {metric.text(recorded)}: another device or precision?)"
    if parts.task.is_near_chance(evaluation):
        return "  (near chance, as it was trained: too few steps, or a rate too low or too high? teacher.recipe.epochs, .lr)"
    return ""


def check_teacher(plan: Plan, parts: Parts, evaluation: Evaluation, trained: dict[str, Any] | None) -> None:
    """Stop before the student's first step where the teacher is too weak to be what the user meant."""
    config = plan.config
    if not evaluation.is_finite():
        raise KdrunError(
            f"teacher {label(config.teacher)} gives numbers that are not finite on the test set; its weights are broken"
        )
    if config.teacher.allow_weak:
        return
    recorded = trained[config.teacher.weights]["score"] if trained is not None else None
    teacher = parts.distillation.teacher
    assert teacher is not None

    def model(x: Any) -> Any:
        teacher.eval()
        with torch.no_grad():
            return teacher(x).logits

    why = parts.task.weakness(evaluation, recorded, parts.dataset, model, parts.evals["test"])
    if why:
        raise KdrunError(
            f"teacher {label(config.teacher)} is too weak to learn from: {why} (teacher.allow_weak=true goes on with it)"
        )
