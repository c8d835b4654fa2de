"""The verbs and flags of the command that train nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdrun import __version__
from kdrun.config.registry import METHODS, MODELS
from kdrun.config.schema import method_names


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The installed command, telling which modules it imported."""
    program = "import sys; from kdrun.cli import run; code = run(sys.argv[1:]); "
    program += "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.parametrize(
    "arguments", [["methods"], ["models"], ["--version"], ["--help"], ["--cfg", "job"]], ids=" ".join
)
def test_answers_without_torch(arguments: list[str]) -> None:
    """Looking around costs no import of torch."""
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split()[-1] == "False"
    assert done.stdout


def test_lists_name_everything() -> None:
    """Every method and model is in its list, and in the help."""
    methods, models, help_text = (command(word).stdout for word in ("methods", "models", "--help"))
    assert all(name in methods for name in METHODS.entries())
    assert all(name in models for name in MODELS.entries())
    assert all(name in help_text for name in (*method_names(), *MODELS.entries()))
    assert command("--version").stdout == f"kdrun {__version__}\n"


def test_completion_knows_the_choices() -> None:
    """Methods from the yamls and models from the registry."""
    assert "method=rkd" in command("-sc", "query=bash", COMP_LINE="kdrun method=r").stdout
    assert "teacher=resnet110" in command("-sc", "query=bash", COMP_LINE="kdrun teacher=resnet1").stdout


def test_flags_may_stand_after_overrides(tmp_path: Path) -> None:
    """`kdrun method=kd -m seed=0,1` is what people type; Hydra alone refuses it."""
    done = command("dataset=digits", "--cfg", "job", "method=rkd")
    assert done.returncode == 0
    assert "rkd" in done.stdout


def test_a_plan_needs_a_sweeper_that_plans() -> None:
    """Another sweeper would train. A bare `kdrun plan` asks for nothing, and shows the help."""
    done = command("plan", "hydra/sweeper=basic", "seed=0")
    assert done.returncode == 1
    assert "kdrun plan needs kdrun's own sweeper; leave out hydra/sweeper=basic" in done.stderr
    assert command("plan").stdout.startswith("kdrun: knowledge distillation experiments")
