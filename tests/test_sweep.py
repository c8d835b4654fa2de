"""Sweeps: teachers first, a manifest, only what is missing under any launcher, and what a failed job does to the others."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from last_wins import last_wins

TINY = [
    "dataset=digits", "recipe=quick", "recipe.epochs=1", "teacher=resnet14", "teacher.recipe.epochs=1", "student=resnet8",
    "engine.threads=1",
]  # fmt: skip
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
has_joblib = pytest.mark.skipif(
    importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="pip install 'kdrun[joblib]'"
)


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "kdrun", "-m", *last_wins([*TINY, *arguments])],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def sweep(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def manifest(folder: Path) -> dict:
    return json.loads(sorted(folder.glob("outputs/sweeps/*/manifest.json"))[-1].read_text())


def records(folder: Path) -> dict[str, str]:
    """method+student -> status of every run below outputs."""
    found = {}
    for path in folder.glob("outputs/runs/**/record.json"):
        record = json.loads(path.read_text())
        found[f"{'+'.join(record['method'])} {record['student']['name']} {record['seed']}"] = record["status"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], pytest.param(JOBLIB, marks=has_joblib)], ids=["basic", "joblib"])
def test_teachers_come_first_and_the_rest_goes_on(launcher, tmp_path):
    """One teacher for all, before the students; a second start trains what was added alone; the manifest names every run."""
    status, out, err = sweep(tmp_path, "method=none,kd", "seed=0,1", *launcher)
    assert (status, err) == (0, ""), out + err
    lines = out.splitlines()
    assert lines[0] == "4 runs asked for: 2 method x 2 seed; 1 teacher to train first"
    assert lines[1].startswith("  teacher   resnet14")
    assert sum(line.startswith("  teacher") for line in lines) == 1
    runs = manifest(tmp_path)["runs"]
    assert [run["overrides"][-2:] for run in runs][:2] == [["method=none", "seed=0"], ["method=none", "seed=1"]]
    assert all(json.loads((Path(run["folder"]) / "record.json").read_text())["id"] == run["id"] for run in runs)

    status, out, err = sweep(tmp_path, "method=none,kd,at", "seed=0,1", *launcher)
    assert (status, err) == (0, ""), out + err
    assert out.splitlines()[0] == "6 runs asked for: 3 method x 2 seed; 4 done, 2 to do"
    assert out.count("already done") == 4
    assert out.count("done in") == 2
    assert "\nat                 2" in out


@pytest.mark.slow
def test_a_failed_job_leaves_the_others_alone_or_stops_them(tmp_path):
    """continue: the others are trained and the exit status is 3; stop: what comes after it is skipped, and says so."""
    status, out, err = sweep(tmp_path, "method=none", "seed=-1,0")
    assert status == 3
    assert "FAILED    none resnet8 seed -1" in out
    assert "seed is -1; it must be 0 or more" in out
    assert records(tmp_path) == {"none resnet8 0": "done"}
    assert err.splitlines() == ["1 done, 1 failed; the same command trains only what is missing"]

    status, out, err = sweep(tmp_path, "method=none", "seed=-1,1", "sweep.on_error=stop")
    assert status == 3
    assert "skipped     " in out
    assert "sweep.on_error=stop, and a job before it failed" in out
    assert records(tmp_path) == {"none resnet8 0": "done"}


@pytest.mark.slow
def test_a_sweep_folder_that_stays_forgets_that_it_was_stopped(tmp_path):
    fixed = ["hydra.sweep.dir=here", "method=none", "sweep.on_error=stop"]
    assert sweep(tmp_path, *fixed, "seed=-1")[0] == 3
    status, out, _ = sweep(tmp_path, *fixed, "seed=0")
    assert (status, "skipped" in out) == (0, False)


def test_a_search_is_not_planned_and_trains_nothing(tmp_path):
    arguments = [*TINY, "hydra/sweeper=search", "method=kd", "method.kd.temperature=interval(1,4)"]
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", "plan", *arguments, "dataset.holdout=100", "protocol=holdout"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "a search cannot be planned" in done.stderr
    assert not list(tmp_path.glob("**/record.json"))


@pytest.mark.slow
@has_joblib
@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["parent", "all"])
def test_a_killed_parent_is_taken_up_where_it_was(kill, tmp_path):
    """SIGKILL: started again, the sweep finishes what is missing, trains no run twice, and waits for workers that live on."""
    arguments = ["method=none,kd", "seed=0,1,2", "recipe.epochs=6", *JOBLIB]
    process = start(tmp_path, *arguments)
    for _ in range(600):
        if list(tmp_path.glob("outputs/runs/digits/none/none-resnet8/*/seed*/student.safetensors")):
            break
        time.sleep(0.1)
    kill(process.pid, signal.SIGKILL)
    process.wait()
    before = records(tmp_path)
    assert "done" in before.values()
    status, out, err = sweep(tmp_path, *arguments)
    assert (status, err) == (0, ""), out + err
    if kill is os.killpg:
        assert out.count("already done") == sum(state == "done" for name, state in before.items() if "resnet8" in name)
    assert set(records(tmp_path).values()) == {"done"}


@pytest.mark.slow
def test_phase_teacher_trains_the_teacher_alone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", *TINY, "method=kd", "phase=teacher"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert records(tmp_path) == {"none resnet14 0": "done"}
