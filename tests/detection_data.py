"""A tiny data set of boxes, written by the code that writes the shapes, and a config for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from kdrun.config.checks import validate
from kdrun.config.nodes import register_nodes
from kdrun.config.schema import Config, conf_folder
from kdrun.errors import KdrunError
from kdrun.tasks.detection import library
from kdrun.tasks.detection.data.shapes import write

try:
    library.ready()
except KdrunError as error:  # the extra is not installed, or OpenCV lacks a system library
    pytest.skip(str(error), allow_module_level=True)

COUNTS = {"train": 10, "val": 4, "test": 6}
SMALL = ("dataset.imgsz=64", "recipe.epochs=2", "recipe.batch_size=4", "recipe.close_mosaic=1", "engine.precision=fp32")


def tiny(folder: Path, counts: dict[str, int] | None = None) -> Path:
    """The data yaml of a few images of 64 px."""
    return write(folder, counts or COUNTS, side=64)


def config(*overrides: str) -> Config:
    """A checked config of `dataset=yolo`."""
    register_nodes()
    with initialize_config_dir(str(conf_folder().resolve()), version_base="1.3"):
        return validate(compose("config", ["dataset=yolo", *SMALL, *overrides]))
