"""record.json: the settings and the results of a run. docs/records.md explains every key. Imports nothing that is slow to import."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from kdrun.errors import KdrunError
from kdrun.runs.schema import SCHEMA, check, json_schema, upgrade

NAME = "record.json"
PACKAGES = (
    "kdrun",
    "torch",
    "torchvision",
    "hydra-core",
    "omegaconf",
    "numpy",
    "safetensors",
    "transformers",
    "tokenizers",
)


def write(folder: str | Path, record: dict[str, Any]) -> Path:
    """Write `record` to folder/record.json and return its path. A reader sees the complete old file or the complete new one.

    NaN and infinite numbers become null: JSON has no NaN, and a run that diverged must have a record too.
    Raises TypeError for values that JSON cannot hold, and OSError if the disk cannot be written. The old record then stays.
    """
    path = Path(folder) / NAME
    text = json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomically(
        path, text.encode(errors="backslashreplace")
    )  # bytes of a path that are no UTF-8: \\udcNN, as JSON has it
    return path


def atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a complete file or nothing. After a failure (a full disk) the old file is still there, and no temporary file stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: a rename across file systems is a copy
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # without it, a power cut can keep the new name and lose the content
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(folder: str | Path) -> dict[str, Any] | None:
    """The record in `folder`, converted to schema 2; None if there is none.

    KdrunError, which names the file, if it is not a record of a run.
    """
    path = Path(folder) / NAME
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:  # json and unicode errors are ValueErrors
        raise KdrunError(f"{path} is truncated or not JSON ({error})") from error
    except OSError as error:
        raise KdrunError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(record, dict) or "schema" not in record:
        raise KdrunError(f"{path} is not a record of a kdrun run (no key 'schema')")
    if record["schema"] not in (1, SCHEMA):
        raise KdrunError(f"{path} has schema {record['schema']!r}; this kdrun reads schemas 1 and {SCHEMA}")
    try:
        record = upgrade(record) if record["schema"] == 1 else record
    except (KeyError, TypeError, AttributeError) as error:
        raise KdrunError(f"{path} is not a record of a kdrun run (no key {error})") from error
    wrong = misfit(record)
    if wrong:
        raise KdrunError(f"{path} is not a record of a kdrun run ({wrong})")
    return record


def config(folder: str | Path) -> dict:
    """The content of config.yaml of a run; empty if there is none. KdrunError, which names the file, if it is not a configuration."""
    path = Path(folder) / "config.yaml"
    import yaml  # here, because it is slow to import and most reports do not need it

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError) as error:
        raise KdrunError(f"{path} is not YAML ({error})") from error
    except OSError as error:
        raise KdrunError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(config, dict):
        raise KdrunError(f"{path} is not the configuration of a run")
    return config


def misfit(record: dict[str, Any]) -> str | None:
    """The first key of a record that is missing or has a wrong type; None if a report can read all of it."""
    try:
        check(record)
    except msgspec.ValidationError as error:
        return _plain(str(error))
    if record["status"] == "done" and not (record["last"] and record["best"]):
        return "it is done without a score"
    return None


def _plain(words: str) -> str:
    """The words of msgspec for a record that does not fit its types, made shorter: "engine is null, not object"."""
    what, _, place = words.replace("`", "").partition(" - at $")
    where = place.lstrip(".").replace("[...]", "") or "record"
    if wrong := re.fullmatch(r"Expected (.+), got (.+)", what):
        return f"{where} is {wrong[2]}, not {wrong[1].replace(' | ', ' or ')}"
    if missing := re.fullmatch("Object missing required field (.+)", what):
        return f"no key '{missing[1]}'" + (f" in {where}" if place else "")
    return f"{where}: {what}"


def validate(record: dict[str, Any]) -> None:
    """Raise KdrunError that names every difference between `record` and its JSON schema. Needs jsonschema, a dev dependency."""
    try:
        import jsonschema
    except ImportError as error:
        raise KdrunError("checking a record needs jsonschema: pip install 'kdrun[dev]'") from error
    errors = jsonschema.Draft202012Validator(json_schema()).iter_errors(record)
    lines = [f"{error.json_path.removeprefix('$.')}: {error.message}" for error in errors]
    if lines:
        raise KdrunError(f"not a valid record: {'; '.join(sorted(lines))}")


def now() -> str:
    """The time as records write it: ISO 8601, UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def git_state(folder: str | Path) -> dict | None:
    """{commit, dirty} of the repository that tracks `folder`; None outside a repository, before its first commit, or without git.

    Untracked files are ignored: looking for them is slow, and the record has hashes of the code that matters.
    """

    def git(*arguments: str) -> str:
        # No optional locks: the jobs of a sweep call git at the same time, and `git status` would rewrite the index.
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout

    with suppress(OSError, subprocess.SubprocessError):
        # HEAD:./ fails if the folder is not tracked: an installed kdrun must not name the repository around its virtual environment.
        commit = git("rev-parse", "HEAD", "HEAD:./").split()[0]
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result can depend on. They come from metadata; no package is imported."""
    numbers = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            numbers[package.removesuffix("-core")] = metadata.version(package)
    return numbers


def _finite(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value
