"""module:function, as a user names code of their own in a config."""

from __future__ import annotations

import importlib
import os
from typing import Any

from kdrun.errors import KdrunError, choices


def at(path: str, key: str, example: str) -> Any:
    """What lies at module:function. `key` is the key of the config that has the path, and `example` a value of it, for messages.

    Raises KdrunError for a path of another form, a module that cannot be imported, and a name that it does not have.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise KdrunError(f"{key}={path} is not module:function, as in {key}={example}")
    try:
        target: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise KdrunError(f"{module} of {key}={path} imports a module that is not installed: {error}") from error
        raise KdrunError(
            f"cannot import {module} of {key}={path}: {error}. It must be in the current folder ({os.getcwd()}) or installed"
        ) from error
    for part in name.split("."):
        if not hasattr(target, part):
            known = [other for other in getattr(target, "__dict__", {}) if not other.startswith("_")]
            raise KdrunError(f"module {module} of {key}={path} has no '{name}'. {choices(name, known)}")
        target = getattr(target, part)
    return target
