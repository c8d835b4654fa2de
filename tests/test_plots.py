"""The pictures of tables: what is written, that it is the same again, and that no name breaks it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml

import pytest
from test_html import sweep
from test_report import make

from kdrun.cli import run
from kdrun.errors import KdrunError
from kdrun.report.curves import curves_of
from kdrun.report.pivot import interval, tables, teachers_of
from kdrun.report.plots import plots
from kdrun.report.stats import binomial_error, paired


def words(path) -> str:
    """What is written in an SVG: matplotlib draws letters as shapes and leaves the text as a comment."""
    return path.read_text(encoding="utf-8")


def test_every_table_gets_its_pictures(tmp_path, monkeypatch, capsys):
    sweep(tmp_path / "runs")
    sweep(tmp_path / "runs/wider", methods=("none", "kd"), student="resnet20")
    for path in (tmp_path / "runs/wider").glob("*/record.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "student": {**record["student"], "params": 272_474}}))
    monkeypatch.chdir(tmp_path)
    assert run(["report", "runs", "--format", "csv", "--plots", "plots"]) == 0
    shown = capsys.readouterr()
    assert "plots" not in shown.out  # a table on the screen stays one that a program can read
    assert shown.err == "plots    14 files in plots\n"
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    kinds = [f"resnet14-resnet{depth}-{kind}" for depth in (8, 20) for kind in ("accuracy", "curves", "time")]
    pictures = [f"digits-{name}" for name in ("parameters", *kinds)]
    assert names == {f"{name}.{kind}" for name in pictures for kind in ("png", "svg")}
    for path in (tmp_path / "plots").iterdir():
        if path.suffix == ".svg":
            xml.parse(path)
        else:
            assert path.read_bytes().startswith(b"\x89PNG")
    said = words(tmp_path / "plots/digits-resnet14-resnet8-accuracy.svg")
    for label in ("none", "kd", "rkd", "at"):
        assert f"<!-- {label}   9" in said
    assert "bar: 95 % interval of the mean" in said


def test_the_same_runs_give_the_same_pictures(tmp_path):
    shown = tables(sweep(tmp_path / "runs", methods=("none", "kd"), seeds=2))
    first, second = plots(shown, tmp_path / "a"), plots(shown, tmp_path / "b")
    assert [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_names_are_letters_and_never_formulas_or_paths(tmp_path):
    """$\\frac$ is no mathematics that matplotlib could stumble over, and ../ leads nowhere."""
    made = sweep(tmp_path / "runs", methods=("none", "kd"), seeds=2)
    for record in made:
        record["dataset"]["name"] = r"../../$\frac$ <x>"
        record["student"]["name"] = r"$\nothing{$_^"
        record["method"] = [r"$\x$ & <b>"] if record["method"] == ["kd"] else ["none"]
    for path in plots(tables(made), tmp_path / "plots"):
        assert path.parent == tmp_path / "plots"
        if path.suffix == ".svg":
            xml.parse(path)


def test_two_tables_of_one_name_do_not_share_a_file(tmp_path):
    made = sweep(methods=("none", "kd"), seeds=1)
    again = [{**r, "dataset": {**r["dataset"], "checksum": "ff"}, "group": r["group"] + "x"} for r in made]
    names = [path.name for path in plots(tables([*made, *again]), tmp_path)]
    assert len(names) == len(set(names)) == 8  # no folders: no curves; one student: nothing to draw against its size
    assert "digits-resnet14-resnet8-2-time.svg" in names


def test_one_run_is_enough_and_none_is_one_line(tmp_path):
    assert len(plots(tables([make("none", 0, 0.9)]), tmp_path)) == 4
    with pytest.raises(KdrunError, match="no plots to draw: no run is done"):
        plots(tables([make("kd", 0, 0.0, status="failed", error="fell over")]), tmp_path)


def test_intervals_say_what_they_cover(tmp_path):
    (table,) = tables([*sweep(methods=("kd",)), make("at", 0, 0.9)])
    kd, at = (line["resnet14 -> resnet8"] for line in table.cells.values())
    scores = kd.runs.scores("last")
    assert interval(kd, "last", 597) == (*paired(scores, [0.0] * 3), "seeds")
    half = 1.96 * binomial_error(0.9, 597)
    assert interval(at, "last", 597) == (0.9, pytest.approx(0.9 - half), pytest.approx(0.9 + half), "images")
    assert teachers_of([kd, at]) == [("resnet14", 0.9581)]
    assert curves_of(kd.runs) == ([], 3)
