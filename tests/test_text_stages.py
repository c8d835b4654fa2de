"""Module replacing and early exit through the real command: a kill in each stage changes no bit; what a user gets from a run."""

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
from last_wins import last_wins
from safetensors.torch import load_file
from test_resume import KILLER

import kdrun
from kdrun.runs import record as records
from kdrun.tasks.text.models.exits import exits_of

COMMON = [
    "dataset=reviews", "teacher.num_hidden_layers=4", "teacher.hidden_size=32", "teacher.num_attention_heads=2",
    "student.init_from=teacher", "recipe.epochs=2", "recipe.batch_size=200", "recipe.lr=0.002", "teacher.recipe.epochs=4",
    "teacher.recipe.batch_size=50", "teacher.recipe.lr=0.003", "teacher.allow_weak=true", "engine.threads=1", "engine.precision=fp32",
]  # fmt: skip
THESEUS = ["method=theseus", "student.layers=2", "student.init=alternate"]
EXITS = ["method=early_exit", "student.exits=true"]
CASES = {  # name -> overrides, step of the kill; an epoch has 15
    "theseus, while modules are replaced": (THESEUS, 20),
    "theseus, the student alone": (THESEUS, 50),
    "early exit": (EXITS, 20),
}


def command(folder: Path, *arguments: str, kill_at: int = 0) -> subprocess.CompletedProcess:
    (folder / "killer.py").write_text(KILLER)
    extra = ["plugins=[killer]"] if kill_at else []
    environment = {
        **os.environ,
        "KILL_AT": str(kill_at),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(kdrun.PACKAGE.parent),
    }
    line = [sys.executable, "-m", "kdrun", *last_wins([*COMMON, *arguments, *extra])]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def run_of(root: Path, method: str) -> Path:
    (only,) = (root / "outputs/runs/reviews" / method).glob("*/*/seed0")
    return only


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both methods, uninterrupted, with one teacher."""
    root = tmp_path_factory.mktemp("whole")
    for overrides in (THESEUS, EXITS):
        done = command(root, *overrides)
        assert done.returncode == 0, done.stderr
    return root


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_kill_changes_no_bit(case: str, whole: Path, tmp_path: Path) -> None:
    overrides, step = CASES[case]
    shutil.copytree(whole / "outputs/runs/reviews/none", tmp_path / "outputs/runs/reviews/none")
    killed = command(tmp_path, *overrides, kill_at=step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = command(tmp_path, *overrides)
    assert done.returncode == 0, done.stderr
    method = overrides[0].partition("=")[2]
    mine, theirs = run_of(tmp_path, method), run_of(whole, method)
    assert records.read(mine)["resumed"] == 1
    for name in ("student.safetensors", "student-best.safetensors", "test_logits.safetensors"):
        one, other = load_file(mine / name), load_file(theirs / name)
        assert {*one} == {*other}
        assert all(one[key].equal(other[key]) for key in other), name
    lines = [[json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()] for run in (mine, theirs)]
    times = ("samples_per_s", "data_wait", "seconds")
    assert [{k: v for k, v in line.items() if k not in times} for line in lines[0]] == [
        {k: v for k, v in line.items() if k not in times} for line in lines[1]
    ]


@pytest.mark.slow
def test_stages_of_theseus_in_the_curves(whole: Path) -> None:
    """The hybrid is not scored: only the student alone is what a user gets."""
    lines = [json.loads(line) for line in (run_of(whole, "theseus") / "curves.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["test"] is not None) for line in lines] == [("replace", False)] * 2 + [
        ("distil", True)
    ] * 2
    assert {*lines[0]["loss"]} == {"total", "theseus.hybrid"}


@pytest.mark.slow
def test_a_run_with_exits_as_a_user_meets_it(whole: Path) -> None:
    """The score is that of the model at its threshold; kdrun.load gives this model, and another threshold needs no training."""
    run = kdrun.load(run_of(whole, "early_exit"))
    details, last = run.record["details"]["early_exit"], run.record["last"]["score"]
    assert details["scores"][details["thresholds"].index(0.1)] == pytest.approx(last)
    assert details["scores"][0] == pytest.approx(run.record["teacher"]["score"])
    assert sum(details["layers"][-1]) == pytest.approx(1)
    exits = exits_of(run.student)
    assert run.student.threshold == 0.1
    texts = ["a good film", "the plot is dull , and i hated it", "a wonderful story"] * 4
    run.student.threshold = 1
    exits.count()
    with torch.no_grad():
        early = run.student(texts)
    assert exits.count() == [12, 0, 0, 0]
    run.student.threshold = 0
    with torch.no_grad():
        late = run.student(texts)
    assert early.shape == late.shape == (12, 2)
    assert not torch.equal(early, late)


@pytest.mark.slow
def test_a_student_from_nowhere_is_one_line(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "outputs/runs/reviews/none", tmp_path / "outputs/runs/reviews/none")
    sizes = ["student.num_hidden_layers=4", "student.hidden_size=32", "student.num_attention_heads=2"]
    done = command(tmp_path, *EXITS, *sizes, "student.init_from=pretrained")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "the student's other weights are not the teacher's; say student.init_from=teacher" in line
