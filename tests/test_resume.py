"""Killed in the middle of an epoch and started again, a run ends with the bits of the run that was never killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from last_wins import last_wins
from safetensors.torch import load_file

KILLER = """
import os, signal
from kdrun.methods import Distillation
after_step, left = Distillation.after_step, [int(os.environ["KILL_AT"])]
def counted(self, weights=None):
    after_step(self, weights)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Distillation.after_step = counted
"""
COMMON = [
    "dataset=digits", "teacher=resnet8", "student=resnet8", "recipe=quick", "recipe.epochs=3", "teacher.recipe.epochs=1",
    "engine.threads=1", "engine.precision=fp32", "engine.log_every=4",
]  # fmt: skip
CASES = {  # name -> overrides, step of the kill; an epoch has 10
    "kd": (["method=kd"], 15),
    "kd, in the first epoch": (["method=kd", "seed=1"], 5),
    "fitnet, in the hints": (["method=fitnet", "method.fitnet.stages.hints.epochs=0.5"], 15),
    "fitnet, in the distillation": (["method=fitnet", "method.fitnet.stages.hints.epochs=0.5", "seed=1"], 36),
    "crd": (["method=crd", "method.crd.negatives=256"], 15),
    "dml": (["method=dml", "method.dml.networks=3"], 25),
}


def kdrun(folder: Path, *arguments: str, kill_at: int = 0) -> subprocess.CompletedProcess:
    (folder / "killer.py").write_text(KILLER)
    extra = ["plugins=[killer]"] if kill_at else []
    environment = {**os.environ, "KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdrun", *last_wins([*COMMON, *arguments, *extra])]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def student_folder(root: Path, overrides: list[str]) -> Path:
    method = overrides[0].partition("=")[2]
    seed = "seed1" if "seed=1" in overrides else "seed0"
    (found,) = (root / "outputs/runs/digits" / method).glob(f"*/*/{seed}")
    return found


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars as a reader sees them, speeds left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tb"), purge_orphaned_data=True)
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case, uninterrupted."""
    root = tmp_path_factory.mktemp("whole")
    for overrides, _ in CASES.values():
        done = kdrun(root, *overrides)
        assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("case", CASES)
def test_resume_is_bit_exact(case: str, whole: Path, tmp_path: Path) -> None:
    """Weights, curves, records and TensorBoard points equal those of the uninterrupted run."""
    overrides, step = CASES[case]
    if (whole / "outputs/runs/digits/none").is_dir():  # the teacher is there already, so that steps are the student's
        shutil.copytree(whole / "outputs/runs/digits/none", tmp_path / "outputs/runs/digits/none")
    killed = kdrun(tmp_path, *overrides, kill_at=step)
    assert killed.returncode == -signal.SIGKILL
    folder = student_folder(tmp_path, overrides)
    assert json.loads((folder / "record.json").read_text())["status"] == "running"

    resumed = kdrun(tmp_path, *overrides)
    assert resumed.returncode == 0, resumed.stderr
    expected = student_folder(whole, overrides)
    names = sorted(path.name for path in expected.glob("*.safetensors"))
    assert names == sorted(path.name for path in folder.glob("*.safetensors"))
    for name in names:
        mine, theirs = load_file(folder / name), load_file(expected / name)
        assert mine.keys() == theirs.keys()
        assert all(mine[key].equal(theirs[key]) for key in mine), name
    mine, theirs = (json.loads((f / "record.json").read_text()) for f in (folder, expected))
    assert (mine["resumed"], theirs["resumed"]) == (int(step > 10), 0)  # before the first epoch's end it starts afresh
    for key in ("id", "group", "last", "best", "agreement", "score", "student", "teacher", "weights"):
        assert mine[key] == theirs[key], key
    curves = [[json.loads(line) for line in (f / "curves.jsonl").read_text().splitlines()] for f in (folder, expected)]
    timeless = [
        [{k: v for k, v in line.items() if k not in ("samples_per_s", "data_wait", "seconds")} for line in c]
        for c in curves
    ]
    assert timeless[0] == timeless[1]
    assert points(folder) == points(expected)


@pytest.mark.slow
def test_precision_and_source_cannot_change_in_the_middle(whole: Path, tmp_path: Path) -> None:
    """A run begun in one precision refuses to go on in another, or with another source of its method; its record stays."""
    overrides, step = CASES["kd"]
    shutil.copytree(whole / "outputs/runs/digits/none", tmp_path / "outputs/runs/digits/none")
    kdrun(tmp_path, *overrides, kill_at=step)
    folder = student_folder(tmp_path, overrides)
    import torch

    before = json.loads((folder / "record.json").read_text())
    config = (folder / "config.yaml").read_text()
    assert before["last"]["epoch"] == 1
    before["engine"]["precision"] = "bf16"
    (folder / "record.json").write_text(json.dumps(before))
    state = torch.load(folder / "last.ckpt", weights_only=True)
    torch.save({**state, "precision": "bf16"}, folder / "last.ckpt")
    refused = kdrun(tmp_path, *overrides, "engine.log_every=5")
    assert refused.returncode == 1
    assert "begun with precision bf16, not fp32" in refused.stderr
    after = json.loads((folder / "record.json").read_text())
    assert after["status"] == "failed"
    assert "begun with precision" in after["error"]["message"]
    assert {**after, "status": "", "error": ""} == {**before, "status": "", "error": ""}
    assert (folder / "config.yaml").read_text() == config

    torch.save({**state, "code": {"method": {"kd": "tree:another"}, "student": None}}, folder / "last.ckpt")
    refused = kdrun(tmp_path, *overrides)
    assert refused.returncode == 1
    assert "the source of kd" in refused.stderr
    assert "rerun=true" in refused.stderr

    torch.save(state, folder / "last.ckpt")
    assert kdrun(tmp_path, *overrides, kill_at=1).returncode == -signal.SIGKILL  # before another epoch ends
    after = json.loads((folder / "record.json").read_text())
    assert (after["status"], after["resumed"]) == ("running", 1)
    assert [after[key] for key in ("last", "best", "agreement")] == [
        before[key] for key in ("last", "best", "agreement")
    ]
    assert after["time"]["train_s"] == before["time"]["train_s"]
    assert after["time"]["peak_memory"] >= before["time"]["peak_memory"] > 0
