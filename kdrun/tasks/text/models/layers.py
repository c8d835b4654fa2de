"""Which layers of a longer model a shorter one begins with. No torch."""

from __future__ import annotations

from typing import Any

from kdrun.errors import KdrunError, choices

NAMED = ("first", "alternate", "last", "random")


def chosen(layers: int | None, init: Any, whole: int, role: str = "student") -> list[int] | None:
    """The layers (from 0) of a model of `whole` layers that one of `layers` layers begins with; None for random weights.

    first: the first ones; last: the last ones; alternate: evenly spaced from the first (of 12, three are 0, 4, 8); or a list.
    """
    if isinstance(init, (list, tuple)):
        return _listed(list(init), layers, whole, role)
    if init not in NAMED:
        raise KdrunError(f"{role}.init is '{init}'. {choices(str(init), NAMED)}, or a list of layers as in [0,4,8]")
    count = whole if layers is None else layers
    if not 1 <= count <= whole:
        raise KdrunError(f"{role}.layers is {count}; the model that it is taken from has {whole}: say 1 to {whole}")
    if init == "random":
        return None
    starts = {"first": 0, "last": whole - count}
    return (
        [i * whole // count for i in range(count)] if init == "alternate" else [starts[init] + i for i in range(count)]
    )


def _listed(init: list[Any], layers: int | None, whole: int, role: str) -> list[int]:
    shown = "[" + ",".join(map(str, init)) + "]"
    odd = [layer for layer in init if not isinstance(layer, int) or isinstance(layer, bool)]
    if odd:
        raise KdrunError(f"{role}.init={shown} names layer {odd[0]}; give whole numbers from 0, as in [0,4,8]")
    if layers is not None and layers != len(init):
        raise KdrunError(
            f"{role}.layers is {layers} and {role}.init={shown} names {len(init)} layers; leave {role}.layers out"
        )
    wrong = [layer for layer in init if not 0 <= layer < whole]
    if wrong or not init:
        which = f"layer {wrong[0]}" if wrong else "no layer"
        raise KdrunError(f"{role}.init={shown} names {which}; the model has layers 0 to {whole - 1}")
    return init
