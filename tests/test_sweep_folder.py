"""What a sweep does to the folder it is given, to the jobs it is asked for, and what its end does not depend on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from test_sweep import TINY, start
from test_sweep import sweep as run_sweep

from kdrun import cli
from kdrun.errors import KdrunError
from kdrun.runs.folder import WRITTEN
from kdrun.sweep import planning as sweep
from kdrun.sweep.folder import job_name, key_of, open_folder

KEYS = {"none": {"none"}, "kd": {"kd"}, "ls": {"kd"}, "rkd": {"rkd"}, "[rkd,kd]": {"rkd", "kd"}}


def config(folder: Path):
    return OmegaConf.create(
        {"hydra": {"sweep": {"dir": str(folder)}, "sweeper": {"_target_": "hydra_plugins.kdrun_sweeper.KdrunSweeper"}}}
    )


def test_a_users_folder_keeps_everything(tmp_path: Path) -> None:
    """Class folders 0, 1, 2 and files of other names stay; states of an earlier sweep alone are taken away."""
    for name in ("0/a.png", "1/b.png", "jobs.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    folder = open_folder(config(tmp_path))
    (folder / "jobs" / "3.json").write_text("{}")
    (folder / "jobs" / "stopped").touch()
    (folder / "jobs" / "mine.json").write_text("mine")
    open_folder(config(tmp_path))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "0/a.png", "1/b.png", "jobs.txt", "jobs/mine.json", "multirun.yaml", "notes.md",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["manifest.json", "curves.png", "jobs", "multirun.yaml"])
def test_files_of_a_sweeps_names_are_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(KdrunError, match=f"holds {name}"):
        open_folder(config(tmp_path))
    assert (tmp_path / name).read_text() == "mine"


T1, T2, LATE = "method.kd.temperature=1", "method.kd.temperature=2", "+method.kd.schedules.soft=x"


@pytest.mark.parametrize(
    ("jobs", "kept"),
    [
        ([["method=none", T1], ["method=none", T2], ["method=kd", T1]], [["method=none"], ["method=kd", T1]]),
        ([["method=ls", LATE], ["method=rkd", LATE]], [["method=ls", LATE], ["method=rkd"]]),  # ls is a variant of kd
        ([["method=[rkd,kd]", T1]], [["method=[rkd,kd]", T1]]),
        (
            [["method=none", "method.at.power=1"]],
            [["method=none", "method.at.power=1"]],
        ),  # in no job: composing refuses it
        ([["seed=0", T1]], [["seed=0", T1]]),
    ],
)
def test_a_methods_keys_apply_where_it_is_at_work(jobs: list, kept: list) -> None:
    assert sweep.for_its_methods(jobs, lambda name: KEYS[name]) == kept


def test_names_say_what_is_swept() -> None:
    jobs = [
        ["method=kd", "seed=0", f"method.kd.temperature={t}", "recipe.lr=1", *more]
        for t in (1, 2)
        for more in ([], ["+x.y=1"])
    ]
    composed = OmegaConf.create({"method": {"kd": {}}, "student": {"name": "resnet8"}, "seed": 0})
    differing = sweep._differing(jobs)
    assert differing == ["method.kd.temperature", "x.y"]
    names = [job_name(composed, [item for item in job if key_of(item) in differing]) for job in jobs]
    assert names[1] == "kd resnet8 seed 0 temperature=1 x.y=1"
    assert len(set(names)) == 4


@pytest.mark.parametrize(
    ("override", "methods", "name"),
    [
        ("method=fitnet", ["fitnet"], "fitnet resnet8 seed 0"),
        ("method=fitnet_joint", ["fitnet"], "fitnet resnet8 seed 0 method=fitnet_joint"),
        ("method=[rkd,kd]", ["rkd", "kd"], "rkd+kd resnet8 seed 0"),
    ],
)
def test_a_variant_has_a_name_of_its_own(override: str, methods: list, name: str) -> None:
    composed = OmegaConf.create({"method": {m: {} for m in methods}, "student": {"name": "resnet8"}, "seed": 0})
    assert job_name(composed, [override]) == name


def test_rerun_takes_away_what_a_run_writes_alone(tmp_path: Path) -> None:
    from kdrun.runs.folder import clear

    mine = [
        "notes.md",
        "extra.pt",
        "tb/mine.txt",
        "weights.safetensors",
        "student-old.safetensors",
        "peers.safetensors",
        ".x.tmp",
    ]
    theirs = [pattern.replace("[0-9]", "1").replace("*", "") for pattern in WRITTEN]
    for name in [*mine, *theirs]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    clear(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("outputs=~/x", "outputs=HOME/x"), ('outputs="~/x y"', 'outputs="HOME/x y"'), ("+a.b='~/x'", "+a.b='HOME/x'"),
        ("~seed", "~seed"), ("a=b~/c", "a=b~/c"), ("~/runs", "HOME/runs"), ("a='[x~/y]'", "a='[x~/y]'"),
    ],
)  # fmt: skip
def test_home_is_expanded(argument: str, expanded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "HOME")
    assert cli._expand_home(argument) == expanded


def test_a_bare_command_prints_help(tmp_path: Path) -> None:
    for arguments in ([], ["-m"]):
        done = subprocess.run(
            [sys.executable, "-m", "kdrun", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0
        assert done.stdout.startswith("kdrun: knowledge distillation experiments")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_broken_curve_costs_neither_the_table_nor_the_status(tmp_path: Path) -> None:
    """One run's curves.jsonl is broken and another job fails: the table, its failures and exit status 3 are there."""
    status, out, err = run_sweep(tmp_path, "method=none", "seed=0")
    assert status == 0, err
    (curve,) = tmp_path.glob("outputs/runs/**/curves.jsonl")
    curve.write_text("{broken")
    status, out, err = run_sweep(tmp_path, "method=none", "seed=0,-1")
    assert status == 3
    assert "\nnone   1" in out
    assert "1 done, 1 failed" in err


@pytest.mark.slow
def test_home_in_outputs_of_a_sweep(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", "-m", *TINY, "method=none", "seed=0", 'outputs="~/x"'],
        cwd=tmp_path, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
    assert sorted(path.name for path in (home / "x").iterdir()) == ["runs", "sweeps"]


@pytest.mark.slow
def test_two_searches_on_one_study(tmp_path: Path) -> None:
    """The second is refused with exit status 4, and the first finishes."""
    pytest.importorskip("optuna")
    arguments = [
        "hydra/sweeper=search", "method=kd", "method.kd.temperature=interval(1,4)", "dataset.holdout=200", "protocol=holdout",
        "hydra.sweeper.trials=3", "recipe.epochs=2",
    ]  # fmt: skip
    first = start(tmp_path, *arguments)
    assert first.stdout is not None
    assert first.stdout.readline().startswith("search ")  # it works on the study now
    status, _, err = run_sweep(tmp_path, *arguments)
    assert status == 4, err
    assert "another process works on this search" in err
    out, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
    assert "of 3 trials" in out
    assert "failed" not in out


def test_status_shows_a_stages_own_epochs(tmp_path: Path) -> None:
    """The line that the journal writes has them."""
    from test_report import make

    from kdrun.sweep.status import _progress

    record = make("fitnet", 0, 0.0, status="running")
    line = {"stage": "hints", "epoch": 3, "epochs": 6, "seconds": 2.0}
    (tmp_path / "curves.jsonl").write_text(json.dumps(line) + "\n")
    assert _progress(record, tmp_path)[0] == "epoch 3/6 of hints  eta 0:06"
    (tmp_path / "curves.jsonl").write_text(json.dumps({**line, "epochs": None}) + "\n")
    assert _progress(record, tmp_path)[0] == "epoch 3 of hints"
