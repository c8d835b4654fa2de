"""Turn any exception into one line that names the value, the choices and the way out."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path

from kdrun.errors import KdrunError, choices


def explain(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """The line. Near matches come from the attributes of Hydra's exceptions, not from parsing their words."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, KdrunError):
        return one_line(error)
    if isinstance(error, MissingConfigException):
        return _missing(error, arguments)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read '{error.override}': an override is key=value; quote what has commas, spaces or brackets in it"
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException):
        return _config(cause)
    if isinstance(error, HydraException):
        return _hydra(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}: {error.filename or 'a file of the run'}"
    frame = traceback.extract_tb(error.__traceback__)[-1:] if error.__traceback__ else []
    place = f" at {Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    return f"{type(error).__name__}{place}: {one_line(error)} (engine.debug=true shows the traceback)"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _missing(error: object, arguments: Sequence[str]) -> str:
    """An unknown choice of a group, a file that is not there, or an unknown group."""
    missing = str(getattr(error, "missing_cfg_file", "") or "")
    group, _, name = missing.rpartition("/")
    if not group:
        return one_line(error)  # type: ignore[arg-type]
    options = getattr(error, "options", None) or _options(group)
    if name == "null" and group in ("teacher", "student", "method"):
        return f"{group}=null is not a choice; no {group} is {group}=none"
    shown = f" (kdrun {group}s shows them)" if group == "method" else ""
    shown = " (kdrun models shows them)" if group in ("teacher", "student") else shown
    return f"no {group} '{name}'. {choices(name, [o for o in options if o not in ('schema',)])}{shown}"


def _options(group: str) -> list[str]:
    from kdrun.config import conf_folder
    from kdrun.registry import MODELS

    if group in ("teacher", "student"):
        return [*MODELS.entries(), *(["none"] if group == "teacher" else [])]
    return [file.stem for file in (conf_folder() / group).glob("*.yaml")]


def _config(error: object) -> str:
    """An unknown key or a wrong type."""
    full = str(getattr(error, "full_key", "") or getattr(error, "key", "") or "")
    words = str(error).splitlines()[0]
    if "not in" in words or "not a valid" in words or "struct" in words:
        parent = getattr(error, "parent_node", None)
        where, _, key = full.rpartition(".")
        if parent is not None and ("not in" in words or "struct" in words):
            known = [str(k) for k in parent if not str(k).startswith("hydra")] if hasattr(parent, "keys") else []
            return f"no key '{key}' in {where or 'the config'}. {choices(key, known)}"
    return f"{full}: {words}" if full else words


def _hydra(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    if "Could not override" in text and "No match in the defaults list" in text:
        key = text.split("'")[1].split("=")[0]
        from kdrun.config import conf_folder

        groups = [p.name for p in conf_folder().iterdir() if p.is_dir()] + ["teacher", "student"]
        return f"no group '{key}'. {choices(key, groups)}"
    return text
