"""Files of <outputs>/cache: results that are computed once. Imports nothing that is slow to import."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: str | Path, content: bytes) -> None:
    """Write a complete file, or nothing, and make its folder. A process that reads at the same time sees no half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remembered(path: str, key: Any, compute: Callable[[], Any]) -> Any:
    """The result of compute() (as JSON), kept in the file `path` and used as long as `key` is the same."""
    try:
        kept = json.loads(Path(path).read_text())
        if kept["key"] == key:
            return kept["value"]
    except (OSError, ValueError, KeyError):
        pass  # no file yet, or one that cannot be read: compute the value
    value = compute()
    write(path, json.dumps({"key": key, "value": value}).encode())
    return value
