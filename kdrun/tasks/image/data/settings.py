"""Checks for settings of a dataset that are out of range or have no effect. Imports nothing that is slow to import."""

from __future__ import annotations

import math
from typing import Any

from kdrun.errors import KdrunError

SIDES = {"digits": 8, "cifar10": 32, "cifar100": 32}  # datasets whose images have one size, in px


def check(cfg: Any) -> None:
    """Raise KdrunError for a setting of `cfg` (a node of conf/dataset) that is wrong or has no effect."""
    if cfg.size is not None and cfg.size < 1:
        raise KdrunError(f"dataset.size={cfg.size} must be a side in px, or null for that of the first image")
    if cfg.name in SIDES:
        _refuse_folder_settings(cfg, SIDES[cfg.name])
    for key in ("mean", "std"):
        if getattr(cfg, key) is not None:
            _check_three(key, list(getattr(cfg, key)))


def _check_three(key: str, values: list[float]) -> None:
    """Means lie in [0, 1], deviations in (0, 1]: pixels are divided by 255 before they are normalised."""
    if len(values) == 3 and all(math.isfinite(v) and 0 <= v <= 1 and (key == "mean" or v > 0) for v in values):
        return
    limits = "in [0, 1]" if key == "mean" else "above 0 and up to 1"
    way = "null computes them from the training images"
    if len(values) == 3 and 1 < max(values) <= 255 and min(values) >= 0:
        divided = ",".join(f"{v / 255:.4g}" for v in values)
        way = f"0 to 255? divide by 255: 'dataset.{key}=[{divided}]'"
    elif len(values) == 1:
        way = f"as in 'dataset.{key}=[{','.join(f'{v:g}' for v in values * 3)}]'"
    listed = ",".join(f"{v:g}" for v in values)
    raise KdrunError(
        f"dataset.{key}=[{listed}] must be three numbers {limits}, one for each of red, green and blue; {way}"
    )


def _refuse_folder_settings(cfg: Any, side: int) -> None:
    """KdrunError for settings that only image_folder uses, if the dataset has images of `side` px in memory."""
    if cfg.root is not None and cfg.name == "digits":
        raise KdrunError(
            f"dataset.root={cfg.root}: the digits are part of scikit-learn; leave dataset.root out, or use "
            f"dataset=image_folder for your own images"
        )
    if cfg.size not in (None, side):
        raise KdrunError(
            f"dataset.size={cfg.size}: the images of {cfg.name} have {side} px and are not resized; "
            f"use dataset.size=null, or dataset=image_folder, which resizes"
        )
    if cfg.memory == "never":
        raise KdrunError(
            f"dataset.memory={cfg.memory}: {cfg.name} is always in memory. Choices: auto, always "
            f"(never is for dataset=image_folder)"
        )
