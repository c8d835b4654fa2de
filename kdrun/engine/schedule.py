"""Learning rates and term weights as functions of how far training is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdrun.config.schema import Recipe
from kdrun.errors import KdrunError, choices

KINDS = {"constant": (), "linear": ("to",), "cosine": ("to",), "warmup": ("until",), "off": ("after",)}
OPTIONAL = {"linear": ("from", "start", "until"), "cosine": ("from", "start", "until")}


def learning_rate(recipe: Recipe, epochs: int, epoch: int, share_of_epoch: float) -> float:
    """The rate of one step. `epoch` counts from 0; warm-up, cosine and linear move every step, milestones at epoch boundaries."""
    progress = (epoch + share_of_epoch) / epochs
    if recipe.warmup and progress < recipe.warmup:
        return recipe.lr * max(progress / recipe.warmup, 1e-3)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (progress - recipe.warmup) / (1 - recipe.warmup)))
    if recipe.schedule == "linear":
        return recipe.lr * (1 - progress) / (1 - recipe.warmup)
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** sum(epoch >= round(share * epochs) for share in recipe.milestones)
    return recipe.lr


def check_schedule(where: str, schedule: Mapping[str, Any]) -> None:
    """`{kind: linear, to: 0.25}` and the like; anything else is an error."""
    if not isinstance(schedule, Mapping):
        raise KdrunError(f"{where} is {schedule!r}; give a kind, as in {{kind: linear, to: 0.25}}")
    kind = str(schedule.get("kind", ""))
    if kind not in KINDS:
        raise KdrunError(f"{where}.kind is '{kind}'. {choices(kind, KINDS)}")
    wanted, optional = {"kind", *KINDS[kind]}, set(OPTIONAL.get(kind, ()))
    if not wanted <= set(schedule) <= wanted | optional:
        may = f", and may have {sorted(optional)}" if optional else ""
        raise KdrunError(f"{where} has keys {sorted(schedule)}; {kind} takes {sorted(wanted)}{may}")
    for key in sorted(set(schedule) - {"kind"}):
        value, most = schedule[key], math.inf if key in ("from", "to") else 1  # the others are shares of the stage
        if not isinstance(value, (int, float)) or not 0 <= value <= most or math.isinf(value):
            wanted_value = "a number of 0 or more" if key in ("from", "to") else "a share of the stage, from 0 to 1"
            raise KdrunError(f"{where}.{key} is {value!r}; it must be {wanted_value}")


def factor(schedule: Mapping[str, Any] | None, progress: float) -> float:
    """What a term's weight is multiplied by at `progress` in [0, 1] of its stage.

    constant: 1. linear and cosine: from 1 at 0 to `to` at `until` (1), and 0 before `start` (0); with `from`, a ramp from that value
    at `start` to `to` at `until`, and constant before and after. warmup: from 0 to 1 at `until`. off: 1, then 0 from `after` on.
    """
    if schedule is None or schedule["kind"] == "constant":
        return 1.0
    if schedule["kind"] == "warmup":
        return min(1.0, progress / schedule["until"]) if schedule["until"] else 1.0
    if schedule["kind"] == "off":
        return 0.0 if progress >= schedule["after"] else 1.0
    start, until = schedule.get("start", 0), schedule.get("until", 1)
    if "from" in schedule:
        first, way = schedule["from"], _way(progress - start, until - start)
    else:
        if progress < start:
            return 0.0
        first, way = 1, _way(progress, until)
    if schedule["kind"] == "linear":
        return first + (schedule["to"] - first) * way
    return schedule["to"] + (first - schedule["to"]) * 0.5 * (1 + math.cos(math.pi * way))


def _way(done: float, whole: float) -> float:
    """Which part of a way is done, from 0 to 1."""
    return min(1.0, max(0.0, done / whole)) if whole > 0 else float(done >= 0)
