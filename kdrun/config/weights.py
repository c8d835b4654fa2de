"""The weight of a term: a number, or `auto(SHARE)`: a number that is measured before training (kdrun/engine/automatic.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kdrun.errors import KdrunError

MOST = 10.0  # times the task's gradient; a larger share is a typing error
AUTO = re.compile(r"\s*auto\s*\(\s*(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*\)\s*")
OWNER = re.compile(r"[+~]*(method|loss)[.\w]*=")
# As typed on a command line: not inside quotes, and up to its own bracket.
TYPED = re.compile(r"""(?<![\w"'.])auto\([^()"']*(?:\)|$)""")


def share_of(weight: Any) -> float | None:
    """The share of `auto(0.1)`, which is 0.1; None for a number."""
    match = AUTO.fullmatch(weight) if isinstance(weight, str) else None
    return float(match[1] + (match[2] or "")) if match else None


def quoted(arguments: Iterable[str]) -> list[str]:
    """Overrides with quotes around `auto(0.1)`, also inside a sweep: Hydra would take it for a call of a function."""
    return [
        TYPED.sub(lambda match: f'"{match[0]}"', argument) if OWNER.match(argument) else argument
        for argument in arguments
    ]


def without_auto(method: str, settings: Any) -> tuple[Any, dict[str, str]]:
    """The settings of a method with 1 for the weight of each `auto(SHARE)`, so that weights are numbers; and these texts, by term.

    KdrunError for a share that is malformed or out of range, and for `task`.
    """
    weights = settings.get("weights") if isinstance(settings, Mapping) else None
    if not isinstance(weights, Mapping):
        return settings, {}
    texts = {
        str(term): weight
        for term, weight in weights.items()
        if isinstance(weight, str) and weight.strip()[:4] == "auto"
    }
    autos = {term: _canonical(f"method.{method}.weights.{term}", text) for term, text in texts.items()}
    return {**settings, "weights": {**weights, **dict.fromkeys(autos, 1.0)}}, autos


def _canonical(key: str, text: str) -> str:
    """`auto( .10 )` as `auto(0.1)`: one share is one run."""
    form = "auto(SHARE) with a share of the task's gradient, as in auto(0.1)"
    if key.endswith(".task"):
        raise KdrunError(
            f"{key} is '{text}'; it must be a number: auto(SHARE) of the other terms is a share of this one"
        )
    share = share_of(text)
    if share is None:
        raise KdrunError(f"{key} is '{text}'; it must be a number of 0 or more, or {form}")
    if not 0 < share <= MOST:
        raise KdrunError(f"{key} is '{text}'; the share must be above 0 and up to {MOST:g}: {form}")
    return f"auto({int(share) if share.is_integer() else share})"
