"""`kdrun check`: a sound method passes, and each broken promise is named; nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import torch
from kdrun.methods import Method, register
CALLS = [0]

@register
class Mine(Method):
    \"\"\"Pull the embeddings together.\"\"\"
"""
SOUND = """
    def loss(self, student, teacher, batch):
        return {"pull": (student.taps[0] - teacher.taps[0][:, :student.taps[0].shape[1]]).square().mean()}
"""
BROKEN = {
    "a random number of the process": (
        """
    def loss(self, student, teacher, batch):
        CALLS[0] += 1
        return {"pull": student.taps[0].square().mean() * CALLS[0]}
""",
        "the same seed gives the same losses",
    ),
    "a state that is no buffer": (
        """
    def build(self, pair):
        self.count = 0
    def loss(self, student, teacher, batch):
        return {"pull": student.taps[0].square().mean() * (1 + self.count)}
    def after_step(self):
        self.count += 1
""",
        "a run that goes on gives the next loss",
    ),
    "a loss that is not finite": (
        """
    def loss(self, student, teacher, batch):
        return {"pull": student.taps[0].square().mean() * float("inf")}
""",
        "every term is finite",
    ),
    "a teacher that drifts": (
        """
    def build(self, pair):
        self.run = pair.run_teacher
    def loss(self, student, teacher, batch):
        with torch.no_grad():
            for p in __import__("gc").get_objects():
                if isinstance(p, torch.nn.Linear) and not p.weight.requires_grad:
                    p.weight.add_(0.1)
        return {"pull": student.taps[0].square().mean()}
""",
        "the teacher stays as it is",
    ),
}


def check(folder: Path, body: str) -> subprocess.CompletedProcess:
    (folder / "conf/method").mkdir(parents=True)
    (folder / "mine.py").write_text(HEAD + body)
    (folder / "conf/method/mine.yaml").write_text("mine:\n  taps: [pooled]\n  weights: {pull: 0.1}\n")
    return subprocess.run(
        [sys.executable, "-m", "kdrun", "check", "method=mine", "--config-dir", "conf", "plugins=[mine]"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_sound_method_keeps_the_contract(tmp_path: Path) -> None:
    done = check(tmp_path, SOUND)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "mine keeps the contract"
    assert "mine.pull" in done.stdout  # with its share of the gradient
    assert "WRONG" not in done.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {"conf", "mine.py", "__pycache__"}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_promise_is_named(case: str, tmp_path: Path) -> None:
    body, promise = BROKEN[case]
    done = check(tmp_path, body)
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = [line for line in done.stdout.splitlines() if "WRONG" in line]
    assert any(promise in line for line in wrong), done.stdout


def test_what_cannot_be_checked_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdrun", "check", "method=kdd"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.startswith("kdrun: no method 'kdd'. Did you mean kd?")
    assert len(done.stderr.splitlines()) == 1
