"""What the README, docs/text.md and docs/detection.md tell a newcomer to write and to run works as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from kdrun.tasks.detection.data.shapes import write

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
TEXTS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "text.md").read_text(), flags=re.DOTALL)
BOXES = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "detection.md").read_text(), flags=re.DOTALL)
SHORT = ["recipe.epochs=1", "teacher.recipe.epochs=1", "engine.threads=1"]  # added to every command, to save time


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the README shows, a tree of images, a folder of texts, and images with boxes."""
    root = tmp_path_factory.mktemp("desk")
    write(root / "cells", {"train": 10, "val": 4, "test": 6}, side=64)
    for _, block in BLOCKS:
        first = block.partition("\n")[0]
        if re.fullmatch(r"# \S+\.(py|yaml)", first):
            file = root / first.removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)
    (root / "my_texts").mkdir()
    for split, count in (("train", 40), ("test", 10)):
        rows = [f'"A film, number {i}.",{"positive" if i % 2 else "negative"}' for i in range(count)]
        (root / "my_texts" / f"{split}.csv").write_text("\n".join(["sentence,label", *rows]) + "\n")
    draw = np.random.default_rng(0)
    for split, count in (("train", 70), ("test", 5)):
        for label in ("cat", "dog"):
            (root / "my_images" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 255, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "my_images" / split / label / f"{i}.png")
    return root


def commands(words: str, blocks: list[tuple[str, str]] = BLOCKS) -> list[str]:
    """The commands of a page that hold these words."""
    lines = "\n".join(block for language, block in blocks if language == "bash").replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if words in line]


@pytest.mark.parametrize("words", ["dataset=image_folder", "student=import", "plugins="])
def test_bring_your_own(words: str, desk: Path) -> None:
    """Images, a model and a method of one's own: files and command straight from the README."""
    (line,) = commands(words)
    arguments = shlex.split(line)[1:]
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments, *SHORT],
        cwd=desk, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "record   outputs/runs/" in done.stdout


def test_texts_of_your_own(desk: Path) -> None:
    """The command of docs/text.md for a folder of texts and random models, and the lines that load its student."""
    line = next(line for line in commands("dataset.root=my_texts", TEXTS) if "student.hidden_size" in line)
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", *shlex.split(line)[1:], *SHORT],
        cwd=desk, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = desk.glob("outputs/runs/my_texts/kd/*/*/seed0")
    (block,) = (block for language, block in TEXTS if language == "python" and "predict" in block)
    source = re.sub(r'kdrun\.load\(".*?"\)', f"kdrun.load({str(folder)!r})", block)
    single = "\n".join(
        line for line in source.splitlines() if '("A question?' not in line
    )  # it was not trained on pairs
    names: dict[str, Any] = {}
    exec(single, names)
    (first, share), _ = names["run"].student.predict(["A warm, funny film.", "Two hours too long, and dull."])
    assert first in ("negative", "positive")
    assert 0.5 <= share <= 1


@pytest.mark.slow
def test_boxes_of_your_own(desk: Path) -> None:
    """The first command of the README for a data yaml, and the lines of docs/detection.md that use its student."""
    pytest.importorskip("ultralytics")
    line = next(line for line in commands("dataset.data=cells/cells.yaml") if line.endswith("method=cwd"))
    small = ["dataset.imgsz=64", "recipe.batch_size=4", "teacher.recipe.batch_size=4"]
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", *shlex.split(line)[1:], *SHORT, *small],
        cwd=desk, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = desk.glob("outputs/runs/cells/cwd/yolov8s-yolov8n/*/seed0")
    (block,) = (block for language, block in BOXES if language == "python")
    source = re.sub(r'kdrun\.load\(".*?"\)', f"kdrun.load({str(folder)!r})", block).replace(
        '"cells/', f'"{desk}/cells/'
    )
    names: dict[str, Any] = {}
    exec(source, names)
    assert names["boxes"].shape[1] == 6
    assert names["run"].student.classes == ["red", "white", "platelet"]


@pytest.mark.parametrize("blocks", [BLOCKS, TEXTS, BOXES], ids=["README", "docs/text.md", "docs/detection.md"])
def test_every_command_composes(blocks: list[tuple[str, str]], desk: Path) -> None:
    """Every kdrun command of the page names keys and choices that exist."""
    for line in commands("kdrun ", blocks):
        arguments = shlex.split(line.partition("&&")[2] or line)
        if arguments[0] != "kdrun" or "=" not in " ".join(arguments):
            continue
        arguments = [a for a in arguments[1:] if a not in ("-m", "plan")]
        one = [re.sub(r"=(tag|interval|range)\(.*\)", "=2", a) for a in arguments]
        swept = [re.sub(r"=([\w.]+),.*", r"=\1", a) for a in one]  # one job of a sweep
        done = subprocess.run(
            [sys.executable, "-m", "kdrun", *swept, "--cfg", "job"],
            cwd=desk,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, (line, done.stderr)


def test_losses_in_a_loop_of_ones_own() -> None:
    """The README's lines for a loop of one's own run as they stand."""
    (block,) = (block for language, block in BLOCKS if language == "python" and "rkd_angle" in block)
    s_embedding, t_embedding = torch.randn(8, 16, requires_grad=True), torch.randn(8, 24)
    names = {"F": F, "logits": torch.randn(8, 3, requires_grad=True), "labels": torch.arange(8) % 3}
    names |= {"s_embedding": s_embedding, "t_embedding": t_embedding}
    exec(block, names)
    names["loss"].backward()
    assert s_embedding.grad is not None
    assert s_embedding.grad.isfinite().all()
