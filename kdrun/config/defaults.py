"""Defaults of a method for one task: the key `tasks` of its yaml. `{detection: {temperature: 1.0}}` is another default for detection."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import yaml

from kdrun.config.nodes import method_schema
from kdrun.config.registry import TASKS
from kdrun.config.schema import conf_folder
from kdrun.errors import KdrunError, choices


def of_task(name: str, values: dict[str, Any], task: str) -> dict[str, Any]:
    """The settings of a method for a run of `task`, without the key `tasks`.

    A default of the task replaces a value that still is the one of conf/method/NAME.yaml, so a value that the user sets wins; of a mapping
    (weights), each entry by itself. To have the value of the other tasks here, set `method.NAME.tasks.TASK.KEY`. KdrunError for a
    task or a key that does not exist.
    """
    if "tasks" not in values:
        return values
    tasks, own = values["tasks"], {key: value for key, value in values.items() if key != "tasks"}
    _check(name, tasks)
    shipped = shipped_settings(name)
    for key, default in (tasks.get(task) or {}).items():
        if isinstance(default, dict) and isinstance(own.get(key, {}), dict):
            before, mine = shipped.get(key, {}), own.get(key, {})
            own[key] = {**mine, **{k: v for k, v in default.items() if mine.get(k) == before.get(k)}}
        elif own.get(key) == shipped.get(key):
            own[key] = default
    return own


@cache
def shipped_settings(name: str) -> dict[str, Any]:
    """The settings of conf/method/NAME.yaml as they stand there; empty where kdrun has no such method."""
    file = conf_folder() / "method" / f"{name}.yaml"
    whole: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return whole.get(name) or {}


def _check(name: str, tasks: Any) -> None:
    where, shipped = f"method.{name}.tasks", shipped_settings(name)
    if not shipped:
        raise KdrunError(
            f"{where}: only kdrun's own methods have defaults for a task; write a second file, as in method/{name}_detection.yaml "
            f"with the key {name}, and choose it with method={name}_detection"
        )
    if not isinstance(tasks, dict):
        raise KdrunError(f"{where} must hold names of tasks with settings, as in {where}.detection.KEY=VALUE")
    known = list(dict.fromkeys([*(task.name for task in TASKS.all()), *shipped.get("tasks", {})]))
    keys = [one.name for one in fields(method_schema(name))]
    for task, settings in tasks.items():
        if task not in known:
            raise KdrunError(f"no task '{task}' in {where}. {choices(str(task), known)}")
        if settings is not None and not isinstance(settings, dict):
            raise KdrunError(f"{where}.{task} must hold settings with values, as in {where}.{task}.KEY=VALUE")
        for key in settings or {}:
            if key not in keys:
                raise KdrunError(f"no key '{key}' in {where}.{task}. {choices(str(key), keys)}")
