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

pytestmark = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="pip install 'kdrun[search]'")

TINY = [
    "dataset=digits", "recipe=quick", "recipe.epochs=1", "teacher=resnet14", "teacher.recipe.epochs=1", "student=resnet8",
    "engine.threads=1", "hydra/sweeper=search", "method=kd",
]  # fmt: skip
HELD = ["dataset.holdout=200", "protocol=holdout"]
SPACE = ["method.kd.temperature=tag(log, interval(1,10))", "method.kd.weights.soft=0.1,0.9"]


def search(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdrun", "-m", *TINY, *arguments],
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
        (SPACE, "a search chooses on the holdout, never on the test set: say dataset.holdout=N protocol=holdout"),
        ([*HELD, "seed=0,1"], "a search over seeds picks the luckiest one"),
        (HELD, "a search needs a dimension"),
        ([*HELD, "method.kd.temprature=1,2"], "no key 'temprature' in method.kd. Did you mean temperature?"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_leaves_nothing(arguments, message, tmp_path):
    done = search(tmp_path, *arguments)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"kdrun: {message}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
