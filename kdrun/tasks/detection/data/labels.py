"""The boxes of an image, from its label file: a line for each box, "class centre_x centre_y width height", all shares of the image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdrun.errors import KdrunError

TOLERANCE = 0.01  # by which a coordinate may lie outside the image, as the library allows


@dataclass
class Boxes:
    """The boxes of one image."""

    classes: np.ndarray  # float32 (N, 1)
    boxes: np.ndarray  # float32 (N, 4): centre x, centre y, width, height
    doubled: int = 0  # lines that repeat another one; they are left out


def read(file: Path, classes: list[str]) -> Boxes:
    """The boxes of one image; none where the file is empty or missing (an image of background).

    A line with more numbers is a polygon "class x1 y1 x2 y2 ...", whose box is taken. Raises KdrunError that names file and line.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise KdrunError(f"{file} cannot be read as a file of labels: {error}") from error
    rows = [
        _row(line.split(), f"{file}, line {number}", classes)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    _, kept = np.unique(table, axis=0, return_index=True)
    table = table[np.sort(kept)]
    return Boxes(table[:, :1], table[:, 1:], len(rows) - len(table))


def _row(words: list[str], where: str, classes: list[str]) -> list[float]:
    """Class, centre x, centre y, width and height of a line."""
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise KdrunError(
            f"{where}: '{' '.join(words)[:60]}' is no line of numbers; it must be: class centre_x centre_y width height"
        ) from error
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        raise KdrunError(f"{where} has {len(numbers)} numbers; it must have 5: class centre_x centre_y width height")
    number = numbers[0]
    if number != int(number) or not 0 <= number < len(classes):
        raise KdrunError(
            f"{where} has class {number:g}; the classes of the data yaml are 0 to {len(classes) - 1} ({', '.join(classes[:5])}"
            f"{', ...' if len(classes) > 5 else ''})"
        )
    wrong = next((value for value in numbers[1:] if not -TOLERANCE <= value <= 1 + TOLERANCE), None)
    if wrong is not None:
        raise KdrunError(
            f"{where} has {wrong:g}; coordinates are shares of the image, from 0 to 1 (pixels must be divided by width and height)"
        )
    if len(numbers) == 5:
        if min(numbers[3:]) <= 0:
            raise KdrunError(
                f"{where} has a box of width {numbers[3]:g} and height {numbers[4]:g}; both must be above 0"
            )
        return numbers
    x, y = numbers[1::2], numbers[2::2]
    left, right, top, bottom = min(x), max(x), min(y), max(y)
    return [number, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
