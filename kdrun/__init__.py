"""kdrun: knowledge distillation experiments whose numbers can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdrun.runs.load import Run

__version__ = "0.1.0"
PACKAGE = Path(__file__).parent


def load(folder: Any, which: str = "last") -> Run:
    """A finished run: `run.student` is an nn.Module that takes uint8 or [0, 1] images, `run.record` its record."""
    from kdrun.runs.load import load

    return load(folder, which)
