"""The pictures of tables: what is written, that it is the same again, and that no name breaks it."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as xml
from contextlib import contextmanager

import pytest
from test_html import sweep
from test_report import make

from kdrun.cli import run
from kdrun.errors import KdrunError
from kdrun.report.cells import interval
from kdrun.report.curves import curves
from kdrun.report.display import Display
from kdrun.report.learning import curve_window, read_curve
from kdrun.report.pivot import tables, teachers_of
from kdrun.report.plots import plots
from kdrun.report.rows import Row
from kdrun.report.stats import binomial_error, paired
from kdrun.report.strips import Strip, beyond, stacked, window
from kdrun.report.style import BASELINE, TEACHER, Style, apart, family, shade, styles_of, table_styles
from kdrun.report.teachers import Teacher
from kdrun.tasks import metric

ACCURACY = Display(metric.ACCURACY, "images")


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
    written = words(tmp_path / "plots/digits-resnet14-resnet8-accuracy.svg")
    for label in ("none", "kd", "rkd", "at"):
        assert f"<!-- {label} -->" in written
    assert "bar: 95 % interval of the mean" in written


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
    scores = kd.row.scores("last")
    assert interval(kd, "last", 597) == (*paired(scores, [0.0] * 3), "seeds")
    half = 1.96 * binomial_error(0.9, 597)
    assert interval(at, "last", 597) == (0.9, pytest.approx(0.9 - half), pytest.approx(0.9 + half), "samples")
    assert teachers_of([kd, at]) == [Teacher("resnet14", 0.9581, "last")]


# Looks -------------------------------------------------------------------------------------------------------------------

METHODS = [f"method{number}" for number in range(33)]


def styled(*methods: str) -> dict[str, Style]:
    """The styles of rows of these methods, in this order."""
    return styles_of({f"{m} #{i}": family(m, [Row(m, {0: make(m, 0, 0.9)})]) for i, m in enumerate(methods)})


def hue(colour: str) -> float:
    import colorsys

    return colorsys.rgb_to_hsv(*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)))[0]


def test_no_two_of_33_methods_share_a_colour():
    for number in (1, 2, 11, 12, 33):
        own = list(styled("none", *METHODS[:number]).values())
        assert len({one.day for one in own}) == len({one.night for one in own}) == number + 1
        assert own[0] == BASELINE
    beside = [
        (style.day, style.kind % 4, style.kind % 5) for style in styled(*METHODS, *(f"{m}b" for m in METHODS)).values()
    ]
    assert len(set(beside)) == 66  # more than there are: other dashes and marks tell them apart


def test_variants_of_a_method_are_shades_of_its_hue():
    """From pale to deep; neither they nor another method's variants share a colour."""
    rows = [method for method in METHODS for _ in range(5)]
    own = styled(*rows)
    assert len({one.day for one in own.values()}) == len({one.night for one in own.values()}) == len(rows)
    kd = list(styled("kd", "at", "kd", "kd", "at", "kd", "kd").values())
    variants = [kd[i] for i in (0, 2, 3, 5, 6)]
    assert max(abs(hue(style.day) - hue(variants[0].day)) for style in variants) < 0.02
    assert abs(hue(kd[1].day) - hue(kd[0].day)) > 0.1
    light = [sum(int(style.day[i : i + 2], 16) for i in (1, 3, 5)) for style in variants]
    assert light == sorted(light, reverse=True)
    assert len({(style.mark) for style in variants}) == 5
    assert len({style.svg_mark for style in variants}) == 5
    assert (
        len({style.css.partition("--d:")[2] for style in variants[:4]})
        == len({str(style.dashes) for style in variants[:4]})
        == 4
    )


def test_rows_that_are_no_methods_have_hues_of_their_own():
    """kdrun report --rows pair --columns method: a row is a pair, not the student alone that stands in its first column."""
    made = sweep(methods=("none", "kd"), seeds=1) + sweep(methods=("none", "kd"), seeds=1, student="resnet20")
    (table,) = tables(made, rows="pair", columns="method")
    styles = table_styles(table)
    assert len(styles) == 4
    taught = [style.day for label, style in styles.items() if "->" in label]
    assert BASELINE.day not in taught
    assert len({style.css for style in styles.values()}) == 4
    (table,) = tables(made)
    assert table_styles(table)["none"].day == BASELINE.day


def test_several_students_alone_differ_in_their_dashes():
    own = list(styled("none", "none", "kd").values())
    assert own[0].day == own[1].day == BASELINE.day
    assert own[0].dashes != own[1].dashes


def test_shades():
    assert shade("#0072b2", 0.0) == "#0072b2"
    assert shade("#0000ff", 0.5) == "#000080"
    assert shade("#0000ff", -0.5) == "#8080ff"


def test_names_move_apart_within_their_picture():
    assert apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert apart([0.95, 0.99, 1.0], 0.1, 0.0, 1.0) == pytest.approx([0.8, 0.9, 1.0])
    assert apart([0.0, 0.01], 0.1, 0.0, 1.0) == pytest.approx([0.0, 0.1])
    assert apart([0.2, 0.9], 0.1) == [0.2, 0.9]


# Axes --------------------------------------------------------------------------------------------------------------------


def strip(*dots: float, low=None, high=None, teacher=False) -> Strip:
    mean = sum(dots) / len(dots)
    return Strip("x", "", TEACHER if teacher else BASELINE, mean, [(str(x), x) for x in dots], low, high)


def test_axes_show_what_an_accuracy_can_be():
    """Two seeds of 98 and 99 have an interval of 92 to 105 %: the axis ends at 100, an arrow says that it continues."""
    two = strip(98.0, 99.0, low=92.15, high=104.85)
    low, high = window([two], None, 0.0, 100.0)
    assert 97 < low < 98
    assert 99 < high <= 100
    assert beyond(two, low, high) == (True, True)
    low, high = window([strip(99.9, 100.0, low=99.0, high=100.9)], None, 0.0, 100.0)
    assert high == 100
    assert window([strip(0.0, 0.1)], None, 0.0, 100.0)[0] == 0
    three = strip(70.0, 71.0, 72.0, low=69.5, high=72.5)  # nothing beyond: the whole interval is shown
    assert beyond(three, *window([three], None, 0.0, 100.0)) == (False, False)
    assert window([strip(70.0, 71.0)], 60.0, 0.0, 100.0)[0] < 60  # the baseline is always in it


def test_a_teacher_far_away_is_an_arrow():
    near, far = strip(73.0, teacher=True), strip(95.0, teacher=True)
    rows = [strip(70.0, 72.0)]
    assert window([*rows, near], None, 0.0, 100.0)[1] > 73
    shown = window([*rows, far], None, 0.0, 100.0)
    assert shown == window(rows, None, 0.0, 100.0)
    assert beyond(far, *shown) == (False, True)


def test_learning_curves_end_at_0_and_100():
    low, high = curve_window([[[10.0], [99.9], [100.0]]], [], ACCURACY)
    assert high == 100
    assert 98 < low < 99.9
    assert curve_window([[[0.01], [0.01]]], [], ACCURACY)[0] == 0
    assert curve_window([[[50.0], [55.0], [60.0]]], [62.0], ACCURACY)[1] > 62
    assert curve_window([[[59.0], [60.0]]], [95.0], ACCURACY)[1] < 61


def test_seeds_that_coincide_are_stacked():
    assert stacked([1.0, 1.0, 1.0], 0.1, 1.0) == pytest.approx([0.0, 0.1, -0.1])
    assert stacked([1.0, 2.0, 3.0], 0.1, 1.0) == [0.0, 0.0, 0.0]
    assert stacked([2.0, 1.0, 2.05], 0.1, 1.0) == pytest.approx([0.0, 0.0, 0.1])
    many = stacked([5.0] * 11, 0.1, 0.2)
    assert max(map(abs, many)) == pytest.approx(0.2)
    assert len({round(up, 6) for up in many}) == 11


# What stands where -------------------------------------------------------------------------------------------------------


@contextmanager
def watched():
    """Every figure that is drawn meanwhile."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []

    def keep(self, path, **options):
        if self not in figures:
            figures.append(self)
        saved(self, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        saved = Figure.savefig
        patch.setattr(Figure, "savefig", keep)
        yield figures


@pytest.fixture
def drawn():
    with watched() as figures:
        yield figures


def texts(figure) -> list:
    return [*figure.texts, *(text for axis in figure.axes for text in axis.texts)]


def places(figure) -> list[tuple[str, object]]:
    figure.canvas.draw()  # saving moved some for its own resolution
    renderer = figure.canvas.get_renderer()
    labels = [axis.xaxis.label for axis in figure.axes] + [axis.yaxis.label for axis in figure.axes]
    shown = [text for text in [*texts(figure), *labels] if text.get_text()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in shown]


def awkward(root=None) -> list[dict]:
    """Two seeds, near 100 %, equal ones among them; long names and variants."""
    made = sweep(root and root / "a", methods=("none", "kd", "a_method_with_a_very_long_name_of_ones_own"), seeds=2)
    for temperature in (2, 8):
        more = sweep(root and root / f"t{temperature}", methods=("kd",), seeds=2)
        for record in more:
            record["identity"]["method"]["kd"] = {"temperature": temperature}
            record["group"] += str(temperature)
            record["id"] += str(temperature)
        made += more
    for record in made:
        score = 0.999 if record["method"] == ["kd"] else 0.97 + 0.02 * record["seed"]
        record["dataset"]["name"] = (
            "a dataset whose name is much longer than a picture of it could ever be wide at this size of letters"
        )
        record["score"] = record["last"]["score"] = score
    return made


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The figures of a table of awkward runs: accuracy, curves, time; and that of their sweep."""
    root = tmp_path_factory.mktemp("awkward")
    made = awkward(root)
    with watched() as figures:
        plots(tables(made), root / "plots")
        curves([(record, record["folder"]) for record in made], root / "curves.png")
    assert len(figures) == 4
    return figures


def test_no_letter_stands_on_a_line_or_on_another_letter(four):
    """Names and numbers stand beside the axes, titles above, nothing over the edge."""
    for figure in four:
        boxes, paper = places(figure), figure.bbox
        for number, (text, box) in enumerate(boxes):
            inside = box.x0 >= -1, box.y0 >= -1, box.x1 <= paper.x1 + 1, box.y1 <= paper.y1 + 1
            assert all(inside), (text, box)
            for axis in figure.axes:
                assert not box.padded(-2).overlaps(axis.get_window_extent()), text
            for other, place in boxes[number + 1 :]:
                assert not box.padded(-2).overlaps(place.padded(-2)), (text, other)


def test_axes_of_pictures_stay_within_0_and_100(four):
    accuracy, lines, times, both = four
    assert accuracy.axes[0].get_xlim()[1] <= 100
    assert "arrow: continues beyond the axis" in [text.get_text() for text in texts(accuracy)]
    assert {">", "<"} <= {line.get_marker() for line in accuracy.axes[0].lines}
    assert lines.axes[0].get_ylim()[1] <= 100
    assert times.axes[0].get_ylim()[1] <= 100
    low, high = both.axes[1].get_xlim()
    assert high == pytest.approx(2.9)  # none has 98 %: a mean gains two points at most, and this one seed 2.9
    assert low >= -98
    rings = [line for line in accuracy.axes[0].lines if line.get_marker() == "o"]
    assert len(rings) == 5
    assert all(
        len(set(zip(line.get_xdata(), line.get_ydata(), strict=True))) == 2 for line in rings
    )  # none hides another


def test_rows_go_from_high_to_low_with_bars_that_end_at_the_window(four):
    axis = four[0].axes[0]
    low, high = axis.get_xlim()
    heights = {text.get_text(): text.xy[1] for text in texts(four[0]) if text.xy[0] == 0}
    assert min(heights, key=heights.get).startswith("kd")  # y grows downwards
    assert heights["teacher resnet14"] == max(heights.values()) > heights["none"]
    bars = [line for line in axis.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 2]
    assert len(bars) == 5
    ends = {tuple(sorted(float(x) for x in line.get_xdata())) for line in bars}
    assert (low, high) in ends  # 97 and 99: beyond on both sides
    assert any(pytest.approx((99.9, 99.9)) == end for end in ends)
    assert {line.get_linestyle() for line in bars} == {"-"}
    assert [line for line in axis.lines if line.get_linestyle() == "--" and line.get_xdata() == [98.0, 98.0]]  # none


def test_one_seed_has_a_dotted_bar_that_the_legend_names(tmp_path, drawn):
    plots(tables([make("none", 0, 0.9)]), tmp_path)
    bars = [line for line in drawn[0].axes[0].lines if line.get_linewidth() == 2]
    assert [line.get_linestyle() for line in bars] == ["--"]  # matplotlib's word for any dashes
    written = [text.get_text() for text in texts(drawn[0])]
    assert "dotted bar: one seed, interval of the test images" in written
    assert "ring: one seed, bar: 95 % interval of the mean" not in written


def test_a_band_reaches_from_the_lowest_seed_to_the_highest(tmp_path, drawn):
    made = sweep(tmp_path, methods=("none",), seeds=3)
    curves([(record, record["folder"]) for record in made], tmp_path / "curves.png")
    (band,) = drawn[0].axes[0].collections
    each = [100 * read_curve(record["folder"], ACCURACY)[30] for record in made]
    (path,) = band.get_paths()
    last = [y for x, y in path.vertices if x == 30]
    assert (min(last), max(last)) == pytest.approx((min(each), max(each)))
    assert len({round(value, 3) for value in each}) == 3


def test_deviations_end_at_100_and_times_far_apart_are_on_a_log_axis(tmp_path, drawn):
    made = awkward()
    for record in made:
        record["last"]["score"] = 0.95 + 0.05 * record["seed"]
        record["time"]["train_s"] = 100.0 if record["method"] == ["none"] else 8.5
    plots(tables(made), tmp_path)
    (times,) = (f for f in drawn if "time" in f.axes[0].get_xlabel())
    assert times.axes[0].get_xscale() == "log"
    bars = [line for line in times.axes[0].lines if len(line.get_xdata()) == 2]
    assert len(bars) == 5
    assert {max(line.get_ydata()) for line in bars} == {100.0}
    assert times.axes[0].get_ylim()[1] <= 100


def test_one_colour_a_method_in_every_picture(four):
    labels = ("none", "kd", "kd (temperature=2)", "kd (temperature=8)", "a_method_with_a_very_long_name_of_ones_own")
    seen: dict[str, set] = {}
    for text in (text for figure in four for text in texts(figure)):
        label = max((name for name in labels if text.get_text().startswith(name)), key=len, default=None)
        if label and "variants" not in text.get_text():
            seen.setdefault(label, set()).add(text.get_color())
    assert {label: len(colours) for label, colours in seen.items()} == dict.fromkeys(seen, 1)
    assert len(seen) == len(set.union(*seen.values())) >= 4


# Curves that cannot be read ----------------------------------------------------------------------------------------------

GOOD = {"stage": "distil", "epoch": 1, "test": {"score": 0.9}}
BROKEN = {
    "empty": "",
    "blank": "\n\n",
    "torn": json.dumps(GOOD) + '\n{"stage": "dis',
    "nan": json.dumps(GOOD | {"test": {"score": math.nan}}),
    "percent": json.dumps(GOOD | {"test": {"score": 93.1}}),
    "word": json.dumps(GOOD | {"test": {"score": "0.9"}}),
    "epoch": json.dumps(GOOD | {"epoch": "one"}),
    "no epoch": json.dumps({"stage": "distil", "test": {"score": 0.9}}),
    "other keys": json.dumps({"phase": "distil", "step": 3, "accuracy": 0.9}),
    "a list": "[1, 2]",
    "a number": "1",
    "test is a number": json.dumps(GOOD | {"test": 0.9}),
    "hints alone": json.dumps(GOOD | {"stage": "hints"}),
    "deep": "[" * 100_000,
    "bytes": b"\xff\xfe\x00",
    "folder": None,
    "missing": "missing",
}  # fmt: skip


def spoil(folder, what: str) -> None:
    path = folder / "curves.jsonl"
    path.unlink()
    content = BROKEN[what]
    if content is None:
        path.mkdir()
    elif what != "missing":
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_curve_is_one_line(tmp_path, what):
    sweep(tmp_path, methods=("none",), seeds=1)
    assert len(read_curve(tmp_path / "run0", ACCURACY)) == 30
    spoil(tmp_path / "run0", what)
    with pytest.raises(KdrunError, match=r"run0/curves\.jsonl (cannot be read \(|holds no test score)") as caught:
        read_curve(tmp_path / "run0", ACCURACY)
    assert "\n" not in str(caught.value)
    assert what != "torn" or "line 2" in str(caught.value)


def test_a_broken_curve_costs_no_picture_and_is_named(tmp_path, capsys, drawn):
    made = sweep(tmp_path, methods=("none", "kd", "at"), seeds=7)
    for number, what in enumerate(BROKEN):
        spoil(tmp_path / f"run{number}", what)
    runs = [(record, record["folder"]) for record in made]
    path = curves(runs, tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == len(BROKEN)
    assert notes[2].startswith("note     none seed 2 is not in the curves: ")
    (figure,) = drawn
    small = " ".join(text.get_text() for text in figure.texts)
    assert "none seed 2 is not in the curves" in small
    assert f"and {len(BROKEN) - 6} more runs" in small
    assert [line for line in figure.axes[0].lines if len(line.get_xdata()) == 30]  # what can be read is drawn
    assert figure.axes[1].texts  # and the differences, which need no curve


def test_curves_of_runs_that_have_none_still_show_the_differences(tmp_path, drawn):
    made = sweep(methods=("none", "kd"), seeds=2)
    assert curves([(record, tmp_path) for record in made], tmp_path / "deep/er/curves.png").is_file()
    assert not drawn[0].axes[0].lines or all(len(line.get_xdata()) == 2 for line in drawn[0].axes[0].lines)
    assert "+" in " ".join(text.get_text() for text in drawn[0].axes[1].texts)
    with pytest.raises(KdrunError, match="no curves to draw: no run is done"):
        curves([(make("kd", 0, 0.0, status="failed", error="fell over"), tmp_path)], tmp_path / "x.png")


def test_plots_name_what_they_leave_out(tmp_path, drawn, capsys):
    made = sweep(tmp_path, methods=("none", "kd"), seeds=2)
    spoil(tmp_path / "run0", "torn")
    plots(tables(made), tmp_path / "plots")
    assert "none seed 0 is not in the curves" in " ".join(t.get_text() for figure in drawn for t in figure.texts)
    for number in range(1, 4):
        spoil(tmp_path / f"run{number}", "empty")
    capsys.readouterr()
    assert not [path for path in plots(tables(made), tmp_path / "again") if "curves" in path.name]
    notes = capsys.readouterr().err
    assert notes.startswith("note     no learning curves of none, ...: none seed 0 is not in the curves: ")
    assert notes.endswith("(and 3 more runs)\n")
    assert notes.count("\n") == 1
