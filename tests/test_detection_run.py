"""Detectors through the real command: teacher, student alone and distilled, and what is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_data import SMALL, tiny
from last_wins import last_wins
from safetensors.torch import load_file

import kdrun
from kdrun.config.registry import METHODS
from kdrun.engine.build import build
from kdrun.engine.loop import enter
from kdrun.engine.precision import resolve
from kdrun.errors import KdrunError

OFFLINE = """
import socket
def refuse(*_, **__):
    raise AssertionError("a network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
TEACHER = ["teacher.recipe.epochs=1", "teacher.recipe.batch_size=4", "teacher.recipe.close_mosaic=0"]


def command(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess:
    """Without a network, in an empty home."""
    (folder / "offline").mkdir(exist_ok=True)
    (folder / "offline" / "sitecustomize.py").write_text(OFFLINE)
    path = os.pathsep.join(filter(None, [str(folder / "offline"), os.environ.get("PYTHONPATH")]))
    (folder / "home").mkdir(exist_ok=True)
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HOME": str(folder / "home"), **environment}
    arguments = last_wins(
        ["dataset=yolo", "dataset.data=data/shapes.yaml", *SMALL, *TEACHER, "engine.log_every=1", *overrides]
    )
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments], cwd=folder, env={**os.environ, **own}, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Method and student -> record, with its folder."""
    found = {}
    for file in folder.glob("outputs/runs/*/*/*/*/*/record.json"):
        record = json.loads(file.read_text())
        found["+".join(record["method"]) + " " + record["student"]["name"]] = {**record, "folder": file.parent}
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of a sweep: the student alone and distilled; the teacher was trained for it."""
    folder = tmp_path_factory.mktemp("runs")
    tiny(folder / "data")
    done = command(folder, "method=none,[cwd,yolo_logits]", "-m", "teacher=yolov8s", "student=yolov8n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder


def test_records(place: Path) -> None:
    found = records(place)
    assert set(found) == {"none yolov8s", "none yolov8n", "cwd+yolo_logits yolov8n"}
    record = found["cwd+yolo_logits yolov8n"]
    assert (record["task"], record["unit"], record["status"]) == ("detection", "images", "done")
    assert [metric["name"] for metric in record["metrics"]] == ["map50_95", "map50"]
    assert record["dataset"]["classes"] == ["circle", "square", "triangle"]
    assert (record["dataset"]["train_n"], record["dataset"]["holdout_n"], record["dataset"]["test_n"]) == (10, 4, 6)
    assert record["holdout"] is not None  # val chooses
    assert [row["class"] for row in record["details"]["precisions"]] == record["dataset"]["classes"]
    assert all(weight > 0 for weight in record["weights"].values())
    assert set(record["weights_auto"]) == {"cwd.channels", "yolo_logits.scores"}
    assert record["teacher"]["params"] == found["none yolov8s"]["student"]["params"]
    lines = [json.loads(line) for line in (record["folder"] / "curves.jsonl").read_text().splitlines()]
    losses = lines[0]["loss"]
    assert set(losses) == {
        "total", "task", "task.box", "task.cls", "task.dfl", "cwd.channels", "yolo_logits.scores",
    }  # fmt: skip
    assert losses["task"] == pytest.approx(losses["task.box"] + losses["task.cls"] + losses["task.dfl"], rel=1e-5)
    assert all(value > 0 for value in losses.values())


def test_tensorboard_has_every_term_and_its_share(place: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(records(place)["cwd+yolo_logits yolov8n"]["folder"] / "tb"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    terms = ("task", "cwd.channels", "yolo_logits.scores")
    wanted = {f"distil/{kind}/{term}" for kind in ("loss", "weight", "share") for term in terms}
    wanted |= {f"distil/loss/task.{part}" for part in ("box", "cls", "dfl")}
    wanted |= {f"eval/{split}/{metric}" for split in ("test", "holdout") for metric in ("map50_95", "map50")}
    wanted |= {"distil/lr", "speed/images_per_s", "teacher/test/map50_95", "eval/test/agreement"}
    assert wanted <= tags


def test_the_user_finds_nothing_of_the_library_in_their_home(place: Path) -> None:
    assert [*(place / "home").rglob("*ltralytics*")] == []
    assert [*(place / "data").rglob("*.cache")] == []
    assert {path.name for path in place.iterdir()} == {"data", "home", "offline", "outputs"}


def test_the_picture_is_a_png_that_the_page_links(place: Path) -> None:
    from PIL import Image

    record = records(place)["cwd+yolo_logits yolov8n"]
    file = record["folder"] / record["details"]["picture"]
    with Image.open(file) as image:
        assert image.width > image.height * 0.5 > 100
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", "report", "outputs/runs", "--format", "html", "--output", "page.html"],
        cwd=place, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (place / "page.html").read_text()
    (place / "page.html").unlink()
    assert page.count("picture.png") == 3
    assert "mAP50-95" in page


def test_a_run_in_python(place: Path) -> None:
    run = kdrun.load(records(place)["cwd+yolo_logits yolov8n"]["folder"])
    image = next((place / "data" / "images" / "test").glob("*.jpg"))
    boxes = run.student(image, confidence=0.0)
    assert len(boxes) == 1
    assert boxes[0].shape[1] == 6
    assert boxes[0][:, :4].min() > -64
    assert boxes[0][:, :4].max() < 128
    from PIL import Image

    with Image.open(image) as opened:
        again = run.student([opened], confidence=0.0)[0]
    assert torch.allclose(again, boxes[0])
    predictions = run.predictions()
    assert int(predictions["boxes_of_image"].sum()) == len(predictions["boxes"])
    with pytest.raises(KdrunError, match="has no logits"):
        run.logits()


def test_best_pt_opens_without_kdrun(place: Path, tmp_path: Path) -> None:
    """In a process in which kdrun cannot be imported: the student alone, the same mAP, and exports."""
    record = records(place)["cwd+yolo_logits yolov8n"]
    code = f"""
import sys, json
sys.modules["kdrun"] = None
import torch
from ultralytics import YOLO
model = YOLO("best.pt")
kinds = sorted({{type(part).__module__.partition(".")[0] for part in model.model.modules()}})
scores = [YOLO(name).val(data={str(place / "data" / "shapes.yaml")!r}, split="test", imgsz=64, batch=16, plots=False, verbose=False,
          workers=0, project={str(tmp_path / "val")!r}).box.map50 for name in ("last.pt",)]
files = [model.export(format="torchscript", imgsz=64), model.export(format="onnx", imgsz=64, simplify=False)]
import onnxruntime
x = torch.rand(1, 3, 64, 64)
session = onnxruntime.InferenceSession(files[1], providers=["CPUExecutionProvider"])
onnx = torch.from_numpy(session.run(None, {{session.get_inputs()[0].name: x.numpy()}})[0])
script = torch.jit.load(files[0])(x)
plain = model.model.float().eval()(x)
plain = plain[0] if isinstance(plain, tuple) else plain
print(json.dumps({{"kinds": kinds, "map50": scores[0], "params": sum(p.numel() for p in YOLO("best.pt").model.parameters()),
  "names": model.names, "onnx": (onnx - plain).abs().max().item(), "script": (script - plain).abs().max().item()}}))
"""
    for name in ("best.pt", "last.pt"):
        (tmp_path / name).write_bytes((record["folder"] / name).read_bytes())
    own = {
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "0",
        "YOLO_CONFIG_DIR": str(tmp_path / "settings"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    (place / "data" / "labels" / "test.cache").unlink(missing_ok=True)  # the library's own
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert set(seen["kinds"]) == {"torch", "ultralytics"}
    assert seen["params"] == record["student"]["params"]
    assert list(seen["names"].values()) == record["dataset"]["classes"]
    assert seen["map50"] == pytest.approx(record["last"]["metrics"]["map50"], abs=5e-3)  # half precision
    assert max(seen["onnx"], seen["script"]) < 1e-2


def test_the_teacher_is_nowhere_in_what_the_student_leaves(place: Path) -> None:
    found = records(place)
    record, teacher = found["cwd+yolo_logits yolov8n"], found["none yolov8s"]
    state = torch.load(record["folder"] / "last.ckpt", weights_only=True)
    of_teacher = {tuple(value.shape) for value in load_file(teacher["folder"] / "student.safetensors").values()}
    of_student = {tuple(value.shape) for value in load_file(record["folder"] / "student.safetensors").values()}
    assert not [name for name in state["distillation"] if "teacher" in name]
    kept = {tuple(value.shape) for name, value in state["distillation"].items() if name.startswith("student.")}
    assert kept == of_student != of_teacher


@pytest.fixture(scope="module")
def pair(place: Path) -> Any:
    """A pair on the same data for one method, or several."""
    from detection_data import config

    def made(method: str) -> Any:
        cfg = config(
            f"dataset.data={place / 'data' / 'shapes.yaml'}", f"outputs={place / 'outputs'}", f"method={method}"
        )
        return build(cfg, resolve(cfg.engine))

    return made


OF_DETECTORS = ["at", "cwd", "dist", "fgd", "mgd", "mimic", "pkd", "ultralytics", "yolo_boxes", "yolo_logits"]


def gradient(parts: Any) -> tuple[dict[str, float], torch.Tensor]:
    """The terms of the first batch, and the student's gradient of the distillation terms alone."""
    distillation, stage = parts.distillation, parts.distillation.stages[0]
    enter(distillation, stage)
    distillation.begin_epoch(0, 0)
    _, terms = distillation(next(iter(parts.train.epoch(0))), stage)
    own = [value for name, value in terms.items() if name != "task"]
    learn = [p for p in distillation.student.parameters() if p.requires_grad]
    found = torch.autograd.grad(torch.stack(own).sum(), learn, allow_unused=True)
    flat = torch.cat([g.flatten() for g in found if g is not None])
    return {name: float(value.detach()) for name, value in terms.items()}, flat


def test_another_method_is_another_gradient_and_no_term_is_zero(pair: Any) -> None:
    seen = {}
    for method in OF_DETECTORS:
        parts = pair(method)
        terms, seen[method] = gradient(parts)
        assert len(terms) > 1
        assert all(value > 0 for value in terms.values()), (method, terms)
        _the_teacher_only_teaches(parts)
    norms = {method: round(float(flat.norm()), 9) for method, flat in seen.items()}
    assert len(set(norms.values())) == len(OF_DETECTORS)
    assert all(norm > 0 for norm in norms.values())


def _the_teacher_only_teaches(parts: Any) -> None:
    """In eval mode, without gradients, in no optimiser and in no checkpoint; adapters have the channels of the models."""
    distillation, stage = parts.distillation, parts.distillation.stages[0]
    teacher = distillation.teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    optimization = parts.task.optimization(stage, parts.recipe, distillation.student.module, len(parts.train))
    optimised = {id(p) for group in optimization.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in teacher.parameters()}
    assert optimised >= {id(p) for p in distillation.student.parameters() if p.requires_grad}
    kept = {id(value) for value in distillation.state_dict(keep_vars=True).values()}
    assert not kept & {id(p) for p in teacher.parameters()}
    for method in distillation.methods.values():
        first = [m for m in method.modules() if isinstance(m, torch.nn.Conv2d)]
        if first and type(method).__name__ == "CWD":
            assert [(m.in_channels, m.out_channels) for m in first] == [(64, 128), (128, 256), (256, 512)]


def test_online_both_learn(pair: Any) -> None:
    parts = pair("yolo_mutual")
    terms, flat = gradient(parts)
    assert set(terms) == {"task", "yolo_mutual.peers", "yolo_mutual.logits", "yolo_mutual.ciou", "yolo_mutual.dfl"}
    assert flat.norm() > 0
    peer = next(iter(parts.distillation.methods["yolo_mutual"].evaluates().values()))
    assert any(p.requires_grad for p in peer.parameters())
    optimization = parts.task.optimization(
        parts.distillation.stages[0], parts.recipe, parts.distillation.student.module, len(parts.train)
    )
    optimised = {id(p) for group in optimization.optimizer.param_groups for p in group["params"]}
    assert optimised >= {id(p) for p in peer.parameters() if p.requires_grad}


def test_every_model_builds(pair: Any) -> None:
    from kdrun.config.registry import MODELS

    names = [name for name, entry in MODELS.entries().items() if entry.task == "detection"]
    assert names == [*(f"yolov5{s}u" for s in "nsmlx"), *(f"yolov8{s}" for s in "nsmlx")]
    for name in ("yolov5nu", "yolov8n"):
        model = MODELS.get(name)(5)
        assert model.eval()(torch.zeros(1, 3, 64, 64))["scores"].shape == (1, 5, 84)
    assert METHODS.entry("yolo_logits").attributes["family"] == "detection"


def test_without_a_test_split_every_caption_says_so(tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    text = (tmp_path / "data" / "shapes.yaml").read_text().replace("test: images/test\n", "")
    (tmp_path / "data" / "two.yaml").write_text(text)
    done = command(
        tmp_path, "-m", "method=none", "student=yolov8n", "seed=0,1", "dataset.data=data/two.yaml", "outputs=of_two"
    )
    assert done.returncode == 0, done.stderr
    assert "two 10/4 train/val" in done.stdout
    assert "two.yaml has no test split: val reports, and no split is left to choose an epoch on" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", "report", "of_two/runs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "4 test images (those of val, because no test split is used" in " ".join(done.stdout.split())
