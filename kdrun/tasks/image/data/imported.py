"""Datasets that a function gives: `dataset=import dataset.path=module:function`, and the functions that a plug-in registered.

What the function returns is the only thing that says which data it is, so it is called when a run is planned. What it returned last
is kept: the run that was planned, and the next ones of a sweep on the same data, do not call it again.
"""

from __future__ import annotations

import copy
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kdrun.config import functions
from kdrun.config.registry import DATASETS
from kdrun.datasets import register
from kdrun.errors import KdrunError
from kdrun.tasks.image.data.given import Content, content_of

if TYPE_CHECKING:
    from kdrun.tasks.image.data.base import Dataset, Split

_LAST: dict[str, Content] = {}  # the content that was asked for last, by the settings that the function got


@register(name="import")
def imported(root: str, *, path: str, arguments: dict[str, Any] = {}) -> Any:  # noqa: B006
    """A function of yours, path=module:function; it gets `arguments` and returns the splits as arrays or torch Datasets."""
    function = _function(path)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise KdrunError(
            f"{path} cannot be called with dataset.arguments={arguments}: {error}. It takes "
            f"{', '.join(inspect.signature(function).parameters) or 'no arguments'}"
        ) from error
    return function(**arguments)


def checksum(cfg: Any, outputs: str) -> str:
    """sha256 over the images, the labels and the names of the classes."""
    return _content(cfg, outputs).checksum


def own_size(cfg: Any, outputs: str) -> int | None:
    """dataset.size; null where it is the side that every image has anyway, so that both spellings are one run."""
    size: int | None = cfg.size
    return None if size == _content(cfg, outputs).side else size


def sizes(cfg: Any, outputs: str) -> tuple[int, int, int]:
    content = _content(cfg, outputs)
    return len(content.train), len(content.test), _side(cfg, content)


def load(cfg: Any, outputs: str) -> Dataset:
    """The images of dataset.size px (null: as they are): short side resized, centre cropped."""
    from kdrun.tasks.image.data import base

    content = _content(cfg, outputs)
    side = _side(cfg, content)
    return base.assemble(
        cfg,
        classes=content.classes,
        size=side,
        checksum=content.checksum,
        train=_split(content.train.images, content.train.labels, side),
        test=_split(content.test.images, content.test.labels, side),
        notes=content.notes,
    )


def _content(cfg: Any, outputs: str) -> Content:
    """What the function returned, checked."""
    options = {name: copy.deepcopy(getattr(cfg, name)) for name in DATASETS.entry(cfg.name).arguments}
    root = cfg.root or os.path.join(outputs, "data", cfg.name)
    key = repr((cfg.name, root, options))
    if key not in _LAST:
        _check(cfg)
        _LAST.clear()  # two sets of images need not fit into memory
        where = cfg.path if cfg.name == "import" else f"dataset {cfg.name}"
        try:
            with _same_random_numbers():
                _LAST[key] = content_of(DATASETS.get(cfg.name)(root, **options), where)
        except OSError as error:  # a file that is not there, or no network
            raise KdrunError(f"{where} could not read its data ({error})") from error
    return _LAST[key]


def _check(cfg: Any) -> None:
    """Settings that these datasets cannot obey."""
    if cfg.name == "import" and cfg.root is not None:
        raise KdrunError(
            f"dataset.root={cfg.root}: dataset=import does not use it; a folder is an argument of your function, as in "
            f"dataset.arguments.root={cfg.root}"
        )
    if cfg.memory == "never":
        raise KdrunError(
            f"dataset.memory=never: what a function returns always lies in memory. Choices: auto, always "
            f"(dataset=image_folder has never as well, and {cfg.name} does not)"
        )


def _side(cfg: Any, content: Content) -> int:
    """The side of the images in px; KdrunError where they are not square and alike and dataset.size does not say."""
    side = cfg.size or content.side
    if side is None:
        raise KdrunError(f"{content.unlike}: dataset.size=32 resizes and crops all to 32 px")
    return int(side)


def _split(images: Any, labels: Any, side: int) -> Split:
    import numpy as np
    import torch

    from kdrun.tasks.image.data.base import Split

    if isinstance(images, list) or images.shape[2:] != (side, side):
        images = np.stack([_resized(image, side) for image in images])
    return Split(torch.from_numpy(labels), torch.arange(len(labels)), torch.from_numpy(images))


def _resized(image: Any, side: int) -> Any:
    """One image (3, H, W) as (3, side, side)."""
    import numpy as np
    from PIL import Image

    from kdrun.tasks.image.data.image_folder import resized

    if image.shape[1:] == (side, side):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return np.array(resized(picture, side)).transpose(2, 0, 1)


def _function(path: str) -> Callable[..., Any]:
    """The function of the user's."""
    item = functions.at(path, "dataset.path", "my_data:load")
    if not callable(item):
        raise KdrunError(f"dataset.path={path} is {type(item).__name__}; it must be a function that returns the splits")
    return item  # type: ignore[no-any-return]


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """The global generators begin alike at every call and are afterwards as before: a split drawn without a seed is always the same.

    torch may be imported before the call, in it, or not at all: a new Generator has the state that torch begins with.
    """
    import numpy as np

    python, legacy = random.getstate(), np.random.get_state()
    before = sys.modules["torch"].get_rng_state() if "torch" in sys.modules else None
    random.seed(0)
    np.random.seed(0)
    if before is not None:
        sys.modules["torch"].set_rng_state(sys.modules["torch"].Generator().get_state())
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        if "torch" in sys.modules:
            torch = sys.modules["torch"]
            torch.set_rng_state(torch.Generator().get_state() if before is None else before)
