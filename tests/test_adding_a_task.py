"""docs/adding-a-task.md: its code stands in the toy task, and its commands work as they are written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kdrun

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-a-task.md").read_text(encoding="utf-8")
CODE = (ROOT / "tests" / "toy_task" / "signals.py").read_text(encoding="utf-8")
YAML = (ROOT / "tests" / "toy_task" / "conf" / "dataset" / "signals.yaml").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [textwrap.dedent(block).strip() for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("block", blocks("python"))
def test_the_code_on_the_page_is_that_of_the_toy_task(block: str) -> None:
    """Part by part: a page may leave lines out between the parts that are separated by empty lines."""
    flat = [line.strip() for line in CODE.splitlines()]
    for part in re.split(r"\n\n+", block):
        lines = [line.strip() for line in part.splitlines()]
        present = any(flat[i : i + len(lines)] == lines for i in range(len(flat)))
        assert present, f"not in tests/toy_task/signals.py:\n{part}"


def test_the_yaml_on_the_page_is_that_of_the_toy_task() -> None:
    def keys(text: str) -> list[str]:
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    (block,) = blocks("yaml")
    assert keys(block) == keys(YAML)


@pytest.mark.slow
def test_the_commands_on_the_page_work(tmp_path: Path) -> None:
    (block,) = blocks("bash")
    _, *commands = block.splitlines()
    path = os.pathsep.join([str(kdrun.PACKAGE.parent)])
    for line in commands:
        words = shlex.split(line.replace("/tmp/signals", str(tmp_path)))
        assert words[0] == "kdrun"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT / "tests" / "toy_task",
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    assert "RMSE" in done.stdout
    assert "lower is better" in done.stdout
