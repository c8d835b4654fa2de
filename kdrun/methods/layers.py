"""Layer maps: which layer of the teacher each layer of the student learns from. Layers are counted from 1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from kdrun.errors import KdrunError
from kdrun.methods.checks import check_choice
from kdrun.methods.taps import paths

Taps = tuple[list[str], list[str]]
MAPS = {
    "uniform": "at equal distances, the last from the last",
    "skip": "every k-th, k the teacher's layers over the student's",
    "last": "the last ones",
}


def count_layers(name: str, model: nn.Module | None, side: str) -> int:
    """The number of layers of a model, which declares the taps layer1, layer2, ... `name`: of the method; `side`: student or teacher."""
    if model is None:
        raise KdrunError(f"method '{name}' compares layers with those of a teacher, and this run has teacher=none")
    count = sum(re.fullmatch(r"layer\d+", tap) is not None for tap in paths(model))
    if not count:
        raise KdrunError(
            f"method '{name}' compares the layers of transformers, and the {side} {type(model).__name__} has no taps layer1, layer2, ...;"
            f" choose a model such as {side}=hf_text, or another method"
        )
    return count


def layer_map(name: str, layers: Any, student: int, teacher: int, *, but_last: bool = False) -> list[int]:
    """The teacher's layer for each of the student's layers 1, 2, ...; `but_last`: for all but its last layer.

    With M layers in the student, N in the teacher and m = 1..M: uniform takes m N / M, rounded (halves up); skip takes m (N // M);
    last takes N - M + m.
    A list names the layers itself, one for each, from 1 to N.
    """
    count = student - but_last
    if count < 1:
        raise KdrunError(
            f"method '{name}' leaves out the last layer, and the student has {student}; give it two or more"
        )
    if not isinstance(layers, str):
        return _listed(name, layers, count, teacher, but_last)
    check_choice(name, "layers", layers, {**MAPS, "[2, 4, ...]": "a list of the teacher's layers"})
    if teacher < student:
        raise KdrunError(
            f"method.{name}.layers={layers} needs a teacher with at least as many layers as the student;"
            f" it has {teacher}, the student {student}. Give a list, as in layers=[1, ...] with {count} numbers"
        )
    numbers = range(1, count + 1)
    return {
        "uniform": [(2 * m * teacher + student) // (2 * student) for m in numbers],
        "skip": [m * (teacher // student) for m in numbers],
        "last": [teacher - student + m for m in numbers],
    }[layers]


def _listed(name: str, layers: Any, count: int, teacher: int, but_last: bool) -> list[int]:
    numbers = list(layers) if isinstance(layers, Sequence) else []
    if len(numbers) != count:
        whose = "layer of the student" + " but the last" * but_last
        raise KdrunError(
            f"method.{name}.layers is {layers!r}; give {count} of the teacher's layers, one for each {whose}, or one of {', '.join(MAPS)}"
        )
    for number in numbers:
        one_layer(f"{name}.layers", number, teacher)
    return numbers


def one_layer(where: str, layer: Any, count: int) -> int:
    """The number of one layer of the teacher, which has `count`: "last", or a number from 1. `where`: method.key."""
    if layer == "last":
        return count
    if not isinstance(layer, int) or isinstance(layer, bool) or not 1 <= layer <= count:
        raise KdrunError(f"method.{where} names layer {layer}; the teacher's layers are 1 to {count}, and last")
    return layer


def no_taps(name: str, taps: Taps, instead: str = "") -> None:
    """KdrunError for taps of a method that chooses its own. `instead`: the key that says which layers, if there is one."""
    if taps[0]:
        way = f"set method.{name}.{instead} and not" if instead else "leave out"
        raise KdrunError(f"method '{name}' chooses its own taps; {way} method.{name}.taps")
