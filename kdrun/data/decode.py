"""One image file as 8-bit RGB. docs/data.md states the rules; a picture that they do not cover is refused by name, never guessed.

Every rule is a fixed scale: no image is stretched by its own values, so that images stay comparable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdrun.errors import KdrunError

if TYPE_CHECKING:
    from PIL import Image

GROUND = (255, 255, 255)  # what shows through transparent pixels: white
RULES = 2  # of this file; part of the names of caches, so that images decoded by other rules are not read


def rgb(path: str) -> Image.Image:
    """The first frame of an image, RGB; transparency over GROUND; 16-bit and float pixels scaled. EXIF orientation is ignored.

    KdrunError, naming the file, for what cannot be read or scaled.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
            if opened.mode.startswith("I") or opened.mode == "F":
                return Image.fromarray(_grey(opened, path), "L").convert("RGB")
            if opened.has_transparency_data:
                ground = Image.new("RGBA", opened.size, GROUND)
                return Image.alpha_composite(ground, opened.convert("RGBA")).convert("RGB")
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise KdrunError(f"{path} cannot be read as an image ({error}): repair or remove it") from error


def _grey(image: Image.Image, path: str):
    """Pixels of one channel beyond 8 bits as uint8 (H, W): 0..65535 and 0..1 become 0..255, rounded."""
    import numpy as np

    values = np.asarray(image)
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            raise KdrunError(
                f"{path} has floating-point pixels from {values.min():g} to {values.max():g}; kdrun scales those from 0 to 1. "
                "Scale them, or save the images with 8 or 16 bits"
            )
        return (values * 255 + 0.5).astype(np.uint8)
    sixteen_bits = image.mode.startswith("I;16") or image.format == "PNG"  # Pillow calls some PNGs of 16 bits "I"
    if not sixteen_bits:
        raise KdrunError(
            f"{path} has pixels of 32-bit whole numbers, whose scale is unknown; save it with 8 or 16 bits"
        )
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
