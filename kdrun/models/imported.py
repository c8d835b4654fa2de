"""Any nn.Module of yours: `student=import student.path=my_package.module:function`, no code in kdrun."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from kdrun.errors import KdrunError, choices
from kdrun.models import register


@register(name="import")
def imported(classes: int, *, path: str, arguments: dict[str, Any] = {}, taps: dict[str, str] = {}) -> nn.Module:  # noqa: B006
    """A function of yours, path=module:function; called with classes=N and `arguments`; `taps` names its tensors."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise KdrunError(f"path '{path}' is not module:function, as in path=my_package.models:small_net")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise KdrunError(
            f"cannot import {module} of path={path}: {error}. It is looked for from the current folder on"
        ) from error
    if not hasattr(found, name):
        raise KdrunError(
            f"module {module} has no '{name}'. {choices(name, [k for k in vars(found) if not k.startswith('_')])}"
        )
    try:
        model = getattr(found, name)(classes=classes, **arguments)
    except TypeError as error:
        raise KdrunError(f"{path} could not be called with classes={classes}, {arguments}: {error}") from error
    if not isinstance(model, nn.Module):
        raise KdrunError(f"{path} returned {type(model).__name__}, not an nn.Module")
    model.taps = {**getattr(model, "taps", {}), **taps}  # type: ignore[assignment]
    return model
