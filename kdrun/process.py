"""What a process needs before torch starts, and what it may use of the machine."""

from __future__ import annotations

import os


def prepare() -> None:
    """Set what torch reads when it starts: cuBLAS is deterministic with this workspace."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def cores() -> int:
    """The cores that this process may use: those of its allocation, where it has one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
