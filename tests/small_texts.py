"""A tiny folder of texts, small transformers, and the real command, for tests that train."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from pathlib import Path

from last_wins import last_wins

import kdrun

FULL = 60  # training rows
TEST = 24
COMMON = [
    "dataset=text_files", "dataset.root=texts", "dataset.vocabulary=128", "dataset.max_length=16", "teacher.hidden_size=32",
    "teacher.num_hidden_layers=4", "teacher.num_attention_heads=2", "teacher.intermediate_size=64", "student.hidden_size=16",
    "student.num_hidden_layers=2", "student.num_attention_heads=2", "student.intermediate_size=32", "recipe.epochs=2",
    "recipe.batch_size=10", "recipe.lr=0.01", "teacher.recipe.epochs=6", "teacher.recipe.batch_size=10", "teacher.recipe.lr=0.003",
    "teacher.allow_weak=true", "engine.threads=1", "engine.precision=fp32",
]  # fmt: skip


def rows(count: int, seed: int) -> list[tuple[str, str, str]]:
    """(text, class, number from 0 to 6); the words say which."""
    draw, made = random.Random(seed), []
    for row in range(count):
        good, much = row % 2, draw.randrange(4)
        word = draw.choice((("bad", "dull", "awful"), ("good", "warm", "lovely"))[good])
        subject = draw.choice(("film", "plot", "cast", "story"))
        made.append(
            (
                " ".join(["the", subject, "is", *["very"] * much, word]),
                ("no", "yes")[good],
                str(3 + (much if good else -much)),
            )
        )
    return made


def texts(folder: Path) -> Path:
    """texts/train.csv and texts/test.csv with the columns sentence, label and stars."""
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", FULL, 0), ("test", TEST, 1)):
        with open(folder / "texts" / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("sentence", "label", "stars"), *rows(count, seed)])
    return folder


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """kdrun as a user calls it, in this folder."""
    known = {**os.environ, "PYTHONPATH": str(kdrun.PACKAGE.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Train on the folder's texts; of doubled overrides, the last counts."""
    flags = [argument for argument in arguments if argument == "-m"]
    overrides = last_wins([*COMMON, *(argument for argument in arguments if argument != "-m")])
    return command(folder, *flags, *overrides, **environment)


def only(root: Path, pattern: str) -> Path:
    """The folder of the one run that a pattern below outputs/runs/texts names."""
    (run,) = (root / "outputs/runs/texts").glob(pattern)
    return run
