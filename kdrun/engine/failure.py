"""What ended a run: as a line for the user, and as status and error for its record."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch

from kdrun.errors import DivergedError, KdrunError
from kdrun.screen import again


def plain(error: BaseException) -> BaseException:
    """Errors of the machine in one line; everything else as it is."""
    if isinstance(error, torch.OutOfMemoryError):
        return KdrunError(
            f"out of memory ({str(error).splitlines()[0][:120]}). A smaller recipe.batch_size needs less; the run can go on"
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, KdrunError):
        return KdrunError(
            f"{os.strerror(error.errno)} while writing {error.filename or 'the run'}; free space, and {again(sys.argv[1:])} goes on"
        )
    return error


def failure(error: BaseException, place: Mapping[str, Any]) -> dict[str, Any]:
    """status and error of the record for what ended a run; `place` is where training was, if the error does not say."""
    status, at = "failed", {"stage": None, "step": None, "term": None, **place}
    if isinstance(error, DivergedError):
        status, at = "nan", {"stage": error.stage, "step": error.step, "term": error.term}
    elif isinstance(error, torch.OutOfMemoryError):
        status = "oom"
    elif isinstance(error, KeyboardInterrupt):
        status = "interrupted"
    message = str(plain(error)) or type(error).__name__
    return {"status": status, "error": {"type": type(error).__name__, "message": message, **at}}
