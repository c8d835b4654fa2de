"""Tasks: what can be learned. `from kdrun.tasks import Task, Metric, register` is what a task of your own needs."""

from __future__ import annotations

from typing import Any

from kdrun.config.registry import TASKS
from kdrun.tasks.base import Evaluation, Task
from kdrun.tasks.metric import Metric

register = TASKS.register

__all__ = ["Evaluation", "Metric", "Task", "register", "task_of"]


def task_of(config: Any) -> Task:
    """The task that the config's dataset belongs to, with the metrics of that dataset."""
    task: Task = TASKS.of(config.dataset.name).of(config.dataset)
    return task
