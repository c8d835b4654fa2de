"""A run with a method and models of the user's: what comes after it knows them, and says when they have changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdrun.cli import run
from kdrun.config.registry import METHODS, MODELS
from kdrun.runs import record as records

METHOD = '''
from helper import POWER
from kdrun.methods import register
from kdrun.methods.kd import KD

@register
class Mine(KD):
    """Soft targets of my own."""
    def build(self, pair, *, share: float, **options):
        super().build(pair, **options)
    def loss(self, student, teacher, batch):
        return {"soft": POWER * super().loss(student, teacher, batch)["soft"]}
'''
NET = """
from torch import nn

def net(classes, width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
"""
YAML = "mine: {share: 0.5, temperature: 4.0, standardize: false, weights: {soft: 0.1}}\n"
ASKED = [
    "dataset=digits", "recipe=quick", "recipe.epochs=1", "engine.threads=1", "method=mine", "plugins=[mine]", "--config-dir", "conf",
    "student=import", "student.path=w:net", "teacher=import", "teacher.path=tea:net", "teacher.label=Tea", "dataset.label=Ten digits",
]  # fmt: skip


def kdrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "kdrun", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("project")
    (root / "conf" / "method").mkdir(parents=True)
    (root / "conf" / "method" / "mine.yaml").write_text(YAML)
    for name, text in {"mine": METHOD, "w": NET, "tea": NET.replace("8", "9"), "helper": "POWER = 1"}.items():
        (root / f"{name}.py").write_text(text)
    done = kdrun(root, *ASKED)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of the finished project to work in, without what other projects imported."""
    root = tmp_path / "project"
    shutil.copytree(trained[0], root)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    forget()
    known = [(registry, dict(registry.plugins)) for registry in (METHODS, MODELS)]
    yield root
    for registry, plugins in known:
        registry.plugins.clear()
        registry.plugins.update(plugins)
    forget()


def forget() -> None:
    """A process of its own would begin like this."""
    from kdrun.runs import source

    METHODS.plugins.pop("mine", None)
    for name in ("mine", "w", "tea", "helper"):
        sys.modules.pop(name, None)
    for cached in (source.module_sha256, source.method_sha256):
        cached.cache_clear()


def student(root: Path) -> Path:
    (found,) = (root / "outputs" / "runs").glob("*/mine/*/*/seed0")
    return found


def test_folders_screen_and_record_have_the_labels(trained):
    """outputs/runs/<dataset label>/<method>/<teacher label>-<student label>, the plan's lines, and the record."""
    root, screen = trained
    run_folder = student(root)
    assert run_folder.relative_to(root / "outputs/runs").parts[:3] == ("Ten-digits", "mine", "Tea-net")
    assert len(list((root / "outputs" / "runs").glob("Ten-digits/none/none-Tea/*/seed0/record.json"))) == 1
    assert re.search(r"^plan +Ten digits .* student net seed 0", screen, re.MULTILINE)
    assert re.search(r"^teacher +Tea \(seed 0\)", screen, re.MULTILINE)
    record = records.read(run_folder)
    records.validate(record)
    assert [record[role]["label"] for role in ("dataset", "teacher", "student")] == ["Ten digits", "Tea", "net"]
    assert record["code"]["student"] == record["identity"]["student"]["source"]
    assert len({record["code"]["student"], record["code"]["teacher"]}) == 2


def test_verify_imports_the_plugins_of_a_run(project, capsys):
    """In the project each source is compared, and each change of it is named."""
    assert run(["verify", str(student(project))]) == 0
    assert "the source is that of the record" in capsys.readouterr().out
    (project / "helper.py").write_text("POWER = 2")
    (project / "tea.py").write_text(NET.replace("8", "10"))
    forget()
    assert run(["verify", str(student(project))]) == 0
    assert "note   the source of mine, model tea:net has changed since" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", [None, "import nowhere_to_be_found", "def broken(:", "raise RuntimeError('not today')"]
)
def test_verify_checks_the_rest_without_a_plugin(text, project, capsys):
    """One that cannot be imported is one line that says where it was looked for; every other check is made."""
    (project / "mine.py").unlink() if text is None else (project / "mine.py").write_text(text)
    assert run(["verify", str(student(project))]) == 0
    said = capsys.readouterr().out.splitlines()
    (line,) = [line for line in said if "the source cannot be compared" in line]
    wanted = {None: str(project), "import nowhere_to_be_found": "nowhere_to_be_found", "def broken(:": "SyntaxError"}
    assert wanted.get(text, "not today") in line
    assert sum(line.strip().startswith("ok") for line in said) >= 6, said


@pytest.mark.slow
def test_load_knows_the_plugins_and_says_that_a_model_has_changed(project):
    """The student is built by today's source: where that is another than the trained one, a warning says so."""
    import warnings

    import torch

    from kdrun import load

    text = (
        "from kdrun.models import register\nfrom w import net\n\n@register\ndef my_net(classes, *, width: int = 8):\n"
    )
    text += "    return net(classes, width)\n"
    (project / "nets.py").write_text(text)
    done = kdrun(
        project, *ASKED[:4], "method=none", "plugins=[nets]", "student=my_net", "student.width=6", "outputs=other"
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (project / "other" / "runs").glob("digits/none/none-my_net/*/seed0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(folder).student(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
        assert repr(load(student(project))).startswith("Run(mine net seed 0")
    (project / "w.py").write_text(NET.replace("nn.ReLU()", "nn.Tanh()"))
    forget()
    with pytest.warns(UserWarning, match="the source of net has changed since .* was trained"):
        load(student(project))


@pytest.mark.slow
def test_another_source_is_another_run(project, capsys):
    """Edit tea.py, and its run is not taken for this one's teacher; put it back, or change a comment, and it is."""
    (project / "tea.py").write_text(NET.replace("8", "9") + "\n# a comment\n")
    assert "already done: mine net seed 0" in kdrun(project, *ASKED).stdout
    (project / "tea.py").write_text(NET.replace("8", "10"))
    done = kdrun(project, "plan", *ASKED)
    assert re.search(r"^ +teacher +\S+ .*to do", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert re.search(r"^ +student +mine .*to do", done.stdout, re.MULTILINE), done.stdout
    (project / "tea.py").write_text(NET.replace("8", "9"))
    other = [one for one in ASKED if ".label" not in one]
    assert "already done: mine" in kdrun(project, *other).stdout, "under its earlier name it is the same run"
    assert run(["diff", str(student(project)), str(student(project))]) == 0
    assert "no difference" in capsys.readouterr().out


def test_methods_and_models_list_plugins(project, capsys):
    """With plugins=[...]; without, what kdrun ships. --help answers in a few lines."""
    assert run(["methods", "plugins=[mine]"]) == 0
    assert re.search(r"^mine +Soft targets of my own\. \(mine\)", capsys.readouterr().out, re.MULTILINE)
    for verb in ("methods", "models"):
        for flag in ("--help", "-h"):
            assert run([verb, flag]) == 0
            assert len(capsys.readouterr().out.splitlines()) < 8
        assert run([verb, "plugins=[nomine]"]) == 1
        assert "It must be in the current folder" in capsys.readouterr().err
        assert run([verb, "extra"]) == 2
        assert f"'{verb}' takes plugins=[MODULE] alone" in capsys.readouterr().err
    forget()
    assert run(["methods"]) == 0
    assert "mine" not in capsys.readouterr().out
