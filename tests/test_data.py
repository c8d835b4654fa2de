"""The data layer: what a batch holds, that views can be replayed, and what users are told when something is wrong."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from kdrun.errors import KdrunError
from kdrun.tasks import draws
from kdrun.tasks.draws import bits
from kdrun.tasks.image import data
from kdrun.tasks.image.data import cifar, image_folder, tree
from kdrun.tasks.image.data.augment import Augment, augment
from kdrun.tasks.image.data.loader import Loader

REPOSITORY = Path(__file__).parents[1]
SETTINGS = {"root": None, "holdout": 0, "size": None, "flip": True, "memory": "auto", "mean": None, "std": None}


def config(name: str, **changes) -> SimpleNamespace:
    return SimpleNamespace(name=name, **{**SETTINGS, **changes})


def loader(dataset, *, split="train", **changes) -> Loader:
    settings = {"batch_size": 5, "device": "cpu", "augment": Augment("reflect", 2, True), "channels_last": False}
    return Loader(getattr(dataset, split), dataset, **{**settings, "workers": 0, **changes})


def paint(path: Path, size: tuple[int, int], seed: int | list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """12 cats, 8 dogs and 4 newts of 8 px to train on, two of each to test on."""
    root = tmp_path / "images"
    for part, counts in (("train", (12, 8, 4)), ("test", (2, 2, 2))):
        for label, (name, count) in enumerate(zip(("cat", "dog", "newt"), counts, strict=True)):
            for i in range(count):
                paint(root / part / name / f"{i:02}.png", (8, 8), seed=[part == "test", label, i])
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"hidden")
    (root / "train" / ".hidden").mkdir()
    return root


@pytest.fixture
def load(folder, tmp_path):
    """Loads `folder` under changed settings."""
    return lambda **changes: data.load(
        config("image_folder", **{"root": str(folder), **changes}), str(tmp_path / "out")
    )


# ---- bits and augment


def splitmix(seed: int, epoch: int, index: int, draw: int) -> int:
    """bits() for one index in unsigned arithmetic."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(z):
        z &= mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    key = mix(mix(seed + (epoch + 1) * golden) + (draw + 1) * golden)
    return mix(index * golden + key)


def test_bits_are_splitmix_in_any_order_and_batch():
    index = torch.tensor([0, 1, 49_999, 7, 123_456_789_012])
    for seed, epoch, draw in ((0, 0, 0), (2**63 - 1, 239, 2)):
        expected = [splitmix(seed, epoch, i, draw) for i in index.tolist()]
        words = bits(seed, epoch, index, draw)
        assert [word % 2**64 for word in words.tolist()] == expected
        assert torch.equal(bits(seed, epoch, index[[3, 1]], draw), words[[3, 1]])


def test_bits_are_uniform_and_independent_of_each_other():
    words = torch.stack([bits(0, epoch, torch.arange(20_000), draw) for epoch in (0, 1) for draw in (0, 1)])
    ones = torch.stack([(words >> bit) & 1 for bit in range(64)]).flatten(1).float()
    assert (ones.mean(1) - 0.5).abs().max() < 0.01
    streams = ((words & 0xFFFF).float() / 0xFFFF).corrcoef() - torch.eye(4)
    assert streams.abs().max() < 0.03


@pytest.mark.parametrize("crop", ["zero", "reflect", "none"])
@pytest.mark.parametrize("flip", [True, False])
def test_augment_equals_a_loop_over_images(crop, flip):
    images = torch.randint(0, 256, (40, 3, 9, 7), dtype=torch.uint8)
    index = torch.arange(100, 140)
    got = augment(images, index, seed=3, epoch=5, crop=crop, padding=2, flip=flip)
    for image, word, view in zip(images, bits(3, 5, index, 0).tolist(), got, strict=True):
        top, left, mirrored = (word & 0xFFFFFF) % 5, (word >> 24 & 0xFFFFFF) % 5, word >> 48 & 1
        if crop != "none":
            mode = "constant" if crop == "zero" else "reflect"
            image = F.pad(image.float(), (2,) * 4, mode=mode)[:, top : top + 9, left : left + 7].byte()
        assert torch.equal(view, image.flip(-1) if flip and mirrored else image)


def test_augment_uses_every_offset_and_flips_half():
    n, side, padding = 4000, 4, 1
    images = torch.arange(side * side, dtype=torch.uint8).view(1, 1, side, side).expand(n, 3, -1, -1)
    views = augment(images, torch.arange(n), seed=0, epoch=0, crop="zero", padding=padding, flip=True)
    _, counts = views.flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 2 * (2 * padding + 1) ** 2
    assert (counts / n - 1 / 18).abs().max() < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mirror", 2, True), "crop=mirror is unknown.*none, reflect, zero"),
        (("zero", -1, True), "padding=-1 must be 0"),
    ],
)
def test_augment_settings_are_checked(arguments, message):
    with pytest.raises(KdrunError, match=message):
        Augment(*arguments)


# ---- loader


@pytest.mark.parametrize("changes", [{}, {"size": 6}, {"holdout": 5}])
def test_streamed_images_equal_those_in_memory(load, changes):
    memory, streamed = load(memory="always", **changes), load(memory="never", **changes)
    assert streamed.train.images is None
    assert (memory.mean, memory.std) == (streamed.mean, streamed.std)
    here, there = loader(memory), loader(streamed, workers=1)
    for mine, theirs in zip([*here.epoch(3), *here.batches()], [*there.epoch(3), *there.batches()], strict=True):
        assert mine.keys() == theirs.keys() == {"input", "label", "index"}
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    index = memory.train.index[[4, 0, 9]]
    assert torch.equal(here.view(index, 3), there.view(index, 3))


def test_an_epoch_has_each_row_once_and_can_be_replayed(load):
    dataset = load(holdout=4)
    training = loader(dataset, channels_last=True)
    batches = list(training.epoch(1))
    assert len(training) == len(batches) == 4
    assert [len(batch["label"]) for batch in batches] == [5, 5, 5, 5]
    index = torch.cat([batch["index"] for batch in batches])
    assert index.tolist() != dataset.train.index.tolist()
    assert torch.equal(index.sort().values, dataset.train.index)
    for batch in batches:
        assert batch["input"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(training.view(batch["index"], 1), batch["input"])
        assert not torch.equal(training.view(batch["index"], 2), batch["input"])
    with pytest.raises(IndexError):
        training.view(dataset.holdout.index[:1], 1)


def test_order_and_views_depend_on_seed_and_epoch_alone(load):
    dataset = load()
    first = torch.cat([batch["input"] for batch in loader(dataset).epoch(0)])
    torch.rand(3)
    again = torch.cat([batch["input"] for batch in loader(dataset, batch_size=7).epoch(0)])
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat([batch["input"] for batch in loader(dataset).epoch(1)]))
    assert not torch.equal(first, torch.cat([batch["input"] for batch in loader(dataset, seed=1).epoch(0)]))


def test_streaming_leaves_the_global_generator_alone(load):
    state = torch.random.get_rng_state()
    list(loader(load(memory="never"), workers=1).epoch(0))
    assert torch.equal(state, torch.random.get_rng_state())


def test_inputs_are_normalised_as_torchvision_does(load):
    from torchvision.transforms import Compose, Normalize, ToTensor

    dataset = load(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.1])
    transform = Compose([ToTensor(), Normalize(dataset.mean, dataset.std)])
    expected = torch.stack([transform(image.permute(1, 2, 0).numpy()) for image in dataset.test.images])
    got = torch.cat([batch["input"] for batch in loader(dataset, split="test", augment=None, batch_size=4).batches()])
    assert torch.equal(got, expected)


def test_a_dataset_that_must_not_be_flipped_never_is(tmp_path):
    digits = data.load(config("digits", flip=False), str(tmp_path))
    training = loader(digits, batch_size=1200, augment=Augment("none", 0, True))
    batch = next(training.epoch(0))
    assert torch.equal(batch["input"], training._prepare(digits.train.images[batch["index"]], batch["index"], None))


def test_limit_stops_early(load):
    training = loader(load(), limit=2)
    assert len(training) == len(list(training.epoch(0))) == len(list(training.batches())) == 2


def test_loader_errors(load):
    dataset = load()
    with pytest.raises(KdrunError, match=r"batch size 512 is above the 24 training images; recipe.batch_size=24"):
        loader(dataset, batch_size=512)
    with pytest.raises(KdrunError, match="batch size 512 is above"):
        loader(dataset, batch_size=512, augment=None).epoch(0)
    assert len(list(loader(dataset, split="test", batch_size=512, augment=None).batches())) == 1
    with pytest.raises(KdrunError, match="batch size 0 must be 1 or more"):
        loader(dataset, batch_size=0)
    with pytest.raises(KdrunError, match="padding=8 is too large for crop=reflect in 8 px images: use at most 7"):
        loader(dataset, augment=Augment("reflect", 8, True))


# ---- splits


def test_stratified_keeps_shares_and_ignores_the_generator():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 21)[torch.randperm(101)]
    rows = draws.stratified(labels, 20)
    assert labels[rows].bincount().tolist() == [10, 6, 4]  # 9.9, 5.9, 4.2
    torch.manual_seed(1)
    assert torch.equal(draws.stratified(labels, 20), rows)
    assert not torch.equal(draws.stratified(labels, 20, seed=1), rows)
    assert torch.equal(draws.stratified(torch.tensor([0, 1] * 5), 4), torch.tensor([0, 1, 2, 5]))  # as ever


def test_holdout_is_stratified_disjoint_and_keeps_row_numbers(load):
    whole, dataset = load(), load(holdout=6)
    assert dataset.holdout.labels.bincount().tolist() == [3, 2, 1]
    assert torch.equal(torch.cat([dataset.train.index, dataset.holdout.index]).sort().values, torch.arange(24))
    for split in (dataset.train, dataset.holdout):
        assert torch.equal(split.images, whole.train.images[split.index])
        assert torch.equal(split.labels, whole.train.labels[split.index])
    assert whole.holdout is None
    assert whole.mean != dataset.mean  # of the rows that are trained on


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (-1, r"dataset.holdout=-1 must lie between 0 and 23"),
        (24, r"dataset.holdout=24 must lie between 0 and 23"),
        (23, r"dataset.holdout=23 leaves no training images of class (dog|newt)"),
    ],
)
def test_holdout_errors(load, holdout, message):
    with pytest.raises(KdrunError, match=message):
        load(holdout=holdout)


def test_mean_and_std_are_those_of_the_training_pixels(load):
    dataset = load()
    pixels = dataset.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(dataset.mean).double(), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(dataset.std).double(), pixels.std((0, 2, 3), correction=0))
    assert load(mean=[0.1, 0.2, 0.3]).std == dataset.std
    with pytest.raises(KdrunError, match=r"dataset.mean=\[0.5\] must be three numbers"):
        load(mean=[0.5])
    with pytest.raises(KdrunError, match=r"dataset.std=\[1,0,1\] must be three numbers above 0"):
        load(std=[1, 0, 1])


# ---- sources


def test_digits(tmp_path):
    digits = data.load(config("digits"), str(tmp_path))
    assert (len(digits.train), len(digits.test), digits.size, len(digits.classes)) == (1200, 597, 8, 10)
    assert digits.train.images.shape == (1200, 3, 8, 8)
    assert digits.train.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    assert (digits.train.labels.bincount() / digits.test.labels.bincount() - 1200 / 597).abs().max() < 0.06
    assert digits.checksum == data.checksum(config("digits"), str(tmp_path))
    pixels = {tuple(row) for row in digits.train.images.flatten(1).tolist()}
    assert not pixels & {tuple(row) for row in digits.test.images.flatten(1).tolist()}


def test_folder(load, folder):
    dataset = load()
    assert (dataset.classes, dataset.size, len(dataset.train), len(dataset.test)) == (["cat", "dog", "newt"], 8, 24, 6)
    assert dataset.train.labels.bincount().tolist() == [12, 8, 4]
    first = np.array(Image.open(folder / "train" / "cat" / "00.png"))
    assert np.array_equal(dataset.train.images[0].permute(1, 2, 0).numpy(), first)
    (folder / "test").rename(folder / "val")
    assert torch.equal(load().test.images, dataset.test.images)


@pytest.mark.parametrize("size", [(40, 25), (25, 40), (33, 33), (16, 16), (9, 300)])
def test_images_are_resized_as_torchvision_does(tmp_path, size):
    from torchvision.transforms import v2

    paint(tmp_path / "x.png", size, 0)
    image = Image.open(tmp_path / "x.png")
    expected = np.array(v2.CenterCrop(16)(v2.Resize(16)(image)))
    assert np.array_equal(image_folder.read(str(tmp_path / "x.png"), 16, True).permute(1, 2, 0).numpy(), expected)


def test_grey_and_transparent_images_become_rgb(load, folder):
    Image.new("L", (8, 8), 7).save(folder / "train" / "cat" / "00.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(folder / "train" / "cat" / "01.png")
    assert load().train.images[:2, :, 0, 0].tolist() == [[7, 7, 7], [255, 255, 255]]


@pytest.mark.parametrize("memory", ["always", "never"])
def test_broken_and_odd_images_are_named(load, folder, memory):
    def use():
        return list(loader(load(memory=memory, mean=[0.5] * 3, std=[0.5] * 3), workers=1).epoch(0))

    path = folder / "train" / "dog" / "03.png"
    paint(path, (10, 8), 0)
    with pytest.raises(
        KdrunError, match=r"dog/03.png is 10 x 8 px, the first image is 8 x 8: dataset.size=8 resizes all"
    ):
        use()
    path.write_bytes(b"not an image")
    with pytest.raises(KdrunError, match=r"dog/03.png cannot be read as an image") as caught:
        use()
    assert "\n" not in str(caught.value)
    paint(folder / "train" / "cat" / "00.png", (10, 8), 0)
    with pytest.raises(KdrunError, match=r"cat/00.png is 10 x 8 px, not square: dataset.size=32"):
        use()


def test_a_mixed_folder_is_an_error_whatever_was_cached_before(load, folder):
    paint(folder / "train" / "dog" / "03.png", (10, 8), 0)
    assert load(size=8).size == 8
    with pytest.raises(KdrunError, match=r"dog/03.png is 10 x 8 px"):
        load()


def remove(path: Path) -> None:
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() else child.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: remove(root), r"images is not a folder; it must hold train/<class>/\* and test/<class>/\*"),
        (lambda root: remove(root / "test"), r"has no test or val folder"),
        (lambda root: remove(root / "train"), r"has no train folder"),
        (lambda root: (root / "test" / "newts").mkdir(), r"class newts in .* is not in .*/train. Did you mean newt\?"),
        (lambda root: (root / "train" / "eft").mkdir(), r"class folder .*train/eft is empty"),
        (lambda root: (root / "train" / "cat" / "more").mkdir(), r"cat/more is a folder; images must lie directly in"),
        (lambda root: [remove(root / "train" / c) for c in ("cat", "dog", "newt")], r"train has no class folders"),
        (lambda root: [remove(root / "test" / c) for c in ("cat", "dog", "newt")], r"test has no images"),
    ],
)
def test_folder_errors_come_with_the_checksum(folder, tmp_path, spoil, message):
    spoil(folder)
    with pytest.raises(KdrunError, match=message):
        data.checksum(config("image_folder", root=str(folder)), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("image_folder", {}, r"dataset.root is not set: image_folder needs dataset.root=FOLDER with train/<class>"),
        ("image_folder", {"size": 0}, r"dataset.size=0 must be a side in px"),
        ("digits", {"size": 16}, r"dataset.size=16: the images of digits have 8 px"),
        ("cifar10", {"memory": "never"}, r"dataset.memory=never: cifar10 is always in memory"),
    ],
)
def test_setting_errors(tmp_path, name, changes, message):
    with pytest.raises(KdrunError, match=message):
        data.load(config(name, **changes), str(tmp_path))


def test_memory_auto_streams_what_does_not_fit(load, monkeypatch):
    needed = 30 * 3 * 8 * 8
    monkeypatch.setattr(image_folder, "_available_memory", lambda: 4 * needed)
    assert load().train.images is not None
    monkeypatch.setattr(image_folder, "_available_memory", lambda: 4 * needed - 1)
    assert load().train.images is None


def test_checksum_sees_names_and_bytes_but_not_times(folder, tmp_path):
    def digest(root=folder):
        return data.checksum(config("image_folder", root=str(root)), str(tmp_path / "out"))

    seen = [digest()]
    path = folder / "train" / "cat" / "03.png"
    os.utime(path, ns=(1, 1))
    (folder / "train" / "cat" / ".hidden").write_bytes(b"x")
    assert digest() == seen[0]
    bytes_before = path.read_bytes()
    path.write_bytes(bytes_before[:-1] + b"x")  # of the same length
    seen.append(digest())
    path.rename(path.with_name("99.png"))
    seen.append(digest())
    assert len(set(seen)) == 3
    path.with_name("99.png").rename(path)
    path.write_bytes(bytes_before)
    assert digest() == seen[0]
    folder.rename(tmp_path / "moved")
    assert digest(tmp_path / "moved") == seen[0]


def test_a_checksum_is_remembered(folder, tmp_path, monkeypatch):
    cfg = config("image_folder", root=str(folder))
    digest = data.checksum(cfg, str(tmp_path))
    monkeypatch.setattr(tree, "open", lambda *_, **__: pytest.fail("read again"), raising=False)
    assert data.checksum(cfg, str(tmp_path)) == digest
    next((tmp_path / "cache").iterdir()).write_text("cut sho")
    monkeypatch.undo()
    assert data.checksum(cfg, str(tmp_path)) == digest


def test_checksums_import_nothing_heavy(folder, tmp_path):
    code = f"""
import sys
from types import SimpleNamespace as N
from kdrun.tasks.image import data
for name in data.SOURCES:
    data.checksum(N(**{SETTINGS!r} | {{"name": name, "root": {str(folder)!r} * (name != "digits") or None}}), {str(tmp_path)!r})
print(sorted({{"torch", "torchvision", "sklearn", "numpy", "PIL"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_two_processes_may_decode_one_folder_at_once(folder, tmp_path):
    code = f"""
from types import SimpleNamespace
from kdrun.tasks.image import data
d = data.load(SimpleNamespace(name="image_folder", **{ {**SETTINGS, "root": str(folder)}!r}), {str(tmp_path / "out")!r})
print(int(d.train.images.long().sum()), int(d.test.images.long().sum()), d.mean)
"""

    def run(_):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert first == second != ""
    assert not list((tmp_path / "out" / "cache").glob("*.tmp"))


# ---- cifar


def test_cifar_checksum_needs_no_data(tmp_path):
    assert data.checksum(config("cifar10"), str(tmp_path)) == "md5:c58f30108f718f92721af3b95e74349a"
    assert not any(tmp_path.iterdir())


def test_cifar_offline_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("socket.getaddrinfo", refuse)  # urllib makes a URLError of it
    for name, title, archive in (("cifar10", "CIFAR-10", "cifar-10"), ("cifar100", "CIFAR-100", "cifar-100")):
        with pytest.raises(KdrunError) as caught:
            data.load(config(name), str(tmp_path))
        assert str(caught.value) == (
            f"{title} is not in {tmp_path}/data/{name} and could not be downloaded (no network). "
            f"Put {archive}-python.tar.gz there, or try kdrun experiment=quickstart, which needs no download."
        )


def test_cifar_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    images = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    batches = [*((name, 2 * i, 2 * i + 2) for i, (name, _) in enumerate(CIFAR10.train_list)), ("test_batch", 10, 20)]
    for name, start, stop in batches:
        content = {"data": images[start:stop].reshape(-1, 3072), "labels": [i % 10 for i in range(start, stop)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)

    dataset = data.load(config("cifar10", root=str(tmp_path), mean=[0.5] * 3, std=[0.2] * 3), "nowhere")
    assert np.array_equal(dataset.train.images.numpy(), images[:10])
    assert np.array_equal(dataset.test.images.numpy(), images[10:])
    assert dataset.train.labels.tolist() == dataset.test.index.tolist() == list(range(10))
    assert (dataset.mean, dataset.std, dataset.size) == ([0.5] * 3, [0.2] * 3, 32)


def test_cifar_archives_are_those_of_torchvision():
    from torchvision.datasets import CIFAR10, CIFAR100

    for source, (_, archive, md5) in zip((CIFAR10, CIFAR100), cifar.ARCHIVES.values(), strict=True):
        assert (archive, md5) == (source.filename, source.tgz_md5)


def test_dataset_files_have_exactly_these_keys():
    from omegaconf import OmegaConf

    for name in data.SOURCES:
        settings = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf" / "dataset" / f"{name}.yaml"))
        assert set(settings) == {"name", "label", *SETTINGS}
        assert settings["name"] == name
        assert settings["flip"] == (name != "digits")


def test_a_second_view_is_another_augmentation_that_can_be_replayed(tmp_path):
    """`input2` has its own crops and flips, and changes nothing in `input`; evaluation has one view."""
    dataset = data.load(config("digits"), str(tmp_path))
    one, two = loader(dataset, seed=3), loader(dataset, seed=3, two_views=True)
    for plain, both in zip(islice(one.epoch(2), 3), two.epoch(2), strict=False):
        assert "input2" not in plain
        assert both["input"].equal(plain["input"])
        assert not both["input2"].equal(both["input"])
        assert two.view(both["index"], 2).equal(both["input"])
        assert two.view(both["index"], 2, second=True).equal(both["input2"])
    assert "input2" not in next(iter(two.batches()))
