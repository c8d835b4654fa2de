"""Checks of the settings and taps of a method. Each check returns the value, or raises a KdrunError of one sentence."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping

from kdrun.errors import KdrunError, choices
from kdrun.methods.base import Pair

COLDEST, HOTTEST = 1e-3, 1e6  # temperatures between which logits / T and T^2 are exact


def check_temperature(name: str, temperature: float, least: float = COLDEST, key: str = "temperature") -> float:
    """A temperature above 0, between `least` and HOTTEST. `key`: what the setting is called."""
    check_above(f"{name}.{key}", temperature, "1 leaves logits as they are")
    if not least <= temperature <= HOTTEST:
        limit = (
            "below, soft targets are hard labels"
            if temperature < least
            else "above, all classes become equal; use method=logits"
        )
        raise KdrunError(
            f"method.{name}.{key} is {temperature:g}; it must lie between {least:g} and {HOTTEST:g} ({limit})"
        )
    return temperature


def check_above(where: str, value: float, why: str = "", least: float = 0.0) -> float:
    """A finite number above `least`. `where`: method.key, without the word method in front: kd.temperature."""
    if not least < value < math.inf:
        raise KdrunError(
            f"method.{where} is {value}; it must be a finite number above {least:g}" + (f" ({why})" if why else "")
        )
    return value


def check_within(where: str, value: float, least: float, most: float = sys.float_info.max, why: str = "") -> float:
    """A finite number from `least` to `most`. `where`: as in check_above."""
    if not least <= value <= most:
        limits = f"from {least:g} to {most:g}" if most < sys.float_info.max else f"{least:g} or more"
        raise KdrunError(f"method.{where} is {value}; it must be {limits}" + (f" ({why})" if why else ""))
    return value


def check_share(where: str, value: float) -> float:
    """A share above 0 and below 1."""
    if not 0 < value < 1:
        raise KdrunError(f"method.{where} is {value}; it must be above 0 and below 1")
    return value


def check_choice(name: str, key: str, value: str, known: Mapping[str, str]) -> str:
    """One of the known values. `known`: value -> what it means."""
    if value not in known:
        meanings = ", ".join(f"{choice} ({meaning})" for choice, meaning in known.items())
        near = choices(value, known).partition("Choices:")[0]
        raise KdrunError(f"no {key} '{value}' of {name}. {near}Choices: {meanings}")
    return value


def one_tap(name: str, pair: Pair) -> None:
    """KdrunError unless the method has one tap on each side."""
    if len(pair.taps[0]) != 1:
        raise KdrunError(f"{name} takes one tap; method.{name}.taps names {len(pair.taps[0])}")


def feature_maps(name: str, pair: Pair, *, at_least: int = 1) -> None:
    """KdrunError unless the taps are feature maps (B, C, H, W), `at_least` of them on each side."""
    for taps, side in zip(pair.taps, (pair.student, pair.teacher), strict=True):
        flat = [tap for tap, shape in zip(taps, side.shapes if side else [], strict=True) if len(shape) != 4]
        if flat or not taps:
            raise KdrunError(
                f"{name} needs taps of feature maps (B, C, H, W); method.{name}.taps names {', '.join(flat) or 'none'}"
            )
    if len(pair.taps[0]) < at_least:
        raise KdrunError(f"{name} takes {at_least} taps or more; method.{name}.taps names {len(pair.taps[0])}")
