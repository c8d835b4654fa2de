"""Arguments of the command in which a test replaces what a shared list says."""

from __future__ import annotations

from collections.abc import Sequence


def last_wins(arguments: Sequence[str]) -> list[str]:
    """The arguments with the last value of each key alone: the command refuses a key that stands twice."""
    last = {argument.partition("=")[0]: argument for argument in arguments if "=" in argument}
    return [
        a
        for i, a in enumerate(arguments)
        if "=" not in a or (a == last[a.partition("=")[0]] and a not in arguments[i + 1 :])
    ]
