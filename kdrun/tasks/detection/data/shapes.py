"""Generated images of coloured shapes with their boxes, written once as JPEG files with a data yaml. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image, ImageDraw, ImageFilter

VERSION = 1  # of the images: another one is another data set
CLASSES = ("circle", "square", "triangle")
COLOURS = ((200, 60, 60), (60, 80, 200), (60, 180, 80))  # of each class, give or take 40
COUNTS = {"train": 128, "val": 24, "test": 48}
SIDE = 64


def generated(outputs: str) -> Path:
    """The data yaml of the shapes in <outputs>/data/shapes-<version>, which is made where it is missing."""
    folder = Path(outputs, "data", f"shapes-{VERSION}").absolute()
    file = folder / "shapes.yaml"
    if file.is_file():
        return file
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not file.is_file():
            half = folder.with_name(f"{folder.name}.tmp")
            shutil.rmtree(half, ignore_errors=True)
            write(half)
            half.rename(folder)
    return file


def write(folder: Path, counts: dict[str, int] | None = None, side: int = SIDE) -> Path:
    """Write images, labels and the data yaml into `folder`; returns the yaml. The same arguments give the same bytes of labels."""
    for part, count in (counts or COUNTS).items():
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        for number in range(count):
            image, boxes = picture(part, number, side)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            (folder / "images" / part / f"{number:04d}.jpg").write_bytes(buffer.getvalue())
            lines = [f"{int(c)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for c, x, y, w, h in boxes]
            (folder / "labels" / part / f"{number:04d}.txt").write_text("".join(lines))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    splits = "".join(f"{part}: images/{part}\n" for part in counts or COUNTS)
    (folder / "shapes.yaml").write_text(f"# Generated: coloured shapes and their boxes.\n{splits}names:\n{names}")
    return folder / "shapes.yaml"


def picture(part: str, number: int, side: int) -> tuple[Image.Image, list[tuple[float, ...]]]:
    """One image of one to four shapes that hardly overlap, on a noisy ground, and their boxes as a label file has them."""
    draw = np.random.default_rng(
        int.from_bytes(hashlib.sha256(f"{part}/{number}/{VERSION}".encode()).digest()[:8], "big")
    )
    ground = draw.integers(90, 166, 3) + draw.normal(0, 12, (side, side, 3))
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))
    pen, taken = ImageDraw.Draw(image), list[tuple[float, float, float]]()
    boxes: list[tuple[float, ...]] = []
    for _ in range(int(draw.integers(1, 5))):
        radius = float(draw.uniform(0.12, 0.24)) * side
        x, y = (float(draw.uniform(radius, side - radius)) for _ in range(2))
        if any((x - a) ** 2 + (y - b) ** 2 < (0.8 * (radius + r)) ** 2 for a, b, r in taken):
            continue
        taken.append((x, y, radius))
        kind = int(draw.integers(len(CLASSES)))
        colour = tuple(int(value) for value in COLOURS[kind] + draw.integers(-40, 41, 3))
        left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
        if kind == 0:
            pen.ellipse((left, top, right, bottom), fill=colour)
        elif kind == 1:
            pen.rectangle((left, top, right, bottom), fill=colour)
        else:
            pen.polygon(((x, top), (right, bottom), (left, bottom)), fill=colour)
        boxes.append((kind, x / side, y / side, 2 * radius / side, 2 * radius / side))
    return image, boxes
