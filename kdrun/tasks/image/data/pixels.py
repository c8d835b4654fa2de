"""One image file as 8-bit RGB, as a viewer shows it, with transparent parts laid over white. docs/data.md has the rules."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from kdrun.errors import KdrunError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

GROUND = (
    255,
    255,
    255,
)  # white is put behind transparent parts, because most drawings on a transparent ground are dark
PAGED = (".gif", ".tif", ".tiff", ".webp", ".png", ".apng", ".avif")  # formats that can hold several images
BITS, PHOTOMETRIC = 258, 262  # tags of a TIFF file: bits per value; 0 there means that white is zero


class _Refused(Exception):
    """An image whose values have no known meaning. The message follows the name of the file."""


def rgb(path: str) -> Image.Image:
    """The image in a file (the first one, if there are several), in mode RGB. Raises KdrunError that names the file.

    16-bit values are scaled by their full range and floats in [0, 1] by 255, in the same way for every file. The EXIF orientation is
    ignored.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _rgb(image)
    except _Refused as error:
        raise KdrunError(f"{shown(path)} {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a broken file makes Pillow's readers fail in many ways
        raise KdrunError(
            f"{shown(path)} cannot be read as an image ({shown(str(error))}): repair or remove it, or convert it to PNG or JPEG"
        ) from error


def as_rgb(image: Image.Image, name: str) -> Image.Image:
    """An open image, mode RGB, by the same rules; `name` says in an error which one it is."""
    try:
        return _rgb(image)
    except _Refused as error:
        raise KdrunError(f"{name} {error}") from error


def read_anew(data: bytes) -> bool:
    """True for a file that older versions of kdrun decoded to other pixels (alpha, 16 bits). Its folder gets another checksum."""
    from_png = data[:8] == b"\x89PNG\r\n\x1a\n"
    if data[:2] == b"\xff\xd8":  # JPEG has neither
        return False
    if from_png and data[25:26] in b"\0\2\3" and data[24:26] != b"\x10\0" and b"tRNS" not in data[: data.find(b"IDAT")]:
        return False
    from PIL import Image

    try:
        with Image.open(BytesIO(data)) as image:
            if image.mode[0] in "IF":
                return True
            return _has_alpha(image) and _alpha_range(image.convert("RGBA"))[0] < 255
    except Exception:  # rgb gives the error
        return False


def several(paths: Iterable[str]) -> list[str]:
    """A line for each format whose first file holds several images."""
    from PIL import Image

    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(os.path.splitext(path)[1].lower(), path)
    lines = []
    for path in (first[kind] for kind in PAGED if kind in first):
        try:
            with Image.open(path) as image:
                n = getattr(image, "n_frames", 1)
        except Exception:  # rgb gives the error
            continue
        if n > 1:
            lines.append(f"{shown(path)} holds {n} images: only the first image of such a file is used")
    return lines


def shown(name: str) -> str:
    """A name that screen, log and record can show: control characters and bytes that are not UTF-8 become \\x.., the rest is composed.

    Composed (NFC), because file systems write the same accented letter in different ways.
    """
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    text = "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in text)
    return unicodedata.normalize("NFC", text)


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "F" or image.mode[0] == "I":
        grey_HW = _floats(image) if image.mode == "F" else _levels(image)
        return Image.fromarray(grey_HW).convert("RGB")
    if not _has_alpha(image):
        return image.convert("RGB")
    if isinstance(image.info.get("transparency"), tuple) and any(
        "16B" in str(tile[3]) for tile in getattr(image, "tile", ())
    ):
        raise _Refused("has 16 bits and one transparent colour, which has no exact value in 8 bits: save it as RGBA")
    image = image.convert("LA") if image.mode == "La" else image
    drawing = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, (*GROUND, 255)), drawing).convert("RGB")
    least, most = _alpha_range(drawing)
    if least != most and flat.getextrema() == tuple((level, level) for level in GROUND):
        raise _Refused("is white on a transparent ground and would be all white: put another colour behind it")
    return flat


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _alpha_range(image: Image.Image) -> Any:
    """The lowest and the highest alpha (0..255) of an RGBA image."""
    return image.getchannel("A").getextrema()


def _levels(image: Image.Image) -> np.ndarray:
    """Whole numbers of 16 bits (12 in some TIFF files) as uint8 (H, W): in every file the full range becomes 0..255."""
    import numpy as np

    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # those have 16 bits, whatever the mode
        raise _Refused(
            "has signed or 32-bit whole numbers, whose black and white are not known: save it with 8 or 16 bits"
        )
    tags = getattr(image, "tag_v2", {})
    full = 4095 if tuple(tags.get(BITS, ())) == (12,) else 65535
    x_HW = np.asarray(image).astype(np.uint32)
    if tags.get(PHOTOMETRIC) == 0:
        x_HW = full - x_HW
    grey_HW = ((x_HW * 255 + full // 2) // full).astype(np.uint8)
    if "transparency" in image.info:  # one value that is transparent
        grey_HW[x_HW == image.info["transparency"]] = GROUND[0]
    return grey_HW


def _floats(image: Image.Image) -> np.ndarray:
    """Floats in [0, 1] as uint8 (H, W). Other values are refused: to stretch each file by itself would hide how bright it is."""
    import numpy as np

    x_HW = np.asarray(image)
    low, high = float(x_HW.min()), float(x_HW.max())
    if not 0 <= low <= high <= 1:  # NaN is none of these
        raise _Refused(
            f"has floats from {low:g} to {high:g}; black must be 0 and white 1: scale all images by the same factor, or save 8 or 16 bits"
        )
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0:
        x_HW = 1 - x_HW
    return (x_HW * 255 + 0.5).astype(np.uint8)
