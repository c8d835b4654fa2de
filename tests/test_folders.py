"""How people's folders of images are read: names of every kind, links, what lies beside, and settings that cannot be meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kdrun.errors import KdrunError
from kdrun.tasks.image import data
from kdrun.tasks.image.data.pixels import shown

SETTINGS = {"root": None, "holdout": 0, "size": None, "flip": True, "memory": "auto", "mean": None, "std": None}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
NFC, NFD = "caf\u00e9", "cafe\u0301"
LATIN = os.fsdecode(b"caf\xe9")  # how Python names what is no UTF-8


def kdrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "kdrun", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def paint(folder: Path, names=("0.png", "1.png"), bright: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        noise = np.random.default_rng([i, bright]).integers(0, 120, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise + np.uint8(bright)).save(folder / name, "png")
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    for part in ("train", "test"):
        paint(tmp_path / "images" / part / "cat")
        paint(tmp_path / "images" / part / "dog", bright=130)
    return tmp_path / "images"


def checksum(root: Path) -> str:
    return data.checksum(
        SimpleNamespace(name="image_folder", **{**SETTINGS, "root": str(root)}), str(root.parent / "out")
    )


def load(root: Path, **changes):
    cfg = SimpleNamespace(name="image_folder", **{**SETTINGS, "root": str(root), **changes})
    return data.load(cfg, str(root.parent / "out"))


# ---- names


@pytest.mark.parametrize(("train", "test"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_one_name_in_two_unicode_forms_is_one_class(root, train, test):
    paint(root / "train" / train)
    paint(root / "test" / test)
    dataset = load(root)
    assert set(dataset.classes) == {NFC, "cat", "dog"}
    assert dataset.test.labels.bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize("part", ["train", "test"])
def test_two_folders_of_one_class_are_an_error(root, part):
    paint(root / "train" / NFC)
    paint(root / part / NFC)
    paint(root / part / NFD)
    with pytest.raises(
        KdrunError, match=rf"images/{part} has two folders for class {NFC}.*u0301.*put their images into one"
    ):
        checksum(root)


def test_names_that_are_no_utf_8_and_odd_ones_are_read(root):
    for part in ("train", "test"):
        paint(root / part / LATIN, names=(LATIN + ".png", "two words.PNG", "line\nbreak.png", "no suffix"))
        paint(root / part / "a\nb")
    dataset = load(root, memory="never")
    assert set(dataset.classes) == {"caf\\xe9", "a\\nb", "cat", "dog"}
    json.dumps(dataset.classes, ensure_ascii=False).encode()
    assert sum(len(images) for images in dataset.train.batches([dataset.train.index])) == 10
    (root / "train" / LATIN / (LATIN + ".png")).write_bytes(b"no image")
    with pytest.raises(KdrunError, match=r"train/caf\\xe9/caf\\xe9.png cannot be read as an image") as caught:
        load(root)
    str(caught.value).encode()


def test_shown_names_keep_what_people_write():
    for name in (NFC, "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u732b", "two words", "\U0001f431"):
        assert shown(name) == name
    assert shown(NFD) == NFC


@pytest.mark.slow
def test_a_run_on_names_of_every_kind_leaves_a_record(root):
    for part in ("train", "test"):
        paint(root / part / LATIN, bright=60)
    paint(root / "train" / NFC, bright=90)
    paint(root / "test" / NFD, bright=90)
    (root / "val").mkdir()
    arguments = [
        "dataset=image_folder",
        f"dataset.root={root}",
        "recipe=quick",
        "recipe.epochs=1",
        "recipe.batch_size=4",
    ]
    arguments += ["student=resnet8", "method=none", "engine.threads=1"]
    done = kdrun(root.parent, *arguments)
    assert done.returncode == 0, done.stderr
    record = next((root.parent / "outputs").rglob("record.json"))
    assert set(json.loads(record.read_text())["dataset"]["classes"]) == {"caf\\xe9", NFC, "cat", "dog"}
    assert f"note     {root}/val is not used" in done.stdout
    assert "val is not used" in (record.parent / "log.txt").read_text()
    again = kdrun(root.parent, *arguments, "dataset.size=8")
    assert "already done" in again.stdout


# ---- what lies there


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "train/cat/9.png").symlink_to("gone.png"), r"cat/9.png is a broken link to gone.png"),
        (
            lambda r: (r / "train/cat/9.png").symlink_to("9.png"),
            r"cat/9.png is a broken link to 9.png \(Too many levels",
        ),
        (lambda r: (r / "train/cow").symlink_to("gone"), r"train/cow is a broken link to gone"),
        (lambda r: (r / "test/cow").symlink_to("cow"), r"test/cow is a broken link to cow"),
        (lambda r: os.mkfifo(r / "test/cat/9.png"), r"test/cat/9.png is neither a file nor a folder"),
        (lambda r: (r / "train/cat/more").symlink_to("../dog"), r"cat/more is a folder; images must lie directly in"),
        (lambda r: (r / "test/cow").mkdir(), r"class cow in .*/test is not in .*/train"),
        (lambda r: (paint(r / "train/cow"), (r / "test/cow").mkdir()), r"class folder .*test/cow is empty"),
        (lambda r: (r / "train/dog").rename(r / "dog"), r"train has one class folder \(cat\); two classes or more"),
    ],
)
def test_what_cannot_be_read_is_named(root, spoil, message):
    spoil(root)
    with pytest.raises(KdrunError, match=message):
        checksum(root)


def test_what_may_not_be_read_is_named(root, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("kdrun.tasks.image.data.tree.open", refuse, raising=False)
        with pytest.raises(KdrunError, match=r"train/cat/0.png cannot be read \(Permission denied\)"):
            checksum(root)
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(KdrunError, match=r"images/train cannot be listed \(Permission denied\)"):
        checksum(root)


def test_linked_class_folders_and_hidden_or_stray_files_are_fine(root):
    before = load(root)
    (root / "train/dog").rename(root.parent / "elsewhere")
    (root / "train/dog").symlink_to(root.parent / "elsewhere")
    (root / "train/cat/.DS_Store").write_bytes(b"x")
    (root / "train/README.txt").write_text("x")
    assert load(root).checksum == before.checksum


def test_unused_val_and_untested_classes_are_told(root):
    assert load(root).notes == []
    paint(root / "val/cat")
    paint(root / "train/cow", bright=60)
    notes = load(root).notes
    assert notes[0].startswith(f"{root}/val is not used, because there is test/")
    assert notes[1:] == [f"{root}/test has no image of cow"]


# ---- settings


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("digits", {"mean": [123.675, 116.28, 103.53]}, r"divide by 255: 'dataset.mean=\[0.485,0.456,0.406\]'"),
        ("cifar10", {"std": [58.395, 57.12, 57.375]}, r"divide by 255: 'dataset.std=\[0.229,0.224,0.225\]'"),
        ("digits", {"mean": [-0.1, 0.5, 0.5]}, r"dataset.mean=\[-0.1,0.5,0.5\] must be three numbers in \[0, 1\]"),
        ("digits", {"mean": [0.3, 0.3, float("nan")]}, r"dataset.mean=\[0.3,0.3,nan\] must be three numbers in"),
        ("digits", {"std": [0.3, 0.3, float("inf")]}, r"dataset.std=\[0.3,0.3,inf\] must be three numbers above 0"),
        ("digits", {"std": [0.3, 0.0, 0.3]}, r"dataset.std=\[0.3,0,0.3\] must be three numbers above 0"),
        ("digits", {"std": [1000, 1000, 1000]}, r"up to 1, one for each of red, green and blue; null computes them"),
        ("digits", {"mean": [0.305]}, r"as in 'dataset.mean=\[0.305,0.305,0.305\]'"),
        ("digits", {"mean": []}, r"dataset.mean=\[\] must be three numbers"),
        ("digits", {"root": "x"}, r"dataset.root=x: the digits are part of scikit-learn.*dataset=image_folder"),
        ("digits", {"size": 16}, r"dataset.size=16: the images of digits have 8 px"),
        ("cifar100", {"memory": "never"}, r"dataset.memory=never: cifar100 is always in memory"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_any_data(tmp_path, name, changes, message):
    cfg = SimpleNamespace(**{**SETTINGS, "name": name, **changes})
    for use in (data.checksum, data.own_size, data.load):
        with pytest.raises(KdrunError, match=message):
            use(cfg, str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_of_mean_and_std_the_one_that_is_null_is_computed(root):
    both = load(root)
    assert load(root, mean=[0.5, 0.5, 0.5]).std == both.std
    assert load(root, std=[0.5, 0.5, 0.5]).mean == both.mean
    assert load(root, mean=[0, 0, 0], std=[1, 1, 1]).mean == [0, 0, 0]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("dataset.mean=0.305", "dataset.mean must be three numbers|'dataset.mean=[0.305,0.305,0.305]'"),
        ("dataset=svhn", "no dataset 'svhn'|dataset=image_folder dataset.root=FOLDER with train/<class>/*"),
        (
            "dataset.mean=[123.675,116.28,103.53]",
            "dataset.mean=[123.675,116.28,103.53]|'dataset.mean=[0.485,0.456,0.406]'",
        ),
    ],
)
def test_the_command_says_it_in_one_line(tmp_path, argument, words):
    dataset = [] if argument.startswith("dataset=") else ["dataset=digits"]
    done = kdrun(tmp_path, *dataset, argument)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for part in words.split("|"):
        assert part in done.stderr
