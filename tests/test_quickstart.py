"""The first command of the README, for real but for one epoch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHORT = ["recipe.epochs=1", "teacher.recipe.epochs=1"]


@pytest.fixture
def quickstart(tmp_path):
    def run(name: str = "quickstart") -> str:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "kdrun", f"experiment={name}", *SHORT],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    return run


def test_quickstart_in_an_empty_folder(quickstart, tmp_path):
    said = quickstart()
    assert said.startswith("6 runs asked for: 2 method x 3 seed; 1 teacher to train first\n  teacher   resnet20")
    assert said.count("done in") == 6
    for words in (
        "digits 1,200/597 train/test",
        "-> resnet8",
        "gain over none",
        "\nnone    ",
        "\nkd      ",
        "\nteacher ",
        "\ncurves   outputs/quickstart/curves.png\n",
        "\nruns     outputs/runs/digits\n",
        "\nnext     kdrun method=rkd teacher=resnet110 student=resnet20",
    ):
        assert words in said
    assert (tmp_path / "outputs/quickstart/curves.png").read_bytes().startswith(b"\x89PNG")
    again = quickstart()
    assert again.count("already done") == 6
    table, again_table = (text.partition("digits ")[2].partition("\nnext ") for text in (said, again))
    assert table[0] == again_table[0]
    assert "about" in table[2]  # what the next command costs here: measured, so another figure each time
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]


@pytest.mark.slow
def test_detection_quickstart_in_an_empty_folder(quickstart, tmp_path):
    text = quickstart("detection_quickstart")
    assert text.count("done in") == 6
    for words in (
        "  teacher   yolov8n",
        "yolo_boxes+yolo_logits yolov5nu seed 2",
        "shapes 128/24/48 train/holdout/test | yolov8n -> yolov5nu",
        "test mAP50-95 in %",
        "gain over none",
        "\ncurves   outputs/detection_quickstart/curves.png\n",
    ):
        assert words in text
    assert quickstart("detection_quickstart").count("already done") == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]


@pytest.mark.slow
def test_text_quickstart_in_an_empty_folder(quickstart, tmp_path):
    text = quickstart("text_quickstart")
    assert text.startswith("6 runs asked for: 2 method x 3 seed; 1 teacher to train first\n")
    assert text.count("done in") == 6
    for words in (
        "  teacher   bert-L4-H64",
        "  student   kd bert-L2-H32 seed 2",
        "reviews 3,000/1,000 train/test | bert-L4-H64 -> bert-L2-H32",
        "gain over none",
        "\ncurves   outputs/text_quickstart/curves.png\n",
    ):
        assert words in text
    assert quickstart("text_quickstart").count("already done") == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]
