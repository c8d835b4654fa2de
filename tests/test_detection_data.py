"""Images with boxes: what is read, what is refused, and that every batch can be made again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_data import COUNTS, config, tiny

from kdrun.errors import KdrunError
from kdrun.tasks import task_of
from kdrun.tasks.detection.data import labels, layout
from kdrun.tasks.detection.data.loader import Loader, first_of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("boxes") / "data")


@pytest.fixture
def file(source: Path, tmp_path: Path) -> Path:
    """A data yaml that a test may spoil."""
    shutil.copytree(source.parent, tmp_path / "data")
    return tmp_path / "data" / source.name


def cfg(file: Path, *overrides: str) -> Any:
    return config(f"dataset.data={file}", f"outputs={file.parent.parent / 'out'}", "method=none", *overrides)


def load(file: Path, *overrides: str) -> Any:
    config = cfg(file, *overrides)
    return task_of(config).load(config.dataset, config.outputs)


def loader(file: Path, seed: int = 0, *overrides: str) -> Loader:
    config = cfg(file, *overrides)
    dataset = task_of(config).load(config.dataset, config.outputs)
    return Loader(dataset.train, dataset, batch_size=4, device=torch.device("cpu"), recipe=config.recipe, seed=seed)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(value, b[key]) for key, value in a.items())


def test_splits_and_what_reports(file: Path) -> None:
    dataset = load(file)
    assert {part: len(getattr(dataset, part)) for part in ("train", "holdout", "test")} == {
        "train": COUNTS["train"], "holdout": COUNTS["val"], "test": COUNTS["test"],
    }  # fmt: skip
    assert dataset.classes == ["circle", "square", "triangle"]
    assert dataset.notes == []
    of_val = load(file, "dataset.test=val")
    assert (len(of_val.test), of_val.holdout) == (COUNTS["val"], None)
    assert of_val.notes == ["dataset.test=val: val reports, and no split is left to choose an epoch on"]


def test_without_a_test_split_val_reports_and_says_so(file: Path) -> None:
    file.write_text(file.read_text().replace("test: images/test\n", ""))
    dataset = load(file)
    assert (len(dataset.test), dataset.holdout, dataset.reports) == (COUNTS["val"], None, "val")
    assert dataset.notes == ["shapes.yaml has no test split: val reports, and no split is left to choose an epoch on"]


def test_the_checksum_is_that_of_images_labels_and_classes(file: Path, source: Path, tmp_path: Path) -> None:
    def checksum(of: Path) -> str:
        config = cfg(of)
        return task_of(config).checksum(config.dataset, str(tmp_path / "cache"))

    first = checksum(file)
    assert first == checksum(source)  # another folder, the same content
    label = next((file.parent / "labels" / "train").glob("*.txt"))
    label.write_text(label.read_text() + "0 0.5 0.5 0.1 0.1\n")
    second = checksum(file)
    file.write_text(file.read_text().replace("circle", "disc"))
    assert len({first, second, checksum(file)}) == 3


def test_an_epoch_can_be_made_again(file: Path) -> None:
    one, other = loader(file), loader(file)
    first, again, later = (list(batches) for batches in (one.epoch(0), other.epoch(0), one.epoch(1)))
    assert [len(batch["index"]) for batch in first] == [4, 4, 2]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["input"], later[0]["input"])
    assert all(same(a, b) for a, b in zip(list(one.epoch(0)), first, strict=True))  # also after another epoch
    assert torch.equal(one.view(first[1]["index"], 0), first[1]["input"])
    assert not torch.equal(next(iter(loader(file, 1).epoch(0)))["index"], first[0]["index"])


def test_the_last_epochs_have_no_mosaic(file: Path) -> None:
    settings = ("recipe.epochs=3", "recipe.close_mosaic=1", "recipe.translate=0", "recipe.scale=0")
    batches = loader(file, 0, *settings)
    whole = sum(int(count) for count in batches.split.labels)
    boxes = [sum(len(batch["cls"]) for batch in batches.epoch(epoch)) for epoch in range(3)]
    assert boxes[2] == whole
    assert boxes[0] != whole


def test_other_random_numbers_are_left_alone(file: Path) -> None:
    import random

    import numpy as np

    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1), np.random.seed(1)
    list(loader(file).epoch(0))
    assert (random.random(), np.random.random()) == expected


def test_the_first_images_of_a_batch_keep_their_boxes(file: Path) -> None:
    batch = next(iter(loader(file).epoch(0)))
    few = first_of(batch, 2)
    assert len(few["input"]) == len(few["index"]) == 2
    assert set(few["batch_idx"].tolist()) <= {0.0, 1.0}
    assert len(few["cls"]) == len(few["bboxes"]) == int((batch["batch_idx"] < 2).sum())


def test_a_last_batch_of_one_image_joins_the_one_before(file: Path) -> None:
    assert [len(batch["index"]) for batch in loader(file, 0, "recipe.batch_size=4").epoch(0)] == [4, 4, 2]
    config = cfg(file)
    dataset = task_of(config).load(config.dataset, config.outputs)
    batches = Loader(dataset.train, dataset, batch_size=3, device=torch.device("cpu"), recipe=config.recipe)
    assert [len(batch["index"]) for batch in batches.epoch(0)] == [3, 3, 4]
    assert batches.smallest == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.2\n", "line 1 has 4 numbers; it must have 5: class centre_x centre_y width height"),
        ("0 0.5 0.5 0.2 0.2\nround 0.5 0.5 0.2 0.2\n", "line 2: 'round 0.5 0.5 0.2 0.2' is no line of numbers"),
        ("7 0.5 0.5 0.2 0.2\n", "line 1 has class 7; the classes of the data yaml are 0 to 1 (a, b)"),
        ("0.5 0.5 0.5 0.2 0.2\n", "has class 0.5; the classes"),
        (
            "0 320 0.5 0.2 0.2\n",
            "line 1 has 320; coordinates are shares of the image, from 0 to 1 (pixels must be divided",
        ),
        ("0 0.5 0.5 0 0.2\n", "has a box of width 0 and height 0.2; both must be above 0"),
        ("0 0.5 0.5 nan 0.2\n", "has nan; coordinates"),
    ],
)
def test_a_malformed_label_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "0001.txt"
    file.write_text(text)
    with pytest.raises(KdrunError) as error:
        labels.read(file, ["a", "b"])
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)


def test_labels_that_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "0001.txt"
    assert len(labels.read(file, ["a"]).boxes) == 0  # no file: background
    file.write_text("\n")
    assert len(labels.read(file, ["a"]).boxes) == 0
    file.write_text("0 0.1 0.1 0.3 0.1 0.3 0.5\n0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n")  # a polygon, and a line twice
    boxes = labels.read(file, ["a"])
    assert boxes.boxes.ravel().tolist() == pytest.approx([0.2, 0.3, 0.2, 0.4, 0.5, 0.5, 0.2, 0.2])
    assert boxes.doubled == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda text: text.replace("train: images/train", "trian: images/train"),
            "has no key 'train'. Did you mean trian?",
        ),
        (
            lambda text: text.replace("val: images/val", "val: images/vall"),
            "val is 'images/vall', and there is no such folder",
        ),
        (lambda text: "path: nowhere\n" + text, "path is 'nowhere', and there is no such folder"),
        (lambda text: text.split("names:")[0], "names is None; give the classes"),
        (lambda text: text.replace("  1: square\n", ""), "names has the numbers [0, 2]; they must be 0, 1, 2"),
        (lambda text: text.replace("square", "circle"), "names has circle twice"),
        (lambda text: text + "nc: 5\n", "nc is 5, and names has 3 classes; remove nc"),
        (lambda text: text.replace("test: images/test", "test: images/train"), "10 images of test are in train, too"),
        (lambda text: "names: [a: b\n", "cannot be read as a data yaml"),
        (lambda text: "[1, 2]\n", "is no data yaml: it must hold train, val and names"),
        (lambda text: text.replace("images/val", "labels/val"), "no image is there (*.avif, bmp"),
    ],
)
def test_a_wrong_data_yaml_is_one_line(file: Path, spoil: Any, message: str) -> None:
    file.write_text(spoil(file.read_text()))
    with pytest.raises(KdrunError) as error:
        layout.read(str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_of_images_and_several_folders(file: Path) -> None:
    images = sorted((file.parent / "images" / "val").glob("*.jpg"))
    (file.parent / "val.txt").write_text("".join(f"./images/val/{image.name}\n" for image in images[:3]))
    file.write_text(file.read_text().replace("val: images/val", "val: [val.txt, images/val]"))
    assert layout.read(str(file)).images["val"] == images


@pytest.mark.parametrize("broken", [b"", b"\xff\xd8\xff\xe0 no image"])
def test_a_broken_image_is_named(file: Path, broken: bytes) -> None:
    image = next((file.parent / "images" / "test").glob("*.jpg"))
    image.write_bytes(broken)
    with pytest.raises(KdrunError, match=f"{image} cannot be read as an image"):
        load(file)


def test_an_image_that_vanishes_is_named(file: Path) -> None:
    batches = loader(file, 0, "dataset.memory=never")
    shutil.rmtree(file.parent / "images" / "train")
    with pytest.raises(KdrunError, match=r"images/train/\d+\.jpg cannot be read: was it moved"):
        list(batches.epoch(0))


def test_labels_that_are_all_missing(file: Path) -> None:
    shutil.rmtree(file.parent / "labels" / "train")
    with pytest.raises(KdrunError, match="no image of train has a box"):
        load(file)


def test_background_is_counted(file: Path) -> None:
    next((file.parent / "labels" / "train").glob("*.txt")).write_text("")
    assert load(file).notes == ["1 of the 10 images of train have no box: they are background"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.imgsz=100", "dataset.imgsz=100 is no multiple of 32; say dataset.imgsz=96, or 128"),
        ("dataset.holdout=3", "dataset.holdout=3 has no effect: the data yaml's val chooses"),
        ("dataset.root=somewhere", "dataset.root=somewhere has no effect"),
    ],
)
def test_settings_that_have_no_effect(file: Path, override: str, message: str) -> None:
    with pytest.raises(KdrunError) as error:
        load(file, override)
    assert message in str(error.value)
