"""The content of a folder of images: classes, files and checksum. Images are not decoded, and nothing slow is imported."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field

from kdrun.errors import KdrunError, choices
from kdrun.tasks import cache
from kdrun.tasks.image.data.pixels import read_anew, shown

LAYOUT = "train/<class>/* and test/<class>/* (or val/)"


@dataclass
class Tree:
    """The listing of a folder. A file is (path below root, class number, bytes, mtime in ns); paths are those on the disk."""

    root: str
    classes: list[str]  # as they are shown: see pixels.shown
    train: list[tuple[str, int, int, int]]
    test: list[tuple[str, int, int, int]]
    notes: list[str] = field(default_factory=list)  # lines for the user that are no errors


def scan(root: str | None) -> Tree:
    """The listing of a folder, sorted by class and name, without hidden files. Raises KdrunError that names the place."""
    if root is None:
        raise KdrunError(f"dataset.root is not set: image_folder needs dataset.root=FOLDER with {LAYOUT}")
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        raise KdrunError(f"dataset.root={shown(root)} is not a folder; it must hold {LAYOUT}")
    test = next((part for part in ("test", "val") if os.path.isdir(os.path.join(root, part))), None)
    if test is None or not os.path.isdir(os.path.join(root, "train")):
        missing = "test or val" if test is None else "train"
        raise KdrunError(f"dataset.root={shown(root)} has no {missing} folder; it must hold {LAYOUT}")
    folders = _classes(os.path.join(root, "train"))
    if len(folders) < 2:
        what = f"one class folder ({next(iter(folders))})" if folders else "no class folders"
        raise KdrunError(
            f"{shown(root)}/train has {what}; two classes or more are needed: dataset.root must hold {LAYOUT}"
        )
    of_test = _classes(os.path.join(root, test))
    for name in of_test:
        if name not in folders:
            raise KdrunError(
                f"class {name} in {shown(root)}/{test} is not in {shown(root)}/train. {choices(name, folders)}"
            )
    tree = Tree(root, list(folders), _files(root, "train", folders, folders), _files(root, test, of_test, folders))
    if not tree.test:
        raise KdrunError(f"{shown(root)}/{test} has no images; dataset.root must hold {LAYOUT}")
    if test == "test" and os.path.isdir(os.path.join(root, "val")):
        tree.notes.append(
            f"{shown(root)}/val is not used, because there is test/; dataset.holdout=N takes N images out of train/"
        )
    untested = [name for name in folders if name not in of_test]
    if untested:
        more = f" and {len(untested) - 5} more" if len(untested) > 5 else ""
        tree.notes.append(f"{shown(root)}/{test} has no image of {', '.join(untested[:5])}{more}")
    return tree


def checksum(tree: Tree, outputs: str) -> str:
    """sha256 over path and bytes of every image. It is kept in a file and used until a name, a size or a time changes."""
    files = tree.train + tree.test
    listing = hashlib.sha256(os.fsencode("\n".join(f"{rel}\0{size}\0{time}" for rel, _, size, time in files)))
    path = os.path.join(outputs, "cache", f"folder-{hashlib.sha256(os.fsencode(tree.root)).hexdigest()[:16]}.json")

    def content() -> str:
        digest, anew = hashlib.sha256(), False
        for rel, *_ in files:
            data = _bytes(f"{tree.root}/{rel}")
            digest.update(
                os.fsencode(f"{rel}\0{len(data)}\0")
            )  # with the length, so that two different folders never give the same bytes
            digest.update(data)
            anew = anew or read_anew(data)
        if (
            anew
        ):  # what was trained on, or decoded into a cache, before the pixels were read right is of another data set
            digest.update(b"alpha and 16 bits are read")
        return digest.hexdigest()

    return cache.remembered(path, ["alpha and 16 bits", listing.hexdigest()], content)


def _classes(path: str) -> dict[str, str]:
    """Shown name -> folder name of each class below `path`, in the order of the folders' own names."""
    names: dict[str, str] = {}
    for entry in _entries(path):
        if not stat.S_ISDIR(_status(entry).st_mode):
            continue
        name = shown(entry.name)
        if name in names:
            raise KdrunError(
                f"{shown(path)} has two folders for class {name}, whose names have different Unicode forms "
                f"({names[name]!a} and {entry.name!a}): put their images into one folder"
            )
        names[name] = entry.name
    return names


def _files(root: str, part: str, folders: dict[str, str], classes: dict[str, str]) -> list[tuple[str, int, int, int]]:
    """The files of one part, by class. A class may be missing in the test part."""
    rows = []
    for label, name in enumerate(classes):
        if name not in folders:
            continue
        folder = os.path.join(root, part, folders[name])
        entries = _entries(folder)
        if not entries:
            raise KdrunError(f"class folder {shown(folder)} is empty: put images there or remove it")
        for entry in entries:
            status = _status(entry)
            if stat.S_ISDIR(status.st_mode):
                raise KdrunError(f"{shown(entry.path)} is a folder; images must lie directly in {shown(folder)}")
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                raise KdrunError(f"{shown(entry.path)} is neither a file nor a folder: remove it")
            rows.append((f"{part}/{folders[name]}/{entry.name}", label, status.st_size, status.st_mtime_ns))
    return rows


def _entries(path: str) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise KdrunError(
            f"{shown(path)} cannot be listed ({error.strerror}): change its permissions or remove it"
        ) from error


def _status(entry: os.DirEntry) -> os.stat_result:
    try:
        return entry.stat()
    except OSError as error:
        if entry.is_symlink():
            target = shown(os.readlink(entry.path))
            raise KdrunError(
                f"{shown(entry.path)} is a broken link to {target} ({error.strerror}): repair or remove it"
            ) from error
        raise KdrunError(f"{shown(entry.path)} cannot be read ({error.strerror}): repair or remove it") from error


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # pathlib and buffers would take half the time
            return file.read()
    except OSError as error:
        raise KdrunError(
            f"{shown(path)} cannot be read ({error.strerror}): change its permissions or remove it"
        ) from error
