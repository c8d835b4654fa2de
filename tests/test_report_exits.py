"""The curve of early exit in reports: what is read from records, the picture, and the section of the page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml

import pytest
from test_html import Reader, sweep
from test_report import make

from kdrun.cli import run
from kdrun.report.exits import exit_chart
from kdrun.report.page.page import page
from kdrun.report.pivot import tables
from kdrun.report.style import table_styles


def details(seed: int, threshold: float = 0.1, **changed) -> dict:
    """Four layers at three thresholds; a later seed is faster."""
    return {
        "threshold": threshold, "thresholds": [0.0, 0.1, 0.5], "scores": [0.9, 0.89, 0.8 + 0.01 * seed],
        "speedups": [0.95, 1.5 + seed, 3.0 + seed], "over_full": [1.0, 1.6, 3.2], "alone": [0.9, 2.5, 4.5], "flops_share": [1.0, 0.7, 0.3],
        "layers": [[0, 0, 0, 1], [0.5, 0.25, 0, 0.25], [1, 0, 0, 0]], "teacher_score": 0.9, "batch_size": 32, "threads": 1, **changed,
    }  # fmt: skip


def exiting(seeds: int = 2, **changed) -> list[dict]:
    return [make("early_exit", seed, 0.89, details={"early_exit": details(seed, **changed)}) for seed in range(seeds)]


def chart(records: list[dict]):
    (table,) = tables(records)
    (column,) = table.columns
    return exit_chart(table, table.column(column), table_styles(table))


def test_means_over_seeds() -> None:
    drawn = chart([*sweep(), *exiting()])
    (line,) = drawn.lines
    assert line.label == "early_exit"
    assert [point.threshold for point in line.points] == [0.0, 0.1, 0.5]
    assert [point.score for point in line.points] == pytest.approx([90, 89, 80.5])
    assert [point.speedup for point in line.points] == pytest.approx([0.95, 2.0, 3.5])
    assert [point.depth for point in line.points] == pytest.approx([4, 2, 1])
    assert (line.own, line.seeds, drawn.batches) == (1, 2, [32])
    assert [label for label, _ in drawn.teachers] == ["teacher resnet14"]


def test_only_thresholds_that_all_seeds_have_and_whole_details() -> None:
    short = make("early_exit", 2, 0.89, details={"early_exit": details(2, thresholds=[0.0, 0.1, 0.7])})
    broken = make("early_exit", 3, 0.89, details={"early_exit": details(3, layers=[])})
    (line,) = chart([*exiting(), short, broken]).lines
    assert [point.threshold for point in line.points] == [0.0, 0.1]
    assert line.seeds == 3
    assert chart([broken]) is None


def test_records_without_early_exit_have_no_curve() -> None:
    assert chart(sweep()) is None
    assert "Early exit" not in page(tables(sweep()), [], sweep())


def test_the_page_has_the_curve_and_a_table() -> None:
    records = [*sweep(), *exiting()]
    text = page(tables(records), [], records)
    read = Reader(text)
    words = " ".join(read.parts)
    assert "Early exit: how fast at which score?" in words
    assert "batches of 32, one thread" in words
    marks = [a for tag, a in read.tags if tag == "path" and "stroke-width" in (a.get("style") or "")]
    assert len(marks) == 3
    assert sum("stroke-width:12" in mark["style"] for mark in marks) == 1
    for number in ("80.50", "3.50", "4.50", "30.00", "50 25 0 25"):
        assert number in words


def test_a_picture_among_the_plots(tmp_path, monkeypatch, capsys) -> None:
    for record in exiting():
        folder = tmp_path / "runs" / f"exit{record['seed']}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    assert run(["report", "runs", "--format", "csv", "--plots", "plots"]) == 0
    pictures = sorted((tmp_path / "plots").glob("*-early-exit.*"))
    assert [path.suffix for path in pictures] == [".png", ".svg"]
    xml.parse(pictures[1])
    written = pictures[1].read_text()
    assert "<!-- speed-up over the teacher (measured) -->" in written
    assert "<!-- early_exit  80.50 -->" in written
    first = pictures[1].read_bytes()
    assert run(["report", "runs", "--format", "csv", "--plots", "plots"]) == 0
    assert pictures[1].read_bytes() == first
