"""Any folder with train/<class>/* and test/<class>/* (or val/): decoded once into a cache, or streamed."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.data.decode import RULES, rgb
from kdrun.errors import KdrunError, choices

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from kdrun.data.base import Dataset, Split

LAYOUT = "train/<class>/* and test/<class>/* (or val/)"
MEMORY = ("auto", "always", "never")


@dataclass
class Tree:
    """What a folder holds, from its listing alone. A file is (path below root, class number, bytes, mtime in ns)."""

    root: str
    classes: list[str]  # as they are shown; a folder's own name is in the paths
    train: list[tuple[str, int, int, int]]
    test: list[tuple[str, int, int, int]]
    notes: list[str] = field(default_factory=list)  # what the user should know


def checksum(cfg: Any, outputs: str) -> str:
    """sha256 over path and bytes of every image; remembered for as long as no name, size or time changes."""
    return _checksum(scan(cfg.root), outputs)


def load(cfg: Any, outputs: str) -> Dataset:
    """Images of dataset.size px (null: that of the first image): short side resized, centre cropped, RGB.

    In memory they come, memory-mapped, from <outputs>/cache, where the first process to ask decodes them;
    dataset.memory=never, or auto with too little memory, reads files as they are needed. Raises KdrunError.
    """
    import torch

    from kdrun.data import base

    if cfg.memory not in MEMORY:
        raise KdrunError(f"dataset.memory={cfg.memory} is unknown. {choices(str(cfg.memory), MEMORY)}")
    if cfg.size is not None and cfg.size < 1:
        raise KdrunError(f"dataset.size={cfg.size} must be a side in px, or null for that of the first image")
    tree = scan(cfg.root)
    digest = _checksum(tree, outputs)
    size = cfg.size or _side_of(os.path.join(tree.root, tree.train[0][0]))
    reader = partial(read, size=size, resize=cfg.size is not None)

    def listed(rows: list) -> Split:
        labels, files = torch.tensor([row[1] for row in rows]), [os.path.join(tree.root, row[0]) for row in rows]
        return base.Split(labels, torch.arange(len(rows)), None, files, reader)

    train, test = listed(tree.train), listed(tree.test)
    # A size of null has a name of its own: with mixed sizes it is an error, also where another run has resized them before.
    cache = os.path.join(outputs, "cache", f"{digest}-{cfg.size or 'native'}-v{RULES}")
    needed = (len(train) + len(test)) * 3 * size * size
    if cfg.memory == "always" or (cfg.memory == "auto" and needed <= _available_memory() / 4):
        images = _decoded(f"{cache}.npy", train, test, size)
        train, test = (
            base.Split(part.labels, part.index, rows)
            for part, rows in ((train, images[: len(train)]), (test, images[len(train) :]))
        )

    def stats(kept: Split) -> list[list[float]]:
        return _remembered(f"{cache}.json", cfg.holdout, lambda: base.channel_stats(kept, _cores()))

    return base.assemble(
        cfg, classes=tree.classes, size=size, checksum=digest, train=train, test=test, stats=stats, notes=tree.notes
    )


def side(cfg: Any, outputs: str) -> int | None:
    """The side in px that every image has; None where they differ or are not square. Reads heads of files, once."""
    from PIL import Image

    tree = scan(cfg.root)

    def heads() -> int | None:
        sizes = set()
        for path, *_ in tree.train + tree.test:
            try:
                with Image.open(os.path.join(tree.root, path)) as image:
                    sizes.add(image.size)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                return None  # decoding says what is wrong with it
            if len(sizes) > 1:
                return None
        width, height = sizes.pop()
        return width if width == height else None

    side: int | None = _remembered(_of_folder(tree, outputs, "side"), _listing(tree), heads)
    return side


def sizes(cfg: Any, outputs: str) -> tuple[int, int, int | None]:
    tree = scan(cfg.root)
    return len(tree.train), len(tree.test), cfg.size or side(cfg, outputs)


def scan(root: str | None) -> Tree:
    """The listing of a folder, hidden files left out, sorted by class and name."""
    if root is None:
        raise KdrunError(f"dataset.root is not set: image_folder needs dataset.root=FOLDER with {LAYOUT}")
    root = os.path.abspath(os.path.expanduser(root))
    if not os.path.isdir(root):
        raise KdrunError(f"dataset.root={root} is not a folder; it must hold {LAYOUT}")
    test = next((part for part in ("test", "val") if os.path.isdir(os.path.join(root, part))), None)
    if test is None or not os.path.isdir(os.path.join(root, "train")):
        raise KdrunError(
            f"dataset.root={root} has no {'test or val' if test is None else 'train'} folder; it must hold {LAYOUT}"
        )
    folders = _class_folders(root, "train")
    if not folders:
        raise KdrunError(f"{root}/train has no class folders; dataset.root must hold {LAYOUT}")
    of_test = _class_folders(root, test)
    for name in of_test:
        if name not in folders:
            raise KdrunError(f"class {name} in {root}/{test} is not in {root}/train. {choices(name, folders)}")
    classes = [*folders]
    tree = Tree(root, classes, _files(root, "train", folders, classes), _files(root, test, of_test, classes))
    if not tree.test:
        raise KdrunError(f"{root}/{test} has no images; dataset.root must hold {LAYOUT}")
    if test == "test" and os.path.isdir(os.path.join(root, "val")):
        tree.notes.append(
            "data     val/ lies beside test/ and is not used; dataset.holdout=N takes a holdout out of the training set"
        )
    return tree


def _class_folders(root: str, part: str) -> dict[str, str]:
    """Name as it is shown -> name of the folder, in the order of the folders' names.

    One name may be written in two forms of Unicode (macOS writes accents as characters of their own): both are one class. Bytes
    that are not UTF-8 are shown as \\xNN.
    """
    shown: dict[str, str] = {}
    path = os.path.join(root, part)
    with _scandir(path) as entries:
        folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for folder in folders:
        name = unicodedata.normalize("NFC", os.fsencode(folder).decode("utf-8", "backslashreplace"))
        if name in shown:
            raise KdrunError(
                f"{path} has two folders called {name}, which differ in their Unicode form alone; put their images into one"
            )
        shown[name] = folder
    return shown


def _scandir(path: str):
    try:
        return os.scandir(path)
    except OSError as error:
        raise KdrunError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _files(root: str, part: str, folders: dict[str, str], classes: list[str]) -> list[tuple[str, int, int, int]]:
    """The files of each class; a class may have no folder in the test set."""
    files = []
    for label, name in enumerate(classes):
        if name not in folders:
            continue
        folder = os.path.join(root, part, folders[name])
        with _scandir(folder) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        if not visible:
            raise KdrunError(f"class folder {folder} is empty: put images there or remove it")
        for entry in visible:
            try:
                status = entry.stat()
            except OSError as error:
                what = "is a broken link" if entry.is_symlink() else f"cannot be read ({error.strerror})"
                raise KdrunError(f"{entry.path} {what}: repair or remove it") from error
            if entry.is_dir():
                raise KdrunError(f"{entry.path} is a folder; images must lie directly in {folder}")
            files.append((f"{part}/{folders[name]}/{entry.name}", label, status.st_size, status.st_mtime_ns))
    return files


def _listing(tree: Tree) -> str:
    """A hash of names, sizes and times: what a remembered value of a folder holds for."""
    files = tree.train + tree.test
    return hashlib.sha256(os.fsencode("\n".join(f"{rel}\0{size}\0{time}" for rel, _, size, time in files))).hexdigest()


def _of_folder(tree: Tree, outputs: str, what: str) -> str:
    """The file that remembers a value of this folder."""
    return os.path.join(outputs, "cache", f"{what}-{hashlib.sha256(os.fsencode(tree.root)).hexdigest()[:16]}.json")


def _checksum(tree: Tree, outputs: str) -> str:
    def content() -> str:
        digest = hashlib.sha256()
        for rel, *_ in tree.train + tree.test:
            try:
                with open(
                    f"{tree.root}/{rel}", "rb", buffering=0
                ) as file:  # pathlib and buffers would take half the time
                    data = file.read()
            except OSError as error:
                raise KdrunError(f"{tree.root}/{rel} cannot be read ({error.strerror}): repair or remove it") from error
            digest.update(os.fsencode(f"{rel}\0{len(data)}\0"))  # the length: no two trees can run together
            digest.update(data)
        return digest.hexdigest()

    checksum: str = _remembered(_of_folder(tree, outputs, "folder"), _listing(tree), content)
    return checksum


def _remembered(path: str, key: Any, compute: Callable[[], Any]) -> Any:
    """What compute() returned (as JSON has it), kept in the file `path` for as long as `key` is the same."""
    try:
        kept = json.loads(Path(path).read_text())
        if kept["key"] == key:
            return kept["value"]
    except (OSError, ValueError, KeyError):
        pass  # none yet, or one that cannot be read: compute it again
    value = compute()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    Path(temporary).write_text(json.dumps({"key": key, "value": value}))
    os.replace(temporary, path)
    return value


def read(path: str, size: int, resize: bool) -> Tensor:
    """One image as uint8 (3, size, size), RGB. `resize` False: one of another size is an error that says how to."""
    import numpy as np
    import torch

    image = rgb(path)
    if image.size != (size, size):
        if not resize:
            width, height = image.size
            raise KdrunError(
                f"{path} is {width} x {height} px, the first image {size} x {size}: dataset.size={size} resizes all"
            )
        image = _resized(image, size)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _resized(image: Image.Image, size: int) -> Image.Image:
    """Resize and CenterCrop of torchvision.transforms.v2, pixel for pixel, without a second spent on its import."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), 2).crop((left, top, left + size, top + size))  # 2: bilinear


def _side_of(path: str) -> int:
    """The side of the first image, in px."""
    width, height = rgb(path).size
    if width != height:
        raise KdrunError(f"{path} is {width} x {height} px, not square: dataset.size=32 resizes and crops all to 32 px")
    return width


def _decoded(path: str, train: Split, test: Split, size: int) -> Tensor:
    """All images, training ones first, uint8 (N, 3, size, size), mapped from the file `path`; one process writes it."""
    import numpy as np
    import torch
    from filelock import FileLock

    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.exists(path):
        with FileLock(f"{path}.lock"):
            if not os.path.exists(path):
                try:
                    _decode(f"{path}.tmp", train, test, size)
                    os.replace(f"{path}.tmp", path)
                finally:  # after a broken image nothing half-written stays
                    Path(f"{path}.tmp").unlink(missing_ok=True)
    # "c": copy on write. Pages are shared between processes, and torch wants writable memory.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _decode(path: str, train: Split, test: Split, size: int) -> None:
    import numpy as np
    import torch

    shape = (len(train) + len(test), 3, size, size)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    chunk = max(1, min(512, (4 << 20) // (3 * size * size)))  # 4 MiB: containers often have little shared memory
    row = 0
    for part in (train, test):
        # Processes, not threads: on small JPEGs threads wait for the interpreter's lock (60k files: 2.7 against 5.2 s).
        for images in part.batches(torch.arange(len(part)).split(chunk), _cores() if len(part) > chunk else 0):
            out[row : row + len(images)] = images.numpy()
            row += len(images)
    out.flush()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _available_memory() -> int:
    """Bytes that can be used without swapping; where the system does not say, the memory that it has."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
