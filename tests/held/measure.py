"""Numbers that stay what they are while the code moves: `python tests/held/measure.py` writes them, test_held.py compares.

Everything goes through the real command, so that a move inside the package changes nothing here. Write them again only where
a commit explains why a number is another one now.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FORMATS = ("terminal", "md", "csv", "latex", "json", "html")
METHODS = ("kd", "fitnet", "ft", "crd", "dml", "sobolev", "bss", "[rkd,kd]")
# Four steps an epoch of 1,200 training images, in float32 and one thread.
RUN = [
    "dataset=digits", "recipe=quick", "recipe.epochs=1", "recipe.batch_size=300", "student=resnet8",
    "teacher=resnet14", "teacher.recipe.epochs=2", "teacher.allow_weak=true",
    "engine.device=cpu", "engine.precision=fp32", "engine.threads=1", "engine.log_every=1",
]  # fmt: skip


def kdrun(folder: Path, *arguments: str) -> str:
    """The real command in a process of its own; its standard output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command = [sys.executable, "-m", "kdrun", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def steps(folder: Path) -> dict[str, list[float]]:
    """The losses of every step by their names in TensorBoard: {"distil/loss/total": [...]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if "/loss/" in name and not name.startswith("eval/")]
    return {name: [point.value for point in events.Scalars(name)] for name in sorted(names)}


def run(place: Path, method: str) -> dict[str, Any]:
    """Train one short run of a method below `place`: its losses, and what its weights and its initial weights hash to."""
    kdrun(place, *RUN, f"method={method}")
    (file,) = (place / "outputs/runs/digits" / "+".join(sorted(method.strip("[]").split(",")))).glob(
        "*/*/seed0/record.json"
    )
    student = json.loads(file.read_text())["student"]
    return {"steps": steps(file.parent), "weights": student["sha256"], "initial": student["init_sha256"]}


def machine() -> str:
    """Bits depend on what computes them: torch's version and the kind of processor."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {name}"


def report(form: str) -> str:
    """The report of the committed benchmark in one format; of the page, the words and numbers that a reader sees, a line each."""
    text = kdrun(ROOT, "report", "results/cifar10-jpeg", "--format", form)
    if form != "html":
        return text
    text = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    lines = (html.unescape(part).strip() for part in re.split(r"<[^>]*>", text))
    return "".join(f"{line}\n" for line in lines if line)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        methods = {method: run(Path(folder), method) for method in METHODS}
    numbers = {"machine": machine(), "methods": methods}
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    for form in FORMATS:
        (HERE / f"report.{form}").write_text(report(form), encoding="utf-8")


if __name__ == "__main__":
    main()
