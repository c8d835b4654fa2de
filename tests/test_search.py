"""A search over hyper-parameters: on the holdout alone, with a study that goes on."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from last_wins import last_wins

from kdrun.errors import KdrunError
from kdrun.sweep.search import _distribution
from kdrun.sweep.search import _open as open_study
from kdrun.tasks.metric import ACCURACY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="pip install 'kdrun[search]'")

TINY = [
    "dataset=digits", "recipe=quick", "recipe.epochs=1", "teacher=resnet14", "teacher.recipe.epochs=1", "student=resnet8",
    "engine.threads=1", "hydra/sweeper=search", "method=kd",
]  # fmt: skip
HELD = ["dataset.holdout=200", "protocol=holdout"]
SPACE = ["method.kd.temperature=tag(log, interval(1,10))", "method.kd.weights.soft=0.1,0.9"]


def search(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdrun", "-m", *last_wins([*TINY, *arguments])],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_study_goes_on_and_the_holdout_decides(tmp_path):
    """Trials are runs; the best is that of the highest holdout score; two more trials are two more runs, at other points."""
    done = search(tmp_path, *SPACE, *HELD, "hydra.sweeper.trials=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "search   2 dimensions, 0 of 3 trials done   study outputs/study.db"
    assert not [line for line in done.stdout.splitlines() if line.startswith("  student") and "test" in line]
    again = search(tmp_path, *SPACE, *HELD, "hydra.sweeper.trials=5", "hydra.sweeper.at_once=2")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0] == "search   2 dimensions, 3 of 5 trials done   study outputs/study.db"
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/digits/kd/**/record.json")]
    assert len(found) == 5
    best = max(record["holdout"]["score"] for record in found)
    assert f"best     holdout {100 * best:.2f} of 5 trials" in again.stdout
    assert "no more" not in search(tmp_path, *SPACE, *HELD, "hydra.sweeper.trials=5").stdout
    told = subprocess.run(
        [sys.executable, "-m", "kdrun", "report", "outputs/study.db", "--format", "csv"], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(told.stdout)))
    assert len(lines) == 5
    assert float(lines[0]["holdout"]) == best
    assert {line["state"] for line in lines} == {"complete"}
    assert "method.kd.temperature" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SPACE, "a search uses the holdout and never the test set; add dataset.holdout=N protocol=holdout"),
        ([*HELD, "seed=0,1"], "a search over seeds only chooses the luckiest seed"),
        (HELD, "a search needs a dimension"),
        (
            [*HELD, "method.kd.temperature=interval(10,1)"],
            "method.kd.temperature=interval(10,1) is empty; write the lower end",
        ),
        (
            [*HELD, "method.kd.temperature=tag(log,interval(0,1))"],
            "method.kd.temperature=tag(log,interval(0,1)): a log",
        ),
        ([*HELD, "method.kd.temperature=range(0,0)"], "method.kd.temperature=range(0,0) is empty: the end of a range"),
        (
            [*HELD, "method.kd.temperature=tag(log,range(1,9))"],
            "method.kd.temperature=tag(log,range(1,9)): a range cannot",
        ),
        (
            [*HELD, *SPACE, "hydra.sweeper.trials=0"],
            "hydra.sweeper.trials is 0; it must be a whole number of 1 or more",
        ),
        ([*HELD, *SPACE, "hydra.sweeper.at_once=0"], "hydra.sweeper.at_once is 0; it must be"),
        ([*HELD, *SPACE, "hydra.sweeper.study=."], "hydra.sweeper.study=. cannot be opened (unable to open"),
        (
            [*HELD, *SPACE, "hydra.sweeper.study=/proc/x/y.db"],
            "hydra.sweeper.study=/proc/x/y.db cannot be opened (No such",
        ),
        ([*HELD, "method.kd.temprature=1,2"], "no key 'temprature' in method.kd. Did you mean temperature?"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(arguments, message, tmp_path):
    done = search(tmp_path, *arguments)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"kdrun: {message}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_that_is_no_study_is_named_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("no database, and longer than the header of one" * 3)
    with pytest.raises(KdrunError, match=r"notes.txt cannot be opened \(file is not a database\)"):
        open_study(str(tmp_path / "notes.txt"), "a", ACCURACY)
    assert (tmp_path / "notes.txt").read_text().startswith("no database")


@pytest.mark.parametrize(
    ("text", "low", "high", "step"),
    [("range(1,4)", 1, 3, 1), ("range(10,1,-2)", 2, 10, 2), ("range(0.5,2,0.5)", 0.5, 1.5, 0.5)],
)
def test_a_range_has_its_values_alone(text, low, high, step):
    (override,) = OverridesParser.create().parse_overrides([f"a={text}"])
    found = _distribution(override)
    assert (found.low, found.high, found.step) == (low, high, step)
