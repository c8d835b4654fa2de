"""Turn any exception into one line: it names the wrong value, the choices, and what to do."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun import PACKAGE
from kdrun.config.words import wrong_value
from kdrun.errors import KdrunError, choices

# launcher -> what pip installs it with, as in pip install 'kdrun[joblib]'
EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}
GROUPS = ("dataset", "teacher", "student", "method", "recipe", "engine", "experiment")
LABEL_LOSSES = (
    "hard",
    "ce",
    "cls",
    "label",
    "labels",
    "supervised",
    "student",
    "gt",
)  # names that other programs use for the loss of the task
OPEN = (
    "taps",
    "weights",
    "stages",
    "schedules",
    "optimizer",
)  # keys of a method under which +key=value may add a key that the yaml does not have


def report(error: BaseException, arguments: Sequence[str] = (), debug: bool = False) -> int:
    """Say on stderr what went wrong, in one line, with its traceback where that is wanted; returns the exit status."""
    if debug:
        traceback.print_exception(error)
    print(f"kdrun: {message(error, arguments)}", file=sys.stderr)
    return int(getattr(error, "status", 1))


def message(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """One line for any exception; an unexpected one names its type and place."""
    try:
        return explain(error, arguments)
    except Exception:  # a library has changed its messages: its own message is better than a traceback of kdrun
        return f"{type(error).__name__}: {one_line(error)}"


def explain(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """The line for an exception. Names come from the attributes of Hydra's exceptions where these have them, not from their words."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, KdrunError):
        return one_line(error)
    if isinstance(error, MissingConfigException):
        return _missing(error, arguments)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read '{error.override}': an override is key=value; put quotes around a value with commas, spaces, brackets or =, "
            """as in 'teacher.checkpoint="a=b.pt"'"""
        )
    taken = next((a for a in arguments if a.startswith("~") and a[1:].split("=")[0] in GROUPS), None)
    if taken is not None and isinstance(error, HydraException):  # without a group, Hydra fails in many different ways
        group = taken[1:].split("=")[0]
        return f"{taken}: a run needs a {group}; choose another one with {group}=NAME. {choices('', _options(group))}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException):
        return _config(cause, arguments)
    if isinstance(error, HydraException):
        return _hydra(error, arguments)
    null = next((a for a in arguments if re.fullmatch(rf"\+*({'|'.join(GROUPS)})(@[\w.]+)?=null", a)), None)
    if null is not None and isinstance(error, ValueError):  # Hydra's own: "must be a string or a list. Got NoneType"
        return _null(null.lstrip("+").partition("=")[0].partition("@")[0])
    if isinstance(error, OSError) and error.errno is not None:
        return f"{os.strerror(error.errno)}: {error.filename or 'a file of the run'}. Free some space, or set outputs=FOLDER"
    return f"{type(error).__name__}{_place(error)}: {one_line(error)}{_hint(error)} (engine.debug=true shows the traceback)"


def _place(error: BaseException) -> str:
    """Where the exception was raised: the last line of the user's code; else of Python's library; else of all code."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {Path(error.filename).name}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__) if error.__traceback__ else []
    ours, packages = PACKAGE, f"{os.sep}site-packages{os.sep}"
    own = [
        f
        for f in frames
        if not f.filename.startswith("<") and packages not in f.filename and ours not in Path(f.filename).parents
    ]
    library = os.path.dirname(os.__file__)
    frame = next((f for f in reversed(own) if not f.filename.startswith(library)), frames[-1] if frames else None)
    return f" at {Path(frame.filename).name}:{frame.lineno}" if frame else ""


def _hint(error: BaseException) -> str:
    """What the author of a method should change, for some errors of autograd."""
    words = str(error)
    if re.search(
        r"differentiate twice|[Dd]ouble backward|derivative for '?aten::\w*backward\w*'? is not implemented", words
    ):
        return (
            "; a layer of the model has no second derivatives, and methods of the family gradients (sobolev, lwm) need them: "
            "choose another method, or a model without that layer"
        )
    if "not have been used in the graph" in words:
        return "; take the gradient with respect to output.live[i]: output.taps[i] is a float32 copy of it"
    if "does not require grad" in words:
        return "; a method that needs gradients of the teacher or of its input must have teacher = 'gradients'"
    return ""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _missing(error: Any, arguments: Sequence[str]) -> str:
    """An unknown choice of a group, a missing file, or an unknown group."""
    missing = str(getattr(error, "missing_cfg_file", "") or "")
    group, _, name = missing.rpartition("/")
    if not group:
        return one_line(error)
    options = getattr(error, "options", None) or _options(group)
    if name == "null":
        return _null(group)
    several = [part for part in re.split(r"[+\s;]+", name) if part]
    if group == "method" and len(several) > 1 and set(several) <= set(options):
        return f"no method '{name}'. Several at once are a list: 'method=[{','.join(several)}]'"
    way = {
        "method": " (kdrun methods shows them; one of yours needs --config-dir FOLDER with method/NAME.yaml, and plugins=[MODULE])",
        "teacher": " (kdrun models shows them)",
        "dataset": " (kdrun datasets shows them; your own images: dataset=image_folder dataset.root=FOLDER with train/<class>/* and "
        "test/<class>/*)",
    }
    way["student"] = way["teacher"]
    if group == "hydra/launcher":
        if name in EXTRAS:
            return f"hydra/launcher={name} is not installed: pip install 'kdrun[{EXTRAS[name]}]'"
        options = sorted({*options, *EXTRAS} - {"schema"})
        way[group] = f" (pip install 'kdrun[NAME]' with NAME one of {', '.join(sorted(set(EXTRAS.values())))})"
    elif group.startswith("hydra/"):
        way[group] = f"; others are packages: pip install hydra-{name}-{group.removeprefix('hydra/')}"
    return f"no {group} '{name}'. {choices(name, [o for o in options if o != 'schema'])}{way.get(group, '')}"


def _null(group: str) -> str:
    if group == "teacher":
        return (
            "teacher=null is not a choice; write teacher=none (with method=none, or another method without a teacher)"
        )
    if group == "method":
        return "method=null is not a choice; to train the student alone, write method=none"
    return f"{group}=null is not a choice. {choices('', _options(group))}"


def _options(group: str) -> list[str]:
    from kdrun.config.registry import MODELS
    from kdrun.config.schema import conf_folder

    if group in ("teacher", "student"):
        return [*MODELS.entries(), *(["none"] if group == "teacher" else [])]
    return [file.stem for file in (conf_folder() / group).glob("*.yaml")]


def _config(error: Any, arguments: Sequence[str] = ()) -> str:
    """An unknown key, a wrong type or a bad interpolation."""
    full = str(getattr(error, "full_key", "") or getattr(error, "key", "") or "")
    words = str(error).splitlines()[0]
    parent = getattr(error, "parent_node", None)
    if parent is not None and ("not in" in words or "struct" in words):
        return unknown_key(full, parent)
    typed = [a.partition("=")[2] for a in arguments if a.lstrip("+").startswith(f"{full}=")]
    return wrong_value(full, words, typed[-1] if typed else "VALUE") if full else words


def unknown_key(full: str, parent: Any) -> str:
    """An unknown key. If a key without its path is typed, all keys with this last part are suggested: recipe.lr for lr."""
    where, _, key = full.rpartition(".")
    known = [str(k) for k in parent if not str(k).startswith("hydra")] if hasattr(parent, "keys") else []
    if where == "method" and key in _options("method"):
        return (
            f"{full} is set, but this run has method={'+'.join(known)}; add method={key}, or set method.{known[0]}.KEY"
        )
    deeper = [] if where else [path for path in _paths(parent) if path.rpartition(".")[2] == key]
    if deeper:
        return f"no key '{key}' in the config. Did you mean {' or '.join(deeper[:3])}?"
    parts = where.split(".")
    adds = where.startswith("method.") and (key in OPEN or any(part in OPEN and part != "weights" for part in parts))
    adds = adds or parts[-1] in ("arguments", "taps")  # open dicts of an imported model
    if parts[-1] == "weights" and key in LABEL_LOSSES:
        return f"no key '{key}' in {where}: the loss with the labels is called task, as in +{where}.task=0.5"
    return f"no key '{key}' in {where or 'the config'}. {choices(key, known)}" + (f"; +{full}=VALUE adds it" * adds)


def _paths(node: Any, path: str = "") -> Iterator[str]:
    """The path of every key below `node`, without Hydra's own keys and without teacher.recipe, which is a copy of the recipe."""
    from omegaconf import OmegaConf

    for key in node:
        below = f"{path}.{key}".lstrip(".")
        if (
            below in ("hydra", "teacher.recipe")
            or OmegaConf.is_missing(node, key)
            or OmegaConf.is_interpolation(node, key)
        ):
            continue
        yield below
        if isinstance(node[key], Mapping):
            yield from _paths(node[key], below)


def _hydra(error: BaseException, arguments: Sequence[str]) -> str:
    text = one_line(error)
    if "Could not override" in text and "No match in the defaults list" in text:
        from kdrun.config.schema import conf_folder

        key = text.split("'")[1].split("=")[0]
        groups = [p.name for p in conf_folder().iterdir() if p.is_dir()] + ["teacher", "student"]
        return f"no group '{key}'. {choices(key, groups)}"
    if "Ambiguous value" in text:
        override = next((a for a in arguments if f"'{a}'" in text), text.split("'")[1])
        key, _, value = override.partition("=")
        return f"{override} gives several values: add -m to sweep over them, or write '{key}=[{value}]' for a list"
    return text
