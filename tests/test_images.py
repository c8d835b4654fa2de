"""What kinds of image files are trained on: each as a viewer shows it, or refused by name; and what the screen says of them."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kdrun.errors import KdrunError
from kdrun.tasks.image import data
from kdrun.tasks.image.data import image_folder, pixels

SETTINGS = {"root": None, "holdout": 0, "size": None, "flip": True, "memory": "auto", "mean": None, "std": None}
GREY = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def config(root: Path, **changes) -> SimpleNamespace:
    return SimpleNamespace(name="image_folder", **{**SETTINGS, "root": str(root), **changes})


def tree(root: Path, image, kind: str = "png", **options) -> Path:
    """Four images of each of two classes, told apart by which half is bright; `image` makes one of uint8 (8, 8)."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for side, name in enumerate("ab"):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                grey = random.integers(0, 60, (8, 8)).astype(np.uint8)
                grey[:, 4 * side : 4 * side + 4] += 150
                image(grey).save(root / part / name / f"{i}.{kind}", **options)
    return root


def loaded(root: Path, **changes):
    return data.load(config(root, **changes), str(root.parent / "out"))


def rgb_of(image: Image.Image, folder: Path, kind: str, **options) -> np.ndarray:
    """What training sees of an image once saved: (8, 8, 3)."""
    path = folder / f"x.{kind}"
    image.save(path, **options)
    return np.array(pixels.rgb(str(path)))


def sixteen(values_HWC: np.ndarray, colour_type: int, transparent: bytes = b"") -> bytes:
    """A PNG of 16 bits with channels that Pillow cannot write: values (H, W, C) or (H, W)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = values_HWC.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    clear = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# ---- 16 bits and floats


@pytest.mark.parametrize("kind", ["png", "tif", "ppm", "jp2"])
def test_16_bit_grey_is_scaled_by_its_full_range(tmp_path, kind):
    options = {"irreversible": False} if kind == "jp2" else {}
    seen = rgb_of(Image.fromarray(GREY.astype(np.uint16) * 257), tmp_path, kind, **options)
    assert np.array_equal(seen, np.dstack([GREY] * 3))
    dark = rgb_of(
        Image.fromarray(GREY.astype(np.uint16)), tmp_path, kind, **options
    )  # stays dark: nothing is stretched
    assert dark.max() == 1


def test_every_order_of_bytes_and_meaning_of_zero(tmp_path):
    big = Image.frombytes("I;16B", (8, 8), (GREY.astype(">u2") * 257).tobytes())
    assert np.array_equal(rgb_of(big, tmp_path, "tif")[..., 0], GREY)
    inverted = rgb_of(Image.fromarray(GREY.astype(np.uint16) * 257), tmp_path, "tif", tiffinfo={pixels.PHOTOMETRIC: 0})
    assert np.array_equal(inverted[..., 0], 255 - GREY)
    floats = Image.fromarray((GREY / 255).astype(np.float32))
    assert np.array_equal(rgb_of(floats, tmp_path, "tif", tiffinfo={pixels.PHOTOMETRIC: 0})[..., 0], 255 - GREY)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colour_and_alpha(tmp_path, colour_type, channels):
    levels = np.random.default_rng(2).integers(0, 256, (8, 8, channels))
    (tmp_path / "x.png").write_bytes(sixteen(levels * 257, colour_type))
    alpha = levels[..., 3 if channels == 4 else 1, None] / 255 if channels != 3 else np.ones((8, 8, 1))
    colour = levels[..., : 3 if channels > 2 else 1]
    expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (8, 8, 3))
    assert np.abs(np.array(pixels.rgb(str(tmp_path / "x.png"))) - expected).max() <= 1


def test_a_transparent_value_of_16_bits(tmp_path):
    values = np.array([[500, 501, 40000, 0]])
    (tmp_path / "x.png").write_bytes(sixteen(values, 0, struct.pack(">H", 500)))
    assert np.array(pixels.rgb(str(tmp_path / "x.png")))[0, :, 0].tolist() == [255, 2, 156, 0]
    (tmp_path / "y.png").write_bytes(sixteen(np.dstack([values] * 3), 2, struct.pack(">HHH", 500, 500, 500)))
    with pytest.raises(KdrunError, match=r"y.png has 16 bits and one transparent colour.*save it as RGBA"):
        pixels.rgb(str(tmp_path / "y.png"))


def test_floats_in_0_to_1_are_scaled_and_others_refused(tmp_path):
    seen = rgb_of(Image.fromarray((GREY / 255).astype(np.float32)), tmp_path, "tif")
    assert np.array_equal(seen, np.dstack([GREY] * 3))
    for wrong, told in (
        (GREY.astype(np.float32), "0 to 2"),
        (np.where(GREY > 99, np.nan, 0.5), "nan"),
        (GREY - 1.0, "-1"),
    ):
        with pytest.raises(KdrunError, match=rf"x.tif has floats from {told}.*scale all images by the same factor"):
            rgb_of(Image.fromarray(wrong.astype(np.float32)), tmp_path, "tif")


def test_whole_numbers_without_a_known_range_are_refused(tmp_path):
    path = tmp_path / "x.tif"
    Image.fromarray(GREY.astype(np.int32)).save(path)
    with pytest.raises(KdrunError, match=r"x.tif has signed or 32-bit whole numbers.*save it with 8 or 16 bits"):
        pixels.rgb(str(path))


# ---- alpha and other modes


def test_alpha_is_laid_over_white(tmp_path):
    ink = Image.fromarray(np.dstack([COLOUR, GREY]), "RGBA")
    expected = (COLOUR.astype(int) * GREY[..., None] + 255 * (255 - GREY[..., None].astype(int))) / 255
    for kind in ("png", "tif", "webp"):
        seen = rgb_of(ink, tmp_path, kind, **({"lossless": True, "exact": True} if kind == "webp" else {}))
        assert np.abs(seen - expected).max() <= 1, kind
    grey = rgb_of(Image.merge("LA", [Image.new("L", (8, 8), 0), Image.fromarray(GREY)]), tmp_path, "png")
    assert np.array_equal(grey[..., 0], 255 - GREY)
    opaque = Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 255)]), "RGBA")
    assert np.array_equal(rgb_of(opaque, tmp_path, "png"), COLOUR)  # as it was before alpha was read


@pytest.mark.parametrize(
    ("kind", "mode", "clear"),
    [("png", "L", 0), ("png", "RGB", (0, 0, 0)), ("png", "P", "number"), ("png", "P", "bytes"), ("gif", "P", "number")],
)
def test_a_transparent_colour_is_white(tmp_path, kind, mode, clear):
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((250, 250, 250), (0, 0, 4, 8))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    if mode == "P":
        black = image.getpixel((7, 0))
        clear = black if clear == "number" else bytes(0 if i == black else 255 for i in range(2))
    seen = rgb_of(image, tmp_path, kind, transparency=clear)
    assert seen[0, 7].tolist() == [255, 255, 255]
    assert seen[0, 0].tolist() == [250, 250, 250]


def test_a_drawing_that_white_would_hide_is_refused(tmp_path):
    white = np.full_like(GREY, 255)
    with pytest.raises(KdrunError, match=r"x.png is white on a transparent ground.*put another colour behind it"):
        rgb_of(Image.fromarray(np.dstack([white, white, white, GREY]), "RGBA"), tmp_path, "png")
    assert rgb_of(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), tmp_path, "png").min() == 255  # an empty one is just white


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "La", "RGBa", "PA"])
def test_other_modes_give_what_is_seen(mode):
    seen = Image.new("RGB", (4, 4), (255, 255, 255))
    seen.paste((0, 0, 0), (0, 0, 2, 4))
    way = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    image = (seen.convert(way) if way else seen).convert(mode)
    got = np.array(pixels._rgb(image)).astype(int)
    assert np.abs(got - np.array(seen)).max() <= 1


def test_the_first_of_several_images_is_used_and_that_is_said(tmp_path):
    root = tmp_path / "images"
    tree(root, Image.fromarray, "tif", save_all=True, append_images=[Image.new("L", (8, 8), 255)] * 2)
    dataset = loaded(root)
    assert dataset.train.images.max() < 255
    assert dataset.notes == [f"{root}/train/a/0.tif holds 3 images: only the first image of such a file is used"]


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.kron(GREY // 200 * 255, np.ones((8, 8), np.uint8)))
    image.save(tmp_path / "x.jpg", exif=exif, quality=100)
    assert np.abs(np.array(pixels.rgb(str(tmp_path / "x.jpg")))[..., 0].astype(int) - np.array(image)).max() < 9


@pytest.mark.filterwarnings("ignore")  # Pillow's, on broken files
@pytest.mark.parametrize("kind", ["png", "tif", "gif", "webp", "jpg", "bmp"])
def test_whatever_is_broken_is_named_in_one_line(tmp_path, kind):
    buffer = BytesIO()
    Image.fromarray(COLOUR).save(buffer, {"tif": "tiff", "jpg": "jpeg"}.get(kind, kind))
    whole, random = buffer.getvalue(), np.random.default_rng(0)
    path = tmp_path / f"x.{kind}"
    contents = [b"", b"text", whole[: len(whole) // 2], *(spoiled(whole, random) for _ in range(60))]
    lines = [refusal(path, content) for content in contents]
    assert all(lines[:2])
    assert all(str(path) in line and "\n" not in line for line in lines if line is not None)


def refusal(path: Path, content: bytes) -> str | None:
    """What is said of a file with this content; None where it can still be read."""
    path.write_bytes(content)
    pixels.read_anew(content)
    try:
        pixels.rgb(str(path))
    except KdrunError as error:
        return str(error)
    return None


def spoiled(content: bytes, random: np.random.Generator) -> bytes:
    values = np.frombuffer(content, np.uint8).copy()
    values[random.integers(0, len(values), 3)] = random.integers(0, 256, 3)
    return values.tobytes()


# ---- the whole folder


def test_16_bits_and_alpha_alone_are_learned_as_8_bits_are(tmp_path):
    eight = loaded(tree(tmp_path / "u8", Image.fromarray))
    wide = loaded(tree(tmp_path / "u16", lambda x: Image.fromarray(x.astype(np.uint16) * 257)))
    assert np.array_equal(eight.train.images, wide.train.images)
    nothing = np.zeros((8, 8), np.uint8)
    ink = loaded(tree(tmp_path / "rgba", lambda x: Image.fromarray(np.dstack([nothing, nothing, nothing, x]), "RGBA")))
    assert np.array_equal(255 - eight.train.images.numpy(), ink.train.images.numpy())
    assert eight.notes == wide.notes == ink.notes == []


def test_a_flat_channel_and_few_levels_are_told(tmp_path):
    flat = loaded(tree(tmp_path / "flat", lambda x: Image.fromarray(np.dstack([x, 0 * x, 0 * x + 7]))))
    assert flat.std[1:] == [1 / 255] * 2
    assert len(flat.notes) == 1
    assert "one level nearly everywhere (of 255: green 0, blue 7)" in flat.notes[0]
    assert loaded(tmp_path / "flat", mean=[0.5] * 3, std=[0.2] * 3).notes == []  # nothing is computed
    twelve = loaded(tree(tmp_path / "twelve", lambda x: Image.fromarray(x.astype(np.uint16) * 16)))
    assert "only use levels 0 to 13 of 0 to 255: are they masks, or 12 bits saved as 16?" in twelve.notes[0]


def test_a_cached_mean_gives_the_same_notes(tmp_path):
    root = tree(tmp_path / "flat", lambda x: Image.fromarray(0 * x))
    assert loaded(root).notes == loaded(root).notes != []


def test_folders_that_are_read_anew_are_other_data_sets(tmp_path, monkeypatch):
    """Runs trained on clipped or opaque pixels are no answer any more; ordinary folders keep their checksum."""
    same = {
        "grey": Image.fromarray,
        "colour": lambda x: Image.fromarray(np.dstack([x] * 3)),
        "opaque": lambda x: Image.fromarray(np.dstack([x, x, x, 0 * x + 255]), "RGBA"),
        "palette": lambda x: Image.fromarray(x).quantize(8),
    }
    other = {
        "wide": lambda x: Image.fromarray(x.astype(np.uint16) * 257),
        "alpha": lambda x: Image.fromarray(np.dstack([x, x, x, x]), "RGBA"),
    }
    roots = {name: tree(tmp_path / name, image) for name, image in {**same, **other}.items()}
    roots["floats"] = tree(tmp_path / "floats", lambda x: Image.fromarray((x / 255).astype(np.float32)), "tif")
    roots["jpeg"] = tree(tmp_path / "jpeg", Image.fromarray, "jpg")
    now = {name: data.checksum(config(root), str(tmp_path / "now")) for name, root in roots.items()}
    monkeypatch.setattr("kdrun.tasks.image.data.tree.read_anew", lambda _: False)
    before = {name: data.checksum(config(root), str(tmp_path / "before")) for name, root in roots.items()}
    assert {name for name in roots if now[name] != before[name]} == {*other, "floats"}


def test_the_own_size_of_images_is_the_same_as_none(tmp_path):
    root, out = tree(tmp_path / "images", Image.fromarray), str(tmp_path / "out")
    assert [data.own_size(config(root, size=size), out) for size in (8, None, 16)] == [None, None, 16]
    Image.new("L", (9, 8)).save(root / "test" / "b" / "0.png")  # null refuses it, 8 resizes it: two things
    assert data.own_size(config(root, size=8), out) == 8
    for name, side in (("digits", 8), ("cifar10", 32), ("cifar100", 32)):
        cfg = SimpleNamespace(**{**SETTINGS, "name": name, "size": side})
        assert data.own_size(cfg, out) is None


def test_reading_leaves_ordinary_images_as_pillow_converts_them(tmp_path):
    for mode in ("L", "RGB", "P", "1", "CMYK"):
        image = Image.fromarray(COLOUR).convert(mode)
        image.save(tmp_path / "x.tif")
        with Image.open(tmp_path / "x.tif") as opened:
            expected = np.array(opened.convert("RGB"))
        seen = image_folder.read(str(tmp_path / "x.tif"), 8, False).permute(1, 2, 0).numpy()
        assert np.array_equal(seen, expected)
