"""Pictures as people have them: bit depths, transparency, names, links; and settings that cannot be meant."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kdrun import data
from kdrun.data.decode import rgb
from kdrun.errors import KdrunError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def cfg(root: Path | None = None, **given) -> SimpleNamespace:
    values = {
        "size": None,
        "holdout": 0,
        "mean": None,
        "std": None,
        "flip": True,
        "memory": "auto",
        "name": "image_folder",
    }
    return SimpleNamespace(**{**values, "root": None if root is None else str(root), **given})


def tree(root: Path, classes: tuple[str, ...] = ("a", "b"), pixels: np.ndarray = GREY) -> Path:
    for part in ("train", "test"):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(np.roll(pixels, 5 * i + 40 * number)).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("16.png", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("16.tif", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("float.tif", Image.fromarray((GREY / 255).astype(np.float32))),
        ("l.png", Image.fromarray(GREY)),
        ("la.png", Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)]), "LA")),
        ("p.png", Image.fromarray(GREY).convert("P")),
    ],
)
def test_depths_are_scaled(tmp_path: Path, name: str, image: Image.Image) -> None:
    """The same picture in another depth gives the same pixels."""
    image.save(tmp_path / name)
    assert np.array_equal(np.asarray(rgb(str(tmp_path / name))), np.dstack([GREY] * 3))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_show_white(tmp_path: Path, mode: str) -> None:
    """A drawing in alpha alone is seen; a transparent colour of a palette or of a PNG's own chunk counts as well."""
    path = tmp_path / "x.png"
    if mode in ("RGBA", "LA"):
        black = [np.zeros_like(GREY)] * (3 if mode == "RGBA" else 1)
        Image.fromarray(np.dstack([*black, GREY]), mode).save(path)
        expected = 255 - GREY
    else:
        image = Image.fromarray(np.where(GREY > 99, 200, 10).astype(np.uint8)).convert(mode)
        dark = image.getpixel((0, 0))
        image.save(path, transparency=dark)
        expected = np.where(GREY > 99, 200, 255)
    assert np.abs(np.asarray(rgb(str(path)))[..., 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("far.tif", GREY.astype(np.float32)),
        ("nan.tif", np.full((4, 4), np.nan, np.float32)),
        ("int.tif", GREY.astype(np.int32)),
    ],
)
def test_unknown_scales_are_refused_by_name(tmp_path: Path, name: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(KdrunError, match=name):
        rgb(str(tmp_path / name))


def test_a_16_bit_folder_is_the_8_bit_one(tmp_path: Path) -> None:
    """Pixels, mean and standard deviation."""
    eight, sixteen = (
        data.load(cfg(tree(tmp_path / name, pixels=pixels)), str(tmp_path / "out"))
        for name, pixels in (("u8", GREY), ("u16", GREY.astype(np.uint16) * 257))
    )
    assert eight.train.images is not None
    assert sixteen.train.images is not None
    assert (eight.train.images == sixteen.train.images).all()
    assert (eight.mean, eight.std, eight.notes) == (sixteen.mean, sixteen.std, [])


def test_images_without_contrast_are_said(tmp_path: Path) -> None:
    dataset = data.load(cfg(tree(tmp_path / "x", pixels=np.full((8, 8), 7, np.uint8))), str(tmp_path / "out"))
    assert "hardly differ" in dataset.notes[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mean": [123.675, 116.28, 103.53]}, r"dataset.mean=\[0.485,0.456,0.406\]"),
        ({"std": [58.4, 57.1, 57.4]}, "Divide by 255"),
        ({"mean": [-0.1, 0.5, 0.5]}, "from 0 to 1"),
        ({"std": [0.5, 0.0, 0.5]}, "above 0"),
        ({"std": [0.5, float("nan"), 0.5]}, "above 0"),
        ({"mean": [0.5]}, "three numbers"),
    ],
)
def test_means_and_deviations_of_another_scale(tmp_path: Path, given: dict, words: str) -> None:
    with pytest.raises(KdrunError, match=words):
        data.load(cfg(tree(tmp_path / "x"), **given), str(tmp_path / "out"))


def test_a_class_written_in_two_forms_of_unicode_is_one(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = tree(tmp_path / "x", (apart, "b"))
    (root / "test" / apart).rename(root / "test" / composed)
    dataset = data.load(cfg(root), str(tmp_path / "out"))
    assert dataset.classes == ["b", composed]
    assert sorted(dataset.test.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    (root / "train" / composed).mkdir()
    with pytest.raises(KdrunError, match="two folders called café"):
        data.load(cfg(root), str(tmp_path / "out"))


def test_a_class_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """It is learned, and shown in a form that a record and a screen can hold."""
    try:
        dataset = data.load(cfg(tree(tmp_path / "x", ("a", os.fsdecode(b"b\xe9")))), str(tmp_path / "out"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    assert dataset.classes == ["a", r"b\xe9"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "x")
    (root / "train" / "a" / "gone.png").symlink_to("nowhere")
    with pytest.raises(KdrunError, match=r"gone.png is a broken link"):
        data.checksum(cfg(root), str(tmp_path / "out"))


def test_val_beside_test_is_said(tmp_path: Path) -> None:
    root = tree(tmp_path / "x")
    (root / "val").mkdir()
    assert "val/" in data.load(cfg(root), str(tmp_path / "out")).notes[0]


def test_one_class_is_no_task(tmp_path: Path) -> None:
    with pytest.raises(KdrunError, match="one class"):
        data.load(cfg(tree(tmp_path / "x", ("a",))), str(tmp_path / "out"))


def test_a_folder_given_to_a_dataset_that_reads_none(tmp_path: Path) -> None:
    with pytest.raises(KdrunError, match="image_folder"):
        data.load(cfg(tmp_path, name="digits"), str(tmp_path / "out"))


def test_a_size_that_changes_nothing_is_null(tmp_path: Path) -> None:
    """Both spellings are one run; a folder of unlike images keeps the size that was asked for."""
    root, out = tree(tmp_path / "x"), str(tmp_path / "out")
    for asked, settled in ((16, None), (8, 8), (None, None)):
        node = cfg(root, size=asked)
        data.settle_size(node, out)
        assert node.size == settled
    Image.fromarray(GREY[:8]).save(root / "test" / "b" / "other.png")
    node = cfg(root, size=16)
    data.settle_size(node, out)
    assert node.size == 16
    node = cfg(name="digits", size=8)
    data.settle_size(node, out)
    assert node.size is None
