"""kdrun status, plan, verify and diff: on made-up records, and after a real sweep."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import make

from kdrun.cli import run
from kdrun.engine import record as records
from kdrun.report import status, verify

TINY = [
    "dataset=digits", "recipe=quick", "recipe.epochs=2", "teacher=resnet14", "teacher.recipe.epochs=1", "student=resnet8",
    "engine.threads=1",
]  # fmt: skip


def kdrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def line(stage: str, epoch: int, epochs: int | None = None) -> str:
    return json.dumps({"stage": stage, "epoch": epoch, "epochs": epochs, "seconds": 10.0, "test": {"score": 0.5}})


def folder_of(root: Path, name: str, record: dict, *lines: str, pid: int | None = None) -> Path:
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    records.write(folder, record)
    if lines:
        (folder / "curves.jsonl").write_text("\n".join(lines) + "\n")
    if pid is not None:
        holder = {"pid": pid, "host": socket.gethostname(), "since": "now"}
        (folder / ".holder.json").write_text(json.dumps(holder))
    return folder


# Status ------------------------------------------------------------------------------------------------------------------


def test_status_tells_what_lives_from_what_died(tmp_path, capsys):
    """Running with progress and eta, interrupted where the process is gone, the error of a failed run, not started, counts."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder_of(tmp_path, "a", make("kd", 0, 0.9))
    folder_of(
        tmp_path, "b", make("at", 0, 0.0, status="running"), line("distil", 10), line("distil", 12), pid=os.getpid()
    )
    folder_of(tmp_path, "c", make("sp", 0, 0.0, status="running"), line("distil", 3), pid=gone.pid)
    folder_of(tmp_path, "d", make("rkd", 0, 0.0, status="nan", error="loss became NaN at step 7"))
    folder_of(tmp_path, "e", make("crd", 0, 0.0, status="running"), pid=os.getpid())
    (tmp_path / "sweeps" / "now").mkdir(parents=True)
    asked = [
        {"overrides": ["method=kd"], "folder": str((tmp_path / "runs/a").resolve())},
        {"overrides": ["method=cc", "seed=1"], "folder": str((tmp_path / "runs/z").resolve())},
    ]
    (tmp_path / "sweeps" / "now" / "manifest.json").write_text(json.dumps({"runs": asked}))
    assert run(["status", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "running     at resnet8 seed 0   epoch 12/30  eta 3:00",
        "interrupted sp resnet8 seed 0   epoch 3/30  eta 4:30",
        "nan         rkd resnet8 seed 0  loss became NaN at step 7",
        "running     crd resnet8 seed 0  before its first epoch",
        "6 runs   2 running   1 done   1 interrupted   1 nan   1 not started   eta of what is running 3:00",
    ]


def test_status_of_a_torn_manifest_is_one_line(tmp_path, capsys):
    folder_of(tmp_path, "a", make("kd", 0, 0.9))
    (tmp_path / "sweeps" / "now").mkdir(parents=True)
    (tmp_path / "sweeps" / "now" / "manifest.json").write_text('{"runs": [')
    assert run(["status", str(tmp_path)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "manifest.json is truncated or not a manifest" in said


def test_watch_looks_again(tmp_path, monkeypatch, capsys):
    folder_of(tmp_path, "a", make("kd", 0, 0.9))
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", nap)
    assert run(["status", str(tmp_path), "--watch", "2"]) == 130
    assert naps == [2.0, 2.0]
    assert capsys.readouterr().out.count("1 run   1 done") == 2


# Plan, verify, diff: after a real sweep ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("swept")
    done = kdrun(root, "-m", *TINY, "method=none,kd", "seed=0")
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.slow
def test_plan_says_what_is_missing_and_trains_nothing(swept):
    before = sorted(swept.rglob("*"))
    done = kdrun(swept, "plan", *TINY, "method=none,kd,sp", "seed=0,1", "teacher=resnet14,resnet20")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "12 runs asked for: 3 method x 2 seed x 2 teacher; 3 done, 9 to do, 1 teacher to train first"
    assert sum("already done" in text for text in said) == 3
    assert any(text.startswith("  teacher   resnet20") for text in said)
    assert any(text.startswith("  student   kd resnet8 seed 1") and "runs like it)" in text for text in said)
    assert any(
        text.startswith("  student   sp resnet8 seed 0") and "other methods of this student)" in text for text in said
    )
    assert "in one process without 1 run of which nothing alike was trained here; about" in said[-1]
    assert sorted(swept.rglob("*")) == before
    single = kdrun(swept, "plan", *TINY, "method=kd", "seed=0")
    assert single.stdout.splitlines()[0] == "1 run asked for; 1 done, 0 to do"
    wrong = kdrun(swept, "plan", *TINY, "method=kdd")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("kdrun: no method 'kdd'. Did you mean kd?")


@pytest.mark.slow
def test_verify_finds_what_was_changed(swept, tmp_path, capsys):
    """Weights, curve and identity of another run are found out; an untouched run passes."""
    import shutil

    (source,) = swept.glob("outputs/runs/digits/kd/*/*/seed0")
    assert run(["verify", str(source)]) == 0
    assert capsys.readouterr().out.count("\n  ok ") == 5
    copy = tmp_path / "copy"
    for name, tamper, told in (
        ("student.safetensors", "student-best.safetensors", None),
        ("curves.jsonl", "cut", "curves.jsonl ends in the score of the record"),
        ("record.json", "seed", "id and group are the hashes of the identity"),
        ("student.safetensors", "other", "student.safetensors has the hash of the record"),
    ):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        if tamper == "cut":
            (copy / name).write_text((copy / name).read_text().splitlines()[0] + "\n")
        elif tamper == "seed":
            record = json.loads((copy / name).read_text())
            record["identity"]["seed"] = 7
            (copy / name).write_text(json.dumps(record))
        elif tamper == "other":
            (other,) = swept.glob("outputs/runs/digits/none/none-resnet8/*/seed0/student.safetensors")
            shutil.copy(other, copy / name)
        if told is not None:
            assert run(["verify", str(copy)]) == 1
            assert f"  WRONG  {told}" in capsys.readouterr().out


@pytest.mark.slow
def test_diff_says_what_differs(swept):
    (kd,) = swept.glob("outputs/runs/digits/kd/*/*/seed0")
    (none,) = swept.glob("outputs/runs/digits/none/none-resnet8/*/seed0")
    both = [records.read(path) for path in (kd, none)]
    told = verify.differences(*both, kd, none)
    assert any(text.startswith("configuration  method.kd.temperature: 4 | -") for text in told)
    assert any(text.startswith("curve          first apart at epoch") for text in told)
    assert not any("initial student" in text for text in told)  # one seed is one start
    assert verify.differences(both[0], both[0], kd, kd) == [
        "no difference in configuration, environment, results or curve"
    ]


@pytest.mark.parametrize(
    ("arguments", "message", "status_code"),
    [
        (["verify", "nowhere"], "nowhere has no record.json; give a run's folder", 1),
        (["diff", "a"], "the following arguments are required: B", 2),
        (["status", "nowhere"], "nowhere is no folder", 1),
        (["statsu"], "no verb 'statsu'. Did you mean status?", 2),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, status_code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == status_code
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("kdrun: ")
    assert message in said
