"""What is computed once: files of <outputs>/cache, and hashes of files. Imports nothing that is slow to import."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError


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


def file_sha256(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, in hex. A process reads the file again only if its size or its time of change differs."""
    try:
        status = os.stat(path)
        return _bytes_sha256(os.path.abspath(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise KdrunError(f"cannot read {path}: {error.strerror}") from error


@lru_cache
def _bytes_sha256(path: str, size: int, time: int) -> str:
    value = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            value.update(chunk)
    return value.hexdigest()
