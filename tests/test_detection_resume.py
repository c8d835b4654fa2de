"""Killed in an epoch and started again, a run of a detector ends with the bits of the run that was never killed (on a CPU)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detection_data import SMALL, tiny
from last_wins import last_wins
from safetensors.torch import load_file
from test_resume import KILLER

COMMON = [
    "dataset=yolo", "dataset.data=data/shapes.yaml", *SMALL, "recipe.epochs=3", "recipe.nbs=8", "recipe.warmup=0.5",
    "recipe.close_mosaic=1", "teacher=yolov8n", "teacher.recipe.epochs=1", "teacher.recipe.batch_size=4", "engine.threads=1",
]  # fmt: skip
CASES = {  # overrides, and the step of the kill; an epoch has 3, and a step of the optimiser takes 2
    "in the second epoch": (["method=[cwd,yolo_boxes]"], 5),
    "in the first epoch": (["method=[cwd,yolo_boxes]"], 2),
    "online": (["method=yolo_mutual"], 7),
}


def run(folder: Path, *arguments: str, kill_at: int = 0) -> subprocess.CompletedProcess:
    (folder / "killer.py").write_text(KILLER)
    extra = ["plugins=[killer]"] if kill_at else []
    environment = {**os.environ, "KILL_AT": str(kill_at), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kdrun", *last_wins([*COMMON, *arguments, *extra])]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def student(folder: Path) -> Path:
    """The folder of the distilled run."""
    return next(path for path in folder.glob("outputs/runs/*/*/*/*/seed0") if path.parts[-4] != "none")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, case: str) -> None:
    overrides, step = CASES[case]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        tiny(folder / "data")
    if "online" not in case:  # one teacher for both
        done = run(whole, "method=none", "student=yolov8n", "recipe.epochs=1", "recipe.nbs=64", "recipe.warmup=0.03",
                   "recipe.close_mosaic=10")  # fmt: skip
        assert done.returncode == 0, done.stderr
        shutil.copytree(whole / "outputs", killed / "outputs")
    done = run(whole, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    died = run(killed, *overrides, kill_at=step)
    assert died.returncode == -signal.SIGKILL
    again = run(killed, *overrides)
    assert again.returncode == 0, again.stdout + again.stderr
    one, other = student(whole), student(killed)
    for name in ("student.safetensors", "student-holdout.safetensors", "test_logits.safetensors"):
        mine, theirs = load_file(one / name), load_file(other / name)
        assert mine.keys() == theirs.keys()
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
    records = [json.loads((folder / "record.json").read_text()) for folder in (one, other)]
    for key in ("weights", "last", "best", "holdout", "student"):
        assert records[0][key] == records[1][key]
    assert records[1]["resumed"] == int(step > 3)
