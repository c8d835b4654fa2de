"""A method that needs two views of each image, and what the data was normalised with: through the real command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kdrun.runs import record as records

METHOD = """
from kdrun.methods import Method, register

@register
class Twins(Method):
    \"\"\"Two views of an image have one embedding.\"\"\"
    teacher = "none"
    needs = ("label", "input2")

    def build(self, pair):
        assert set(pair.data.preprocessing) == {"size", "mean", "std"}

    def loss(self, student, teacher, batch):
        assert batch["input2"].shape == batch["input"].shape
        assert not batch["input2"].equal(batch["input"])
        other = student.again(batch["input2"])
        return {"same": (student.taps[0] - other.taps[0]).square().mean()}
"""
YAML = "twins:\n  taps: [pooled]\n  weights: {same: 0.1}\n"


def test_a_method_may_ask_for_a_second_view(tmp_path: Path) -> None:
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "twins.py").write_text(METHOD)
    (tmp_path / "conf/method/twins.yaml").write_text(YAML)
    done = subprocess.run(
        [
            sys.executable, "-m", "kdrun", "--config-dir", "conf", "plugins=[twins]", "method=twins", "dataset=digits", "recipe=quick",
            "recipe.epochs=1", "student=resnet8", "engine.threads=1",
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("outputs/runs/digits/twins/*/*/seed0")
    assert records.read(folder)["status"] == "done"
