"""Datasets by name. Importing this module and asking for a checksum stay light: torch comes with `load` alone."""

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
    """What identifies the content of a dataset: a sha256 in hex, or "md5:" + the published one of an archive.

    Raises KdrunError for settings that the dataset cannot obey.
    """
    check(cfg)
    return _source(cfg).checksum(cfg, outputs)


def own_size(cfg: Any, outputs: str) -> int | None:
    """dataset.size; null where images have that side anyway: the two ask for the same pixels, so they are one run."""
    check(cfg)
    if cfg.name in SIDES:
        return None
    size: int | None = _source(cfg).own_size(cfg, outputs)
    return size


def sizes(cfg: Any, outputs: str) -> tuple[int, int, int]:
    """Training images, test images and their side in px; nothing is downloaded, and no more than one image decoded."""
    return _source(cfg).sizes(cfg, outputs)


def load(cfg: Any, outputs: str) -> Dataset:
    """The dataset that `cfg` (a node of conf/dataset) describes; caches and downloads go below `outputs`.

    Raises KdrunError where the data is missing, broken, or does not suit the settings.
    """
    check(cfg)
    return _source(cfg).load(cfg, outputs)


def _source(cfg: Any) -> ModuleType:
    return importlib.import_module(f"{__name__}.{SOURCES.get(cfg.name, 'imported')}")
