"""Datasets by name. This module and its checksums do not need torch; only `load` imports it."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdrun.tasks.image.data.settings import SIDES, check

if TYPE_CHECKING:
    from kdrun.tasks.image.data.base import Dataset

# name in conf/dataset -> the module beside this one that has checksum(cfg, outputs) and load(cfg, outputs); imported.py serves the names
# of the registry: dataset=import and the datasets of plug-ins
SOURCES = {"digits": "digits", "image_folder": "image_folder", "cifar10": "cifar", "cifar100": "cifar"}


def checksum(cfg: Any, outputs: str) -> str:
    """The checksum of the content of a dataset: a sha256 in hex, or "md5:" and the published md5 of an archive.

    Raises KdrunError for settings that do not suit the dataset.
    """
    check(cfg)
    return _source(cfg).checksum(cfg, outputs)


def own_size(cfg: Any, outputs: str) -> int | None:
    """dataset.size; null if the images have that side already: both give the same pixels, so they are the same run."""
    check(cfg)
    if cfg.name in SIDES:
        return None
    size: int | None = _source(cfg).own_size(cfg, outputs)
    return size


def sizes(cfg: Any, outputs: str) -> tuple[int, int, int]:
    """Numbers of training and test images, and their side in px. Nothing is downloaded, and at most one image is decoded."""
    return _source(cfg).sizes(cfg, outputs)


def load(cfg: Any, outputs: str) -> Dataset:
    """The dataset that `cfg` (a node of conf/dataset) describes; caches and downloads lie below `outputs`.

    Raises KdrunError where the data is missing, broken, or does not suit the settings.
    """
    check(cfg)
    return _source(cfg).load(cfg, outputs)


def _source(cfg: Any) -> ModuleType:
    return importlib.import_module(f"{__name__}.{SOURCES.get(cfg.name, 'imported')}")
