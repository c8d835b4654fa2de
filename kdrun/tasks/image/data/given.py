"""What a user's function returned, checked, as arrays: an error is one sentence that names the split, what came and what is wanted.

Without torch: a finished run of arrays is answered before torch is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from kdrun.errors import KdrunError, choices

SHAPES = "(N, H, W), (N, H, W, 3) or (N, 3, H, W)"
LAYOUT = '{"train": (images, labels), "test": (images, labels)}'


@dataclass
class Part:
    """One split: images uint8 (N, 3, H, W), or a list of (3, H, W) where their sizes differ; labels int64 (N,)."""

    images: Any
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Content:
    """Both splits, and the names of their classes."""

    train: Part
    test: Part
    classes: list[str]
    checksum: str
    side: int | None  # px, where all images are square and alike
    unlike: str  # where they are not: a sentence that says so
    notes: list[str] = field(default_factory=list)


def content_of(returned: Any, where: str) -> Content:
    """The content of what `where` returned. Raises KdrunError for anything that is not meant so."""
    if not isinstance(returned, Mapping):
        raise KdrunError(f"{where} returned {type(returned).__name__}; kdrun wants {LAYOUT}")
    unknown = [key for key in returned if key not in ("train", "test", "classes")]
    if unknown:
        raise KdrunError(
            f"{where} returned '{unknown[0]}', which kdrun does not know. {choices(str(unknown[0]), ('train', 'test', 'classes'))}"
        )
    for name in ("train", "test"):
        if name not in returned:
            raise KdrunError(f"{where} returned no '{name}'; kdrun wants {LAYOUT}")
    train, test = (_part(returned[name], f"{where}: {name}") for name in ("train", "test"))
    classes = _classes(returned.get("classes"), train.labels, where)
    if test.labels.max() >= len(classes):
        raise KdrunError(
            f"{where}: test has label {test.labels.max()}; the labels of train are 0 to {len(classes) - 1}"
        )
    side, unlike = _side(train, test, where)
    untested = sorted(set(range(len(classes))) - set(np.unique(test.labels).tolist()))
    more = f" and {len(untested) - 5} more" if len(untested) > 5 else ""
    names = ", ".join(classes[label] for label in untested[:5])
    notes = [f"{where}: test has no image of {names}{more}"] if untested else []
    return Content(train, test, classes, _checksum(train, test, classes), side, unlike, notes)


def _part(split: Any, where: str) -> Part:
    """One split, which is (images, labels), or a torch Dataset or another sequence of pairs (image, label)."""
    if isinstance(split, (tuple, list)) and len(split) == 2 and not isinstance(split[0], tuple):
        images, labels = split
        if isinstance(images, (list, tuple)):
            images = _stacked([_image(image, f"{where} image {row}") for row, image in enumerate(images)])
        else:
            images = _images(_array(images), where)
    elif hasattr(split, "__len__") and hasattr(split, "__getitem__") and not hasattr(split, "dtype"):
        images, labels = _pairs(split, where)
    else:
        raise KdrunError(
            f"{where} is {type(split).__name__}; kdrun wants (images, labels), or a torch Dataset of (image, label)"
        )
    if len(images) == 0:
        raise KdrunError(f"{where} has no images")
    labels = _labels(labels, where)
    if len(labels) != len(images):
        raise KdrunError(
            f"{where} has {len(images):,} images and {len(labels):,} labels; kdrun wants a label for each image"
        )
    return Part(images, labels)


def _pairs(split: Any, where: str) -> tuple[Any, list[Any]]:
    images, labels = [], []
    for row in range(len(split)):
        pair = split[row]
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise KdrunError(f"{where} item {row} is {type(pair).__name__}; kdrun wants (image, label)")
        images.append(_image(pair[0], f"{where} image {row}"))
        labels.append(pair[1].item() if hasattr(pair[1], "item") else pair[1])
    return _stacked(images), labels


def _stacked(images: list[np.ndarray]) -> Any:
    """One array, where all have one size."""
    return np.stack(images) if len({image.shape for image in images}) == 1 else images


def _image(image: Any, where: str) -> np.ndarray:
    """One image of any kind as (3, H, W)."""
    if hasattr(image, "getbands"):  # Pillow's
        from kdrun.tasks.image.data.pixels import as_rgb

        return np.array(as_rgb(image, where)).transpose(2, 0, 1)
    planes: np.ndarray = _images(_array(image)[None], where, one=True)[0]
    return planes


def _array(values: Any) -> np.ndarray:
    """A tensor or anything else as an array."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _images(images: np.ndarray, where: str, one: bool = False) -> np.ndarray:
    """Images as uint8 (N, 3, H, W) in memory of their own or of the user's. `one`: N is 1, and the user knows nothing of it."""
    shape = images.shape[1:] if one else images.shape
    shapes = SHAPES.replace("N, ", "") if one else SHAPES
    if images.dtype != np.uint8:
        _refuse_type(images, f"{where} is" if one else f"{where} images are", shape)
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise KdrunError(f"{where} {'is' if one else 'images are'} uint8 {shape}; kdrun wants {shapes}")
    if images.shape[1] == 1:
        images = images.repeat(3, axis=1)  # grey
    return np.require(images, requirements=["C", "W"])


def _refuse_type(images: np.ndarray, what: str, shape: tuple[int, ...]) -> NoReturn:
    way = "as in images.astype('uint8')"
    if images.dtype.kind == "f":
        top = float(images.max()) if images.size else 0.0
        scaled = "images * 255" if top <= 1 else "images"
        way = f"as in ({scaled}).round().astype('uint8'); the highest value here is {top:g}"
    raise KdrunError(f"{what} {images.dtype} {shape}; kdrun wants uint8 of 0 to 255, not normalised, {way}")


def _labels(labels: Any, where: str) -> np.ndarray:
    values = _array(labels)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise KdrunError(
            f"{where} labels are {values.dtype} {values.shape}; kdrun wants one whole number for each image, 0 to K-1"
        )
    if values.min() < 0:
        raise KdrunError(f"{where} has label {values.min()}; kdrun wants labels 0 to K-1")
    return np.array(values, dtype=np.int64)


def _classes(names: Any, labels: np.ndarray, where: str) -> list[str]:
    """The names of the classes, by default their numbers. Each must have a training image."""
    if isinstance(names, str) or not (names is None or isinstance(names, Sequence) or hasattr(names, "tolist")):
        raise KdrunError(f"{where}: classes is {type(names).__name__}; kdrun wants a list with a name for each label")
    count = int(labels.max()) + 1
    classes = [str(name) for name in (range(count) if names is None else names)]
    if len(classes) < count:
        raise KdrunError(
            f"{where}: train has label {count - 1}, and classes has {len(classes)} names; kdrun wants one for each label"
        )
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise KdrunError(f"{where}: classes names '{twice}' twice; kdrun wants another name for each label")
    if len(classes) < 2:
        raise KdrunError(f"{where}: train has label 0 alone; kdrun wants two classes or more")
    missing = sorted(set(range(len(classes))) - set(np.unique(labels).tolist()))
    if missing:
        raise KdrunError(
            f"{where}: train has no image with label {missing[0]}; kdrun wants labels 0 to K-1, here 0 to {len(classes) - 1}, each of "
            f"them with a training image"
        )
    return classes


def _side(train: Part, test: Part, where: str) -> tuple[int | None, str]:
    """The side that every image has, or None and a sentence that says which has not."""
    first: tuple[int, ...] | None = None
    for name, part in (("train", train), ("test", test)):
        shapes = (
            [image.shape[1:] for image in part.images] if isinstance(part.images, list) else [part.images.shape[2:]]
        )
        for row, (height, width) in enumerate(shapes):
            image = f"{name} image {row} is" if len(shapes) > 1 else f"the {name} images are"
            if height != width:
                return None, f"{where}: {image} {width} x {height} px, not square"
            first = first or (height, width)
            if (height, width) != first:
                return None, f"{where}: {image} {width} x {height} px, the first {first[1]} x {first[0]}"
    assert first is not None
    return first[0], ""


def _checksum(train: Part, test: Part, classes: list[str]) -> str:
    digest = hashlib.sha256(repr(classes).encode())
    for part in (train, test):
        for image in part.images if isinstance(part.images, list) else [part.images]:
            digest.update(f"{len(part)} {image.shape}\0".encode())  # no two contents can run together
            digest.update(np.ascontiguousarray(image).data)
        digest.update(part.labels.astype("<i8").tobytes())
    return digest.hexdigest()
