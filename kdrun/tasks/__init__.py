"""Tasks by name: what can be learned. A task's light attributes are readable without torch."""

from __future__ import annotations

import importlib
from typing import Any

from kdrun.errors import KdrunError, choices
from kdrun.tasks.base import Task

SHIPPED = ("image",)


def task(name: str) -> Task:
    """The task of that name. KdrunError, with near matches, for another."""
    if name not in SHIPPED:
        raise KdrunError(f"no task '{name}'. {choices(name, SHIPPED)}")
    shipped: Any = importlib.import_module(f"kdrun.tasks.{name}.task")
    one: Task = shipped.TASK
    return one


def task_of(config: Any) -> Task:
    """The task that the config's dataset belongs to."""
    return task("image")
