"""The errors that a user sees. Each is one line with an exit status, and a near match for a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class KdrunError(Exception):
    """An error that the user can correct. It is printed as one line; `status` becomes the exit code."""

    status = 1


class HeldError(KdrunError):
    """Another process is training this run."""

    status = 4


class ExitError(KdrunError):
    """The user's code called sys.exit. Without this error kdrun would end with that status, which may be 0 (success)."""

    def __init__(self) -> None:
        super().__init__("the code of a model, a method or a plug-in called sys.exit; raise an exception there instead")


class DivergedError(KdrunError):
    """A loss became NaN or infinite; `stage`, `step` and `term` say where. `terms`: all terms that did so at that step."""

    def __init__(self, stage: str, step: int, term: str, terms: Sequence[str] = ()):
        cause = f"term {term}"
        if "task" in terms and len(terms) > 1:
            cause += ", and the task loss too: the update before this step broke the weights; use a smaller weight or a smaller recipe.lr"
        super().__init__(
            f"loss became NaN at step {step:,} of stage {stage} ({cause}); the last good checkpoint is kept"
        )
        self.stage, self.step, self.term = stage, step, term


def remove_empty(folder: Path, levels: int) -> None:
    """Remove a folder and those above it, as long as they are empty, so that a refused run leaves nothing on the disk."""
    for path in [folder, *folder.parents][:levels]:
        try:
            path.rmdir()
        except OSError:
            return


def choices(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the near match, if there is one, and the choices."""
    known = sorted(known)
    folded = {other.lower(): other for other in known}  # KD is kd
    near = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)]
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{hint}Choices: {', '.join(known) or 'none'}"
