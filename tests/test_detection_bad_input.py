"""What a user of detectors can say or hand over wrong, through the real command: one line, and no run is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detection_data import SMALL, tiny
from last_wins import last_wins
from ultralytics.nn.tasks import DetectionModel, SegmentationModel

from kdrun.tasks.detection.detector import Detector, plain


def save(model: torch.nn.Module, names: list[str], path: Path) -> None:
    """A checkpoint as the library writes it."""
    model.names, model.args = dict(enumerate(names)), {}
    torch.save({"model": model.half(), "ema": None, "train_args": {}}, path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    tiny(folder / "data")
    names = ["circle", "square", "triangle"]
    fine = Detector("yolov8n.yaml", 3)
    save(plain(fine, fine.state_dict(), names, {}), names, folder / "fine.pt")
    save(DetectionModel("yolov8n.yaml", nc=3, verbose=False), ["disc", "square", "triangle"], folder / "others.pt")
    save(DetectionModel("yolov8n.yaml", nc=5, verbose=False), list("abcde"), folder / "five.pt")
    save(SegmentationModel("yolov8n-seg.yaml", nc=3, verbose=False), names, folder / "masks.pt")
    save(DetectionModel("yolov8s.yaml", nc=3, verbose=False), names, folder / "small.pt")
    (folder / "text.pt").write_text("weights")
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nv = m.version\n"
        "def version(name):\n    if name == 'ultralytics':\n        raise m.PackageNotFoundError(name)\n    return v(name)\nm.version = version\n"  # noqa: E501
    )
    older = folder / "older"
    older.mkdir()
    (older / "sitecustomize.py").write_text(
        "import importlib.metadata as m\nv = m.version\nm.version = lambda name: '8.0.0' if name == 'ultralytics' else v(name)\n"
    )
    return folder


def command(folder: Path, *overrides: str, path: str = "") -> subprocess.CompletedProcess:
    joined = os.pathsep.join(filter(None, [path and str(folder / path), os.environ.get("PYTHONPATH")]))
    arguments = ["dataset=yolo", "dataset.data=data/shapes.yaml", *SMALL, "teacher.recipe.epochs=1", *overrides]
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *last_wins(arguments)], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": joined},  # noqa: E501
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


CASES = {
    "no data yaml": (["dataset.data=null"], "dataset.data is not set: dataset=yolo needs dataset.data=FILE.yaml"),
    "another file": (["dataset.data=data/shape.yaml"], "no such file"),
    "a folder": (["dataset.data=data"], "dataset.data=data is a folder; give the data yaml: dataset.data=data/shapes.yaml"),
    "a model of images": (["student=resnet20"], "student=resnet20 is a model of the task image, and the dataset yolo is of the task detection"),  # noqa: E501
    "a layer that does not exist": (["method=cwd", "method.cwd.taps=[neck4]", "teacher=yolov8n"], "no tap 'neck4' in Detector. Did you mean neck3?"),  # noqa: E501
    "classes of another order": (["method=cwd", "teacher=yolov8n", "teacher.checkpoint=others.pt"], "others.pt was trained on 3 classes (disc, square, triangle), and the dataset has 3 (circle, square, triangle)"),  # noqa: E501
    "other classes": (["method=cwd", "teacher=yolov8n", "teacher.checkpoint=five.pt"], "five.pt was trained on 5 classes"),
    "a teacher of another task": (["method=cwd", "teacher=yolov8n", "teacher.checkpoint=masks.pt"], "masks.pt holds a model with the head Segment, not Detect"),  # noqa: E501
    "a teacher of another size": (["method=cwd", "teacher=yolov8n", "teacher.checkpoint=small.pt"], "small.pt holds another model than yolov8n (its yaml: yolov8s); choose teacher=yolov8s"),  # noqa: E501
    "no checkpoint at all": (["method=cwd", "teacher=yolov8n", "teacher.checkpoint=text.pt"], "text.pt is no model that ultralytics 8.4.190 can load"),  # noqa: E501
    "a method of classes": (["method=kd", "teacher=yolov8n"], "method 'kd' is not made for detectors, and dataset=yolo is of the task detection."),  # noqa: E501
    "a method of other taps": (["method=crd", "teacher=yolov8n"], "method 'crd' is not made for detectors"),
    "a batch above the images": (["method=none", "recipe.batch_size=40"], "batch size 40 is above the 10 training images; recipe.batch_size=10 or less"),  # noqa: E501
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_one_line(place: Path, case: str) -> None:
    overrides, message = CASES[case]
    done = command(place, *overrides)
    assert done.returncode == 1, done.stdout + done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not [*place.glob("outputs/runs/*")]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "hidden",
            "detection needs ultralytics (AGPL-3.0), which is not installed: pip install 'kdrun[detection]' brings it",
        ),
        (
            "older",
            "ultralytics 8.0.0 is installed, and kdrun was tested with 8.4.190 alone: pip install ultralytics==8.4.190",
        ),
    ],
)
def test_the_library_is_missing_or_another_one(place: Path, path: str, message: str) -> None:
    done = command(place, "method=none", path=path)
    assert (done.returncode, done.stderr) == (1, f"kdrun: {message}\n")
    assert not [*place.glob("outputs/runs/*")]


@pytest.mark.slow
def test_a_checkpoint_of_the_library_is_a_teacher_with_a_word_of_warning(place: Path) -> None:
    done = command(
        place, "method=cwd", "teacher=yolov8n", "teacher.checkpoint=fine.pt", "teacher.allow_weak=true", "outputs=fine"
    )
    assert done.returncode == 0, done.stderr
    warning = "fine.pt is a pickle of ultralytics, which may run code when it is read; it was read because you named it"
    assert warning in done.stdout
    assert "teacher yolov8n" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_teacher_near_zero_stops_the_run(place: Path) -> None:
    done = command(place, "method=cwd", "teacher=yolov8n", "teacher.checkpoint=fine.pt", "outputs=weak")
    assert done.returncode == 1
    assert "teacher yolov8n is too weak to learn from: its test mAP50-95 is 0.00" in done.stderr
