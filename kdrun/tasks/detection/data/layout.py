"""What a data yaml of ultralytics names: the images of each split and the classes. Imports nothing that is slow to import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # comes with omegaconf

from kdrun.errors import KdrunError, choices

SUFFIXES = {".avif", ".bmp", ".dng", ".jpeg", ".jpg", ".jpeg2000", ".jp2", ".mpo", ".png", ".tif", ".tiff", ".webp"}
LAYOUT = "train, val and names, and test where there is one"


@dataclass
class Layout:
    """The files of a data set. `images`: split -> paths, sorted; `classes` in the order of their numbers."""

    file: Path
    root: Path
    classes: list[str]
    images: dict[str, list[Path]]  # train, val, and test where there is one
    notes: list[str] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """An image's path below the root of the data set, or its whole path where it lies elsewhere."""
        return os.path.relpath(path, self.root) if path.is_relative_to(self.root) else str(path)


def read(data: str | None) -> Layout:
    """The layout that a data yaml describes. KdrunError that names the file, the key and the way out."""
    file = _file(data)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise KdrunError(f"{file} cannot be read as a data yaml: {what}") from error
    if not isinstance(content, Mapping):
        raise KdrunError(f"{file} is no data yaml: it must hold {LAYOUT}")
    classes = _classes(file, content.get("names"), content.get("nc"))
    root = _root(file, content.get("path"))
    for key in ("train", "val"):
        if not content.get(key):
            raise KdrunError(f"{file} has no key '{key}'. {choices(key, map(str, content))} It must hold {LAYOUT}")
    images = {part: _images(file, root, part, content[part]) for part in ("train", "val", "test") if content.get(part)}
    layout = Layout(file, root, classes, images)
    for part in ("val", "test"):
        shared = set(images["train"]) & set(images.get(part, []))
        if shared:
            raise KdrunError(
                f"{file}: {len(shared)} images of {part} are in train, too, such as {layout.name(min(shared))}; "
                "a score on them would say nothing"
            )
    return layout


def _file(data: str | None) -> Path:
    if data is None:
        raise KdrunError(
            "dataset.data is not set: dataset=yolo needs dataset.data=FILE.yaml, a data yaml of ultralytics with "
            f"{LAYOUT}"
        )
    file = Path(data).expanduser().absolute()
    if file.is_dir():
        inside = sorted(one.name for one in file.glob("*.y*ml"))
        hint = f": dataset.data={Path(data) / inside[0]}" if inside else ""
        raise KdrunError(f"dataset.data={data} is a folder; give the data yaml{hint}")
    if not file.is_file():
        near = sorted(one.name for one in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        raise KdrunError(
            f"dataset.data={data}: no such file ({file}). {choices(file.name, near) if near else ''}".rstrip()
        )
    return file


def _classes(file: Path, names: Any, count: Any) -> list[str]:
    """The names of the classes: a list, or a mapping from 0, 1, ... to names."""
    if isinstance(names, Mapping):
        numbers = sorted(names)
        if numbers != list(range(len(names))):
            raise KdrunError(f"{file}: names has the numbers {numbers[:5]}; they must be 0, 1, 2, ... without a gap")
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names:
        raise KdrunError(f"{file}: names is {names!r}; give the classes, as in names: {{0: cat, 1: dog}}")
    classes = [str(name) for name in names]
    doubled = next((name for name in classes if classes.count(name) > 1), None)
    if doubled is not None:
        raise KdrunError(f"{file}: names has {doubled} twice")
    if count is not None and count != len(classes):
        raise KdrunError(f"{file}: nc is {count}, and names has {len(classes)} classes; remove nc")
    return classes


def _root(file: Path, path: Any) -> Path:
    """The folder that the splits lie in: `path`, taken from the yaml's folder or from the current one; else the yaml's folder."""
    if path in (None, ""):
        return file.parent
    given = Path(str(path)).expanduser()
    for root in (file.parent / given, given):
        if root.is_dir():
            return root.resolve()
    raise KdrunError(
        f"{file}: path is '{path}', and there is no such folder, neither in {file.parent} nor in {Path.cwd()}. "
        "Set path to the folder that holds the images, or remove it where that is the yaml's own folder "
        "(kdrun downloads nothing)"
    )


def _images(file: Path, root: Path, part: str, given: Any) -> list[Path]:
    """The images of one split: of a folder and the folders in it, or of a text file with a path on each line; or several of these."""
    found: list[Path] = []
    for one in given if isinstance(given, list) else [given]:
        place = root / Path(str(one)).expanduser()
        if place.is_dir():
            found += [
                path for path in sorted(place.rglob("*")) if path.suffix.lower() in SUFFIXES and _is_plain(path, place)
            ]
        elif place.is_file():
            lines = place.read_text(encoding="utf-8-sig").splitlines()
            found += [_listed(place, line.strip()) for line in lines if line.strip()]
        else:
            raise KdrunError(f"{file}: {part} is '{one}', and there is no such folder or list of images ({place})")
    if not found:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise KdrunError(f"{file}: {part} is '{given}', and no image is there (*.{kinds})")
    return sorted(set(found))


def _is_plain(path: Path, place: Path) -> bool:
    """Whether neither the file nor a folder between it and `place` is hidden."""
    return not any(part.startswith(".") for part in path.relative_to(place).parts)


def _listed(place: Path, line: str) -> Path:
    """An image of a list; a relative path starts at the list's folder."""
    path = place.parent / Path(line).expanduser()
    if not path.is_file():
        raise KdrunError(f"{place} lists {line}, and there is no such image ({path})")
    return path


def label_file(image: Path) -> Path:
    """The file with the boxes of an image: labels/ in the place of the last images/ of its path, .txt for its suffix."""
    parts = list(image.parts)
    for number in range(len(parts) - 2, -1, -1):
        if parts[number] == "images":
            parts[number] = "labels"
            break
    return Path(*parts).with_suffix(".txt")
