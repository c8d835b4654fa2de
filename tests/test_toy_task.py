"""A task that lives outside kdrun (tests/toy_task): it trains, resumes, sweeps, searches and reports through the same command."""

from __future__ import annotations

import csv
import io
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

TOY = Path(__file__).parent / "toy_task"
COMMON = [
    "plugins=[signals]", "dataset=signals", "recipe=quick", "recipe.epochs=3", "recipe.batch_size=16", "recipe.lr=0.003",
    "student=signal_net", "student.width=4", "teacher=signal_net", "teacher.recipe.epochs=6", "engine.threads=1",
    "engine.precision=fp32",
]  # fmt: skip
METHODS = ("none", "logits", "mimic", "rkd")


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The real command, with the task's module on the path as a user's own would be."""
    path = os.pathsep.join([str(TOY), str(kdrun.PACKAGE.parent)])
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    flags = [argument for argument in arguments if argument == "-m"]
    overrides = last_wins([*COMMON, *(argument for argument in arguments if argument != "-m")])
    return command(folder, *flags, "--config-dir", str(TOY / "conf"), *overrides, **environment)


def records_below(folder: Path) -> list[dict]:
    return [records.read(path.parent) for path in sorted(folder.rglob("record.json"))]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods and three seeds, with one teacher."""
    root = tmp_path_factory.mktemp("swept")
    done = train(root, "-m", f"method={','.join(METHODS)}", "seed=0,1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "summary.txt").write_text(done.stdout)
    return root


def test_a_sweep_shows_the_metric_of_the_task(swept: Path) -> None:
    text = (swept / "summary.txt").read_text()
    assert "RMSE" in text
    assert "lower is better" in text
    assert "accuracy" not in text
    assert "%" not in text.replace("95 %", "").replace("5 %", "")


def test_best_is_the_lowest(swept: Path) -> None:
    for record in records_below(swept / "outputs" / "runs"):
        lines = (Path(swept) / "outputs").rglob("curves.jsonl")
        assert record["metrics"][0]["higher_is_better"] is False
        assert record["best"]["score"] <= record["last"]["score"]
        assert record["unit"] == "signals"
        assert lines
    for path in (swept / "outputs" / "runs").rglob("curves.jsonl"):
        scores = [json.loads(line)["test"]["score"] for line in path.read_text().splitlines()]
        record = records.read(path.parent)
        assert record["best"]["score"] == min(scores)
        assert record["best"]["epoch"] == 1 + scores.index(min(scores))
        assert record["best"]["metrics"] == {"rmse": min(scores)}


def test_the_teacher_is_trained_once_and_its_score_is_in_the_record(swept: Path) -> None:
    made = records_below(swept / "outputs" / "runs")
    taught = [record for record in made if record["teacher"]]
    assert len({record["teacher"]["sha256"] for record in taught}) == 1
    (teacher,) = {record["teacher"]["run_id"] for record in taught}
    (own,) = [record for record in made if record["id"] == teacher]
    assert own["last"]["score"] == pytest.approx(taught[0]["teacher"]["score"], rel=1e-5)
    assert all(0 < record["agreement"] <= 1 for record in taught)


@pytest.mark.parametrize("form", ["terminal", "md", "csv", "latex", "json", "html"])
def test_reports_have_the_unit_and_the_direction(swept: Path, form: str) -> None:
    done = command(swept, "report", "--format", form)
    assert done.returncode == 0, done.stderr
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert {row["method"] if "method" in row else row["row"] for row in rows} >= set(METHODS)
        return
    assert "RMSE" in done.stdout
    assert "accuracy" not in done.stdout.replace("accuracy per class", "").lower() or form == "html"
    assert "lower is better" in done.stdout


def test_a_finished_run_loads_with_the_task_s_preprocessing(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOY))
    (folder,) = (swept / "outputs/runs/signals/mimic").glob("*/*/seed0")
    run = kdrun.load(folder)
    out = run.student([torch.ones(12), torch.ones(20)])
    assert out.shape == (2, 1)
    assert torch.allclose(run.student([torch.ones(12)]), out[:1], atol=1e-6)  # padding changes nothing
    logits, labels = run.logits()
    assert ((logits - labels).square().mean().sqrt()).item() == pytest.approx(run.record["last"]["score"], rel=1e-5)
    assert f"last {run.record['last']['score']:.4g}" in repr(run)


def test_verify_finds_nothing_wrong(swept: Path) -> None:
    (folder,) = (swept / "outputs/runs/signals/logits").glob("*/*/seed0")
    done = command(swept, "verify", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["teacher=resnet8", "method=logits"], "teacher=resnet8 is a model of the task image|signals is of the task signals|signal_net"),
        (["dataset=digits", "method=none", "teacher=none"], "student=signal_net is a model of the task signals|digits is of"),
        (["method=kd"], "method 'kd' compares classes|method=logits"),
        (["method=sobolev"], "method 'sobolev' needs gradients with respect to the input|signal, mask"),
        (["method=none", "recipe.crop=reflect"], "recipe.crop is of the task image|signals"),
        (["method=none", "recipe.noize=1"], "no key 'noize' in recipe|Did you mean noise?"),
        (["method=none", "dataset.size=8"], "no key 'size' in dataset"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_task_is_one_line_before_anything_is_trained(tmp_path, arguments, words) -> None:
    done = train(tmp_path, *arguments)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in words.split("|"):
        assert part in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_changed_task_is_named(swept: Path, tmp_path: Path) -> None:
    """The record holds what the task's module means: other words in it change nothing, another loss does."""
    (folder,) = (swept / "outputs/runs/signals/logits").glob("*/*/seed0")
    assert len(records.read(folder)["code"]["task"]) == 64
    text = (TOY / "signals.py").read_text()
    (tmp_path / "words").mkdir()
    (tmp_path / "loss").mkdir()
    (tmp_path / "words" / "signals.py").write_text(text.replace("Signals in, a frequency out.", "In and out."))
    (tmp_path / "loss" / "signals.py").write_text(text.replace("return mean**0.5", "return 2 * mean**0.5"))
    for place, changed in (("words", False), ("loss", True)):
        path = os.pathsep.join([str(tmp_path / place), str(kdrun.PACKAGE.parent)])
        done = command(swept, "verify", str(folder), PYTHONPATH=path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("has changed since" in done.stdout and "task signals" in done.stdout) is changed, done.stdout


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, swept: Path) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    shutil.copytree(swept / "outputs/runs/signals/none", tmp_path / "outputs/runs/signals/none")
    killed = train(tmp_path, "method=mimic", "plugins=[signals,killer]", KILL_AT="10")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = train(tmp_path, "method=mimic")
    assert done.returncode == 0, done.stderr
    (mine,), (theirs,) = ((root / "outputs/runs/signals/mimic").glob("*/*/seed0") for root in (tmp_path, swept))
    assert records.read(mine)["resumed"] == 1
    for name in ("student.safetensors", "student-best.safetensors"):
        one, other = load_file(mine / name), load_file(theirs / name)
        assert all(one[key].equal(other[key]) for key in other), name
    assert records.read(mine)["best"] == records.read(theirs)["best"]


@pytest.mark.slow
def test_a_search_takes_the_lowest_error_on_the_holdout(tmp_path: Path) -> None:
    done = train(
        tmp_path, "-m", "method=none", "teacher=none", "hydra/sweeper=search", "hydra.sweeper.trials=4", "dataset.holdout=24",
        "protocol=holdout", "recipe.lr=tag(log, interval(0.001,0.1))",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    scores = [record["holdout"]["score"] for record in records_below(tmp_path / "outputs/runs")]
    assert len(scores) == 4
    best = next(line for line in done.stdout.splitlines() if line.startswith("best"))
    assert f"holdout {min(scores):.4g} of 4 trials" in best
