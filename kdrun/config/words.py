"""Messages of OmegaConf about a wrong value, in the words of kdrun."""

from __future__ import annotations

import re


def wrong_value(key: str, words: str, value: str = "VALUE") -> str:
    """A line for a value that does not fit the type of its key.

    `words`: the message of OmegaConf, whose exceptions have most values only in their message.
    """
    kinds = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
    if match := re.match(r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)", words):
        value, kind = match.groups()
        wanted = kinds.get(kind, kind)
        if value == "":
            return f"{key} has no value; it must be {wanted}: {key}=VALUE"
        return f"{key} is '{value}'; it must be {wanted}"
    if "is not Optional" in words or "non-Optional" in words:
        return f"{key} is null; it must have a value: {key}=VALUE"
    if "to Dict[" in words:
        return f"{key} must hold names with values, as in {key}.NAME=VALUE"
    if "is not a ListConfig, list or tuple" in words:
        if key in ("dataset.mean", "dataset.std"):
            return f"{key} must be three numbers, one for each of red, green and blue, as in '{key}=[{value},{value},{value}]'"
        return f"{key} must be a list, as in '{key}=[VALUE]'"
    return f"{key}: {words}"
