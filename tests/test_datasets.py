"""Datasets that a function of the user's gives: dataset=import, plug-ins, and the examples of docs/data.md."""

from __future__ import annotations

import gzip
import os
import random
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kdrun.cli import run
from kdrun.config.registry import DATASETS, import_plugin
from kdrun.errors import KdrunError
from kdrun.tasks.image import data
from kdrun.tasks.image.data import imported
from kdrun.tasks.image.data.given import content_of

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
SHORT = ["recipe.epochs=1", "recipe.batch_size=32", "engine.threads=1"]
ALONE = ["method=none", "teacher=none", "student=resnet8", "recipe=quick", *SHORT]
DRAW = np.random.default_rng(0)
IMAGES, LABELS = DRAW.integers(0, 256, (64, 8, 8), dtype=np.uint8), np.arange(64) % 2


def kdrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def example(name: str) -> str:
    """The file of this name in docs/data.md."""
    (block,) = (block for _, block in BLOCKS if block.startswith(f"# {name}\n"))
    return block


def command(words: str) -> list[str]:
    """The arguments of the command of docs/data.md that holds these words."""
    lines = "\n".join(block for language, block in BLOCKS if language == "bash").replace("\\\n", " ").splitlines()
    (line,) = (line for line in lines if words in line)
    return shlex.split(line)[1:]


def splits(train=(IMAGES, LABELS), test=(IMAGES[:8], LABELS[:8]), **more) -> dict:
    return {"train": train, "test": test, **more}


def config(function, path: str = "mine:load", **changes) -> SimpleNamespace:
    """The settings of dataset=import with this function at its path."""
    module, _, name = path.partition(":")
    sys.modules[module] = ModuleType(module)
    setattr(sys.modules[module], name, function)
    imported._LAST.clear()
    settings = {"arguments": {}, "root": None, "holdout": 0, "size": None, "flip": True, "memory": "auto"}
    return SimpleNamespace(name="import", path=path, mean=None, std=None, **{**settings, **changes})


@pytest.fixture(autouse=True)
def _forget():
    """What a test registers, imports and loads."""
    plugins, modules = dict(DATASETS.plugins), set(sys.modules)
    yield
    DATASETS.plugins.clear()
    DATASETS.plugins.update(plugins)
    for name in ("mine", *({"my_sets", "my_hub", "sets", "taken"} - modules)):
        sys.modules.pop(name, None)
    imported._LAST.clear()


# What a function may return ----------------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    """A torch Dataset of images of any kind."""

    def __init__(self, images, kind):
        self.images, self.kind = images, kind

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.kind(self.images[row]), torch.tensor(LABELS[row])


COLOUR = np.stack([IMAGES, IMAGES, IMAGES], 1)  # (N, 3, H, W)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ((COLOUR, LABELS), (COLOUR[:8], LABELS[:8])),
        ((COLOUR.transpose(0, 2, 3, 1), LABELS.tolist()), (torch.tensor(COLOUR[:8]), torch.tensor(LABELS[:8]))),
        ((IMAGES[..., None], LABELS.astype(np.uint8)), (list(IMAGES[:8]), list(LABELS[:8]))),
        (Pairs(IMAGES, Image.fromarray), Pairs(COLOUR[:8], torch.tensor)),
        (
            Pairs(COLOUR.transpose(0, 2, 3, 1), Image.fromarray),
            torch.utils.data.Subset(Pairs(IMAGES, np.array), range(8)),
        ),
    ],
    ids=[
        "channels-first",
        "channels-last and tensors",
        "one channel and lists",
        "Pillow and tensors",
        "colour and Subset",
    ],
)
def test_each_way_to_give_the_same_images_is_the_same_data_set(train, test):
    """Arrays, tensors, lists and torch Datasets, grey or in colour: one checksum, so one run."""
    grey, other = content_of(splits(), "mine:load"), content_of(splits(train, test), "mine:load")
    assert np.array_equal(other.train.images, COLOUR)
    assert np.array_equal(other.test.images, COLOUR[:8])
    assert other.train.labels.tolist() == LABELS.tolist()
    assert other.checksum == grey.checksum


def test_the_checksum_tells_contents_apart():
    """One pixel, one label, a name, a row that moves from test to train."""
    pixel, label = IMAGES.copy(), LABELS.copy()
    pixel[5, 3, 3] ^= 1
    label[5] ^= 1
    others = [
        splits(train=(pixel, LABELS)), splits(train=(IMAGES, label)), splits(classes=["no", "yes"]),
        splits(train=(IMAGES[:63], LABELS[:63])), splits(train=(IMAGES[::-1], LABELS)),
    ]  # fmt: skip
    checksums = [content_of(other, "mine:load").checksum for other in (splits(), *others)]
    assert len(set(checksums)) == len(checksums)


def test_images_and_holdout_reach_the_loop_unchanged(tmp_path):
    dataset = data.load(config(lambda: splits(classes=("cat", "dog")), holdout=10), str(tmp_path))
    assert (len(dataset.train), len(dataset.holdout), len(dataset.test)) == (54, 10, 8)
    assert dataset.holdout.labels.bincount().tolist() == [5, 5]
    for part in (dataset.train, dataset.holdout):
        assert torch.equal(part.images, torch.tensor(COLOUR)[part.index])
        assert torch.equal(part.labels, torch.tensor(LABELS)[part.index])
    assert (dataset.classes, dataset.size, dataset.flip) == (["cat", "dog"], 8, True)
    expected = dataset.train.images.double().div(255).mean((0, 2, 3))
    assert dataset.mean == pytest.approx(expected.tolist())


def test_size_resizes_as_an_image_folder_does(tmp_path):
    """Mixed sizes in a torch Dataset; the same images from files give the same pixels."""
    drawn = [DRAW.integers(0, 256, (side, side + 3, 3), dtype=np.uint8) for side in (9, 12, 8, 15)]
    pairs = [(Image.fromarray(image), row % 2) for row, image in enumerate(drawn)]
    for part in ("train", "test"):
        for row, (image, label) in enumerate(pairs):
            file = tmp_path / "images" / part / str(label) / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
    cfg = config(lambda: splits(pairs, pairs), size=8)
    dataset = data.load(cfg, str(tmp_path))
    folder = SimpleNamespace(**{**vars(cfg), "name": "image_folder", "root": str(tmp_path / "images")})
    files = data.load(folder, str(tmp_path))
    assert torch.equal(dataset.test.images[[0, 2, 1, 3]], files.test.images)
    assert data.own_size(cfg, str(tmp_path)) == 8
    cfg.size = None
    with pytest.raises(KdrunError, match=r"mine:load: train image 0 is 12 x 9 px, not square: dataset.size=32 resizes"):
        data.load(cfg, str(tmp_path))


def test_the_size_that_images_have_anyway_is_null(tmp_path):
    cfg = config(splits, size=8)
    assert data.own_size(cfg, str(tmp_path)) is None
    assert data.sizes(cfg, str(tmp_path)) == (64, 8, 8)
    cfg.size = 4
    assert data.own_size(cfg, str(tmp_path)) == 4
    assert data.load(cfg, str(tmp_path)).train.images.shape == (64, 3, 4, 4)


def test_a_split_drawn_without_a_seed_is_the_same_at_every_call(tmp_path):
    """Of Python's, NumPy's and torch's global generators, whose state stays as it was."""

    def load():
        rows = np.random.permutation(64), torch.randperm(64).numpy(), np.array(random.sample(range(64), 64))
        return splits(train=(IMAGES[rows[0]], LABELS), test=(IMAGES[rows[1]][rows[2]], LABELS))

    checksums = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        checksums.append(data.checksum(config(load), str(tmp_path)))
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert checksums[0] == checksums[1]


def test_the_function_is_called_once_for_a_run(tmp_path):
    calls = []
    cfg = config(lambda count: calls.append(count) or splits(), arguments={"count": 1})
    for _ in range(2):
        assert data.checksum(cfg, str(tmp_path))
        data.own_size(cfg, str(tmp_path)), data.sizes(cfg, str(tmp_path)), data.load(cfg, str(tmp_path))
    assert calls == [1]
    cfg.arguments = {"count": 2}
    data.load(cfg, str(tmp_path))
    assert calls == [1, 2]


# Mistakes ----------------------------------------------------------------------------------------------------------------

WRONG = [
    ([IMAGES], r'mine:load returned list; kdrun wants \{"train": \(images, labels\)'),
    ({"train": (IMAGES, LABELS)}, "mine:load returned no 'test'"),
    (splits(tset=1), "returned 'tset', which kdrun does not know. Did you mean test"),
    (splits(train=IMAGES), "train is ndarray; kdrun wants .images, labels., or a torch Dataset"),
    (splits(train=iter([])), "train is list_iterator; kdrun wants"),
    (splits(train=[{"image": 1}] * 3), r"train item 0 is dict; kdrun wants \(image, label\)"),
    (splits(train=(IMAGES / 255, LABELS)), r"train images are float64 \(64, 8, 8\); kdrun wants uint8 .*images \* 255"),
    (splits(test=(IMAGES.astype(int), LABELS)), r"test images are int64 \(64, 8, 8\); .*images.astype\('uint8'\)"),
    (splits(test=Pairs(COLOUR / 255, torch.tensor)), r"test image 0 is float64 \(3, 8, 8\); kdrun wants uint8"),
    (splits(train=(IMAGES.reshape(64, 2, 4, 8), LABELS)), r"train images are uint8 \(64, 2, 4, 8\); kdrun wants \(N, H, W\)"),
    (splits(train=(list(IMAGES.reshape(64, 64)), LABELS)), r"train image 0 is uint8 \(64,\); kdrun wants \(H, W\), \(H, W, 3\)"),
    (splits(train=Pairs(IMAGES.astype("float32"), Image.fromarray)), "train image 0 has floats from .* black must be 0 and white 1"),
    (splits(test=(IMAGES[:0], LABELS[:0])), "test has no images"),
    (splits(test=[]), "test has no images"),
    (splits(train=(IMAGES, LABELS[:9])), "train has 64 images and 9 labels"),
    (splits(train=(IMAGES, np.eye(64))), r"train labels are float64 \(64, 64\); kdrun wants one whole number"),
    (splits(train=(IMAGES, LABELS - 1)), "train has label -1; kdrun wants labels 0 to K-1"),
    (splits(train=(IMAGES, LABELS + 1)), "train has no image with label 0; kdrun wants labels 0 to K-1, here 0 to 2"),
    (splits(train=(IMAGES, LABELS * 0)), "train has label 0 alone; kdrun wants two classes or more"),
    (splits(test=(IMAGES, LABELS * 7)), "test has label 7; the labels of train are 0 to 1"),
    (splits(classes=["cat"]), "train has label 1, and classes has 1 names"),
    (splits(classes=["cat", "cat"]), "classes names 'cat' twice"),
    (splits(classes="cat dog"), "classes is str; kdrun wants a list"),
    (splits(classes=["cat", "dog", "cow"]), "train has no image with label 2"),
]  # fmt: skip


@pytest.mark.parametrize(("returned", "words"), WRONG, ids=[words[:30] for _, words in WRONG])
def test_what_is_not_meant_so_is_one_sentence(returned, words):
    with pytest.raises(KdrunError, match=words) as caught:
        content_of(returned, "mine:load")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES[:, :, :6], "mine:load: the train images are 6 x 8 px, not square: dataset.size=32"),
        (IMAGES[:, :6, :6], "mine:load: the test images are 8 x 8 px, the first 6 x 6: dataset.size=32"),
    ],
)
def test_images_that_are_not_alike_need_a_size(images, words, tmp_path):
    cfg = config(lambda: splits(train=(images, LABELS)))
    with pytest.raises(KdrunError, match=words):
        data.sizes(cfg, str(tmp_path))
    cfg.size = 5
    assert data.load(cfg, str(tmp_path)).train.images.shape == (64, 3, 5, 5)


def missing():
    return np.load("nowhere.npz")


@pytest.mark.parametrize(
    ("function", "changes", "words"),
    [
        (splits, {"path": "mine"}, "dataset.path=mine is not module:function"),
        (splits, {"path": "nowhere_at_all:load"}, "cannot import nowhere_at_all of dataset.path=nowhere_at_all:load.*current folder"),
        (splits, {"path": "mine:laod"}, "module mine of dataset.path=mine:laod has no 'laod'. Did you mean load"),
        (LABELS, {}, "dataset.path=mine:load is ndarray; it must be a function"),
        (lambda file: splits(), {"arguments": {"fil": 1}}, "dataset.arguments={'fil': 1}: .*. It takes file"),
        (lambda: splits(), {"arguments": {"fil": 1}}, "It takes no arguments"),
        (splits, {"root": "here"}, "dataset.root=here: dataset=import does not use it; .*dataset.arguments.root=here"),
        (splits, {"memory": "never"}, "dataset.memory=never: what a function returns always lies in memory"),
        (missing, {}, "mine:load could not read its data .*nowhere.npz"),
    ],
)  # fmt: skip
def test_mistakes_around_the_function(function, changes, words, tmp_path):
    cfg = config(function)
    vars(cfg).update(changes)
    with pytest.raises(KdrunError, match=words):
        data.checksum(cfg, str(tmp_path))


def test_a_class_without_test_images_is_named(tmp_path):
    dataset = data.load(config(lambda: splits(test=(IMAGES, LABELS * 0), classes=["cat", "dog"])), str(tmp_path))
    assert dataset.notes == ["mine:load: test has no image of dog"]


# Plug-ins ----------------------------------------------------------------------------------------------------------------

SETS = '''
import numpy as np
from kdrun.datasets import register

@register(flip=False, mean=[0.5, 0.5, 0.5])
def noise(root, *, side: int = 8, seed: int = 0):
    """Noise in two classes."""
    images = np.random.default_rng(seed).integers(0, 256, (64, side, side), dtype=np.uint8)
    return {"train": (images, np.arange(64) % 2), "test": (images[:8], np.arange(8) % 2)}
'''


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "sets.py").write_text(SETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def composed(capsys, *arguments: str) -> str:
    assert run([*arguments, "--cfg", "job"]) == 0
    return capsys.readouterr().out


def test_a_plugin_is_a_choice_with_options_of_its_own(project, capsys):
    """No yaml: its name, the keys of every dataset with the defaults of @register, and its own options."""
    shown = composed(capsys, "plugins=[sets]", "dataset=noise", "dataset.seed=3", *ALONE)
    assert re.search(r"^dataset:\n  name: noise$", shown, re.MULTILINE)
    for line in ("flip: false", "side: 8", "seed: 3", "root: null", "memory: auto"):
        assert f"\n  {line}\n" in shown
    assert "  mean:\n  - 0.5\n  - 0.5\n  - 0.5\n" in shown


def test_a_file_of_the_same_name_is_refused(project, capsys):
    """Hydra would take the plug-in's choice and not mention the file."""
    (project / "conf" / "dataset").mkdir(parents=True)
    (project / "conf" / "dataset" / "noise.yaml").write_text("name: noise\nflip: true\n")
    assert run(["plugins=[sets]", "dataset=noise", "--config-dir", "conf", *ALONE]) == 1
    assert "conf/dataset/noise.yaml has the name of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset.saed=4"], "no key 'saed' in dataset. Did you mean seed?"),
        (["dataset.side=wide"], "dataset.side is 'wide'; it must be a whole number"),
        (["dataset.memory=never"], "dataset.memory=never: what a function returns always lies in memory"),
    ],
)
def test_a_wrong_option_of_a_plugin_is_one_line(arguments, words, project, capsys):
    assert run(["plugins=[sets]", "dataset=noise", *arguments, *ALONE]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("@register\ndef digits(root)", "dataset 'digits' of taken has the name of a built-in"),
        ("@register(name='import')\ndef mine(root)", "dataset 'import' of taken has the name of a built-in"),
        ("@register\ndef cifar10(root)", "dataset 'cifar10' of taken has the name of a built-in"),
        ("@register\ndef noise(root)", "dataset 'noise' of taken has the name of one of sets; rename it"),
    ],
)
def test_a_name_that_is_taken_is_an_error(head, words, project):
    import_plugin("sets")
    (project / "taken.py").write_text(f"from kdrun.datasets import register\n\n{head}: return None\n")
    with pytest.raises(KdrunError, match=words):
        import_plugin("taken")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("@register\ndef mine(root, side=8)", "taken.py:3: mine takes 'side' by position"),
        (
            "@register\ndef mine(root, *, flip=True)",
            "taken.py: mine has an option 'flip', which is a key of every dataset",
        ),
        ("@register(flop=True)\ndef mine(root)", "taken.py: @register of mine has no 'flop'. Did you mean flip?"),
        ("@register(flip='no way')\ndef mine(root)", "taken.py: mine has a default that does not fit its type"),
        ("@register(task='imgae')\ndef mine(root)", "no task 'imgae'. Did you mean image?"),
    ],
)
def test_what_no_config_could_hold_is_an_error(head, words, project, capsys):
    (project / "taken.py").write_text(f"from kdrun.datasets import register\n\n{head}: return None\n")
    assert run(["plugins=[taken]", "dataset=mine", *ALONE]) == 1
    assert words in capsys.readouterr().err


def test_kdrun_datasets_lists_them(project, capsys):
    assert run(["datasets"]) == 0
    shown = capsys.readouterr().out
    for file in (REPOSITORY / "conf" / "dataset").glob("*.yaml"):
        assert re.search(rf"^{file.stem}  ", shown, re.MULTILINE)
    assert "noise" not in shown
    assert run(["datasets", "plugins=[sets]"]) == 0
    assert re.search(r"^noise +Noise in two classes\. \(sets\) +side=8, seed=0", capsys.readouterr().out, re.MULTILINE)
    assert run(["datasets", "--help"]) == 0
    assert "kdrun datasets ['plugins=[MODULE, ...]']" in capsys.readouterr().out
    assert run(["datasets", "extra"]) == 2
    assert "'datasets' takes plugins=[MODULE] alone" in capsys.readouterr().err


@pytest.mark.slow
def test_a_plugin_trains_and_is_done_the_second_time(project):
    """Also under a launcher, whose processes import the plug-in before they compose."""
    first = kdrun(project, "plugins=[sets]", "dataset=noise", "dataset.holdout=8", "protocol=holdout", *ALONE)
    assert first.returncode == 0, first.stderr
    assert "plan     noise 56/8, 8 held out" in first.stdout
    sweep = ["-m", "plugins=[sets]", "dataset=noise", "dataset.holdout=8", *ALONE, "seed=0,1", "hydra/launcher=joblib"]
    swept = kdrun(project, *sweep, "hydra.launcher.n_jobs=2")
    assert swept.returncode == 0, swept.stderr
    assert "2 seed; 1 done, 1 to do" in swept.stdout


# The examples of docs/data.md ----------------------------------------------------------------------------------------------


def test_an_npz_through_the_command(tmp_path):
    """The same content is the same run, and answers without torch; another content is another run."""
    (tmp_path / "my_data.py").write_text(example("my_data.py"))
    parts = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:8], "test_labels": LABELS[:8]}
    np.savez(tmp_path / "pets.npz", **parts)
    written = [
        argument for argument in command("my_data:load") if not argument.startswith(("recipe=", "teacher=", "student="))
    ]
    first = kdrun(tmp_path, *written, *ALONE)
    assert first.returncode == 0, first.stderr
    assert re.search(r"^plan +my_data.load 64/8 ", first.stdout, re.MULTILINE)
    np.savez_compressed(tmp_path / "again.npz", **parts)
    again = [argument.replace("pets.npz", "again.npz") for argument in written]
    assert "already done: none resnet8 seed 0" in kdrun(tmp_path, *again, *ALONE, "dataset.size=8").stdout
    np.savez(tmp_path / "pets.npz", **{**parts, "train_labels": LABELS[::-1]})
    other = kdrun(tmp_path, *written, *ALONE)
    assert "already done" not in other.stdout
    assert len(list((tmp_path / "outputs" / "runs" / "my_data.load").glob("*/*/*/seed0/record.json"))) == 2
    verified = kdrun(tmp_path, "verify", "outputs/runs")
    assert "2 runs   2 ok" in verified.stdout, verified.stdout
    light = "import sys; from kdrun.cli import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", light, *again, *ALONE], cwd=tmp_path, capture_output=True, text=True)
    assert "already done" in done.stdout
    assert done.returncode == 0, "torch was imported"


def write_idx(path: Path, values: np.ndarray) -> None:
    """A file of the format of MNIST, as FashionMNIST has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))


@pytest.fixture
def sets(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_sets.py").write_text(example("my_sets.py"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import_plugin("my_sets")
    return tmp_path


def plugin(name: str, **options) -> SimpleNamespace:
    settings = {"root": None, "holdout": 0, "size": None, "flip": True, "memory": "auto", "mean": None, "std": None}
    return SimpleNamespace(name=name, **settings, **options)


def test_fashion_mnist_is_read_from_its_own_files(sets):
    """With torchvision's reader, from outputs/data/fashion_mnist."""
    images, labels = DRAW.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(20) % 10
    for part in ("train", "t10k"):
        raw = sets / "out" / "data" / "fashion_mnist" / "FashionMNIST" / "raw"
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    dataset = data.load(plugin("fashion_mnist"), str(sets / "out"))
    assert np.array_equal(dataset.train.images[:, 0], images)
    assert dataset.test.labels.tolist() == labels.tolist()
    assert (dataset.size, dataset.classes[9]) == (28, "Ankle boot")


def test_svhn_is_read_from_its_own_files(sets, monkeypatch):
    """Zeros are written as 10 in these files; `extra` is trained on too."""
    from scipy.io import savemat

    for module in ("utils", "svhn"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)
    images, labels = DRAW.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8), np.arange(20) % 10 + 1
    for part in ("train", "test", "extra"):
        savemat(sets / f"{part}_32x32.mat", {"X": images, "y": labels[:, None].astype(np.uint8)})
    dataset = data.load(SimpleNamespace(**{**vars(plugin("svhn", extra=False)), "root": str(sets)}), "nowhere")
    assert np.array_equal(dataset.train.images, images.transpose(3, 2, 0, 1))
    assert dataset.test.labels.tolist() == (labels % 10).tolist()
    more = data.load(SimpleNamespace(**{**vars(plugin("svhn", extra=True)), "root": str(sets)}), "nowhere")
    assert (len(more.train), len(more.test)) == (40, 20)
    assert more.checksum != dataset.checksum


def test_the_code_for_a_hugging_face_set(tmp_path, monkeypatch):
    """With a stand-in for the package `datasets`: rows that are dicts, and features that have names."""

    class Rows(list):
        features = {"label": SimpleNamespace(names=["cat", "dog"])}  # noqa: RUF012

    rows = Rows(
        {"image": Image.fromarray(image), "label": int(label)} for image, label in zip(IMAGES, LABELS, strict=True)
    )
    hub = ModuleType("datasets")
    hub.load_dataset = lambda name: {"train": rows, "test": rows}
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_hub.py").write_text(example("my_hub.py"))
    arguments = dict(a.removeprefix("dataset.").split("=") for a in command("my_hub:load") if a.startswith("dataset."))
    cfg = config(splits)
    cfg.path, cfg.arguments = arguments["path"], {"name": arguments["arguments.name"]}
    dataset = data.load(cfg, str(tmp_path))
    assert np.array_equal(dataset.train.images, COLOUR)
    assert dataset.classes == ["cat", "dog"]
