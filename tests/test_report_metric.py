"""Reports of a metric of which a lower value is better: names, units, directions and tests follow the record."""

from __future__ import annotations

import json
import re

import pytest
from test_report import make
from test_report_command import write

from kdrun.cli import run
from kdrun.report.caption import caption
from kdrun.report.collect import collect
from kdrun.report.display import Display, display_of
from kdrun.report.learning import curve_window
from kdrun.report.pivot import tables, tables_by_student
from kdrun.report.render import markdown
from kdrun.report.strips import gain_chart, score_chart
from kdrun.report.style import table_styles
from kdrun.report.summary import text as summary
from kdrun.report.text import gain
from kdrun.runs.labels import run_name
from kdrun.tasks.metric import ACCURACY, Metric

RMSE = Metric("rmse", "RMSE", "px", higher_is_better=False)
NONE, KD, RKD = (3.2, 3.4, 3.3), (2.1, 2.2, 2.3), (4.2, 4.6, 4.4)  # kd is better, rkd is worse
COLUMN = "resnet14 -> resnet8"


def signal(method: str, seed: int, score: float) -> dict:
    """A record of a regression on signals."""
    record = make(method, seed, score, metrics=[RMSE.as_dict()], unit="signals", task="toy")
    record["best"] = {**record["last"], "epoch": 27, "score": score - 0.1}
    record["dataset"]["classes"] = []
    if record["teacher"]:
        record["teacher"]["score"] = 1.5
    return record


@pytest.fixture
def signals() -> list[dict]:
    scores = {"none": NONE, "kd": KD, "rkd": RKD}
    return [signal(method, seed, score) for method, each in scores.items() for seed, score in enumerate(each)]


def test_scores_have_the_unit_of_their_metric(signals):
    (table,) = tables(signals)
    lines = caption(table)
    assert lines[0].startswith("digits: 1,200 training and 597 test signals; ")
    assert lines[1] == "Test RMSE in px (lower is better), last epoch; mean ± standard deviation over seeds 0, 1, 2"
    assert lines[2].startswith("Difference to none, lower is better: mean difference per seed")
    assert lines[2].endswith("(covers seeds, not test signals)")
    assert "2.2 ± 0.1" in markdown([table])
    assert gain(table.cells["kd"][COLUMN]).startswith("-1.1 [-1.3")
    text = summary(signals)
    assert "test RMSE in px" in text
    assert "%" not in text.replace("95 % interval", "")


def test_the_best_row_has_the_lowest_score(signals):
    (table,) = tables(signals)
    cells, styles = table.column(COLUMN), table_styles(table)
    assert [strip.label for strip in score_chart(table, cells, styles).strips] == [
        "teacher resnet14",
        "kd",
        "none",
        "rkd",
    ]
    assert [strip.label for strip in gain_chart(table, cells, styles).strips] == ["kd", "rkd"]
    assert score_chart(table, cells, styles).axis == "test RMSE (px)"


def test_the_page_calls_a_lower_score_better(signals, tmp_path, capsys):
    write(tmp_path / "runs", *signals)
    for folder in (tmp_path / "runs").iterdir():
        score = json.loads((folder / "record.json").read_text())["last"]["score"]
        points = [{"stage": "distil", "epoch": e, "test": {"score": score + 40 * 0.5**e}} for e in range(1, 31)]
        (folder / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    arguments = ["report", str(tmp_path / "runs"), "--format", "html", "--plots", str(tmp_path / "plots")]
    assert run(arguments) == 0
    text = re.sub(r"<[^>]*>", "", capsys.readouterr().out)
    for words in (
        "Best mean: kd, 2.2 ± 0.1 px (3 seeds).",
        "The teacher resnet14: 1.5 px.",
        "Significantly better than the student alone: kd.",
        "Significantly worse: rkd.",
        "Test RMSE, last epoch, best first.",
        "Test RMSE (px) per epoch.",
    ):
        assert words in text, words
    assert (tmp_path / "plots/digits-resnet14-resnet8-rmse.png").is_file()


def test_one_seed_of_such_a_metric_has_no_interval_and_no_test(signals, tmp_path):
    """Counts of right answers alone have a binomial error and McNemar's test."""
    write(tmp_path, *(record for record in signals if record["seed"] == 0))
    (table,) = tables(collect([tmp_path]).records)
    cell = table.cells["kd"][COLUMN]
    assert (cell.equal, cell.p, cell.test) == (None, None, "")
    strips = score_chart(table, table.column(COLUMN), table_styles(table)).strips
    assert {strip.low for strip in strips} == {None}


def test_the_worse_half_of_a_curve_may_leave_the_axis():
    """For an error that is the upper side, and a teacher far below is not shown: the mirror image of an accuracy."""
    values = [[[50.0], [30.0], [20.0], [12.0], [11.0], [10.0]]]
    up, down = Display(ACCURACY), Display(RMSE)
    low, high = curve_window(values, [], down)
    assert low < 10 < 12 < high < 20
    assert curve_window(values, [-50.0], down) == (low, high)
    assert curve_window(values, [9.5], down)[0] < 9.5
    mirrored = [[[100 - value for value in at] for at in each] for each in values]
    assert curve_window(mirrored, [], up)[0] > 80


def test_a_sweep_and_a_report_have_the_same_numbers(signals):
    """The closing table of a sweep is a table of `kdrun report` with one column."""
    (whole,), (alone,) = tables(signals), tables_by_student(signals)
    for label, line in whole.cells.items():
        (cell,) = line.values()
        (other,) = alone.cells[label].values()
        assert (cell.mean, cell.sd, cell.gain, cell.low, cell.high, cell.p) == (
            other.mean, other.sd, other.gain, other.low, other.high, other.p,
        )  # fmt: skip


def test_a_run_has_one_name():
    assert run_name(make("rkd+kd", 2, 0.9)) == run_name((["rkd", "kd"], "resnet8", 2)) == "rkd+kd resnet8 seed 2"
    labelled = make("kd", 0, 0.9)
    labelled["student"]["label"] = "small"
    assert run_name(labelled) == "kd small seed 0"
    assert display_of(labelled) == Display(ACCURACY, "images")
