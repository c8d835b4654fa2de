"""Which methods learn from a detector: known from their yaml, before anything is built."""

from __future__ import annotations

from typing import Any

from kdrun.config.defaults import shipped_settings
from kdrun.config.listing import methods_of_detectors
from kdrun.config.schema import method_names
from kdrun.errors import KdrunError, choices


def complete(config: Any) -> None:
    """KdrunError for a method of kdrun's that has nothing to compare on detectors, unless the user says which taps it takes."""
    for name, values in config.method.items():
        shipped = shipped_settings(name)
        if suits(name) or not shipped or list(values.taps or []) != list(shipped.get("taps") or []):
            continue
        known = [one for one in method_names() if shipped_settings(one) and suits(one)]
        way = (
            ""
            if not shipped.get("taps")
            else f" (or say which layers it compares: method.{name}.taps=[neck1,neck2,neck3])"
        )
        raise KdrunError(
            f"method '{name}' is not made for detectors, and dataset={config.dataset.name} is of the task detection. "
            f"{choices(name, known)}{way}"
        )


def suits(name: str) -> bool:
    """Whether a method compares what detectors give, or has defaults for them (the key tasks.detection of its yaml)."""
    of_tasks = shipped_settings(name).get("tasks") or {}
    return name == "none" or name in methods_of_detectors() or "detection" in of_tasks
