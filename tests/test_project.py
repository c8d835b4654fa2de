"""kdrun.yaml: a project says once what its commands share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdrun.config import project
from kdrun.errors import KdrunError

METHOD = """
from kdrun.methods import Method, register

@register
class Own(Method):
    \"\"\"A method of the project.\"\"\"
    teacher = "none"

    def loss(self, student, teacher, batch):
        return {"size": student.logits.square().mean()}
"""


def kdrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project with a method of its own, and a subfolder to work in."""
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "conf/method/own.yaml").write_text("own:\n  weights: {size: 0.01}\n")
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "kdrun.yaml").write_text("config_dir: conf\nplugins: [mine]\noutputs: results\nthreads: 1\n")
    (tmp_path / "notes/today").mkdir(parents=True)
    return tmp_path


def test_a_project_is_found_from_its_subfolders(place: Path) -> None:
    """Its method trains without a flag, its outputs lie below the project, and the record's command says all of it."""
    done = kdrun(
        place / "notes/today", "method=own", "dataset=digits", "recipe=quick", "recipe.epochs=1", "student=resnet8"
    )
    assert done.returncode == 0, done.stderr
    (file,) = place.glob("results/runs/digits/own/*/*/seed0/record.json")
    command = json.loads(file.read_text())["command"]
    assert f"--config-dir {place}/conf" in command
    assert "plugins=[mine]" in command
    assert "engine.threads=1" in command
    assert not (place / "notes/today/outputs").exists()
    report = kdrun(place / "notes/today", "report", "--format", "csv")
    assert report.returncode == 0, report.stderr
    assert "own" in report.stdout


def test_the_lists_show_the_projects_own(place: Path) -> None:
    assert "A method of the project." in kdrun(place / "notes", "methods").stdout


def test_a_method_of_the_project_is_checked_from_a_subfolder(place: Path) -> None:
    done = kdrun(place / "notes/today", "check", "method=own")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "own keeps the contract"


def test_the_command_line_wins() -> None:
    settings = {"config_dir": "/a", "plugins": ["m"], "outputs": "/o", "threads": 2}
    assert project.with_settings(["method=kd"], settings) == [
        "--config-dir", "/a", "method=kd", "plugins=[m]", 'outputs="/o"', "engine.threads=2",
    ]  # fmt: skip
    own = ["--config-dir", "/b", "plugins=[n]", "outputs=x", "engine.threads=1"]
    assert project.with_settings(own, settings) == own


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plugin: [mine]", "has no key 'plugin'. Did you mean plugins?"),
        ("plugins: mine", "plugins is 'mine'; it must be a list of modules"),
        ("threads: many", "threads is 'many'; it must be torch's threads"),
        ("- a", "must hold keys with values"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "kdrun.yaml").write_text(text)
    with pytest.raises(KdrunError) as caught:
        project.read(tmp_path / "kdrun.yaml")
    assert words in str(caught.value)
    assert str(tmp_path / "kdrun.yaml") in str(caught.value)
