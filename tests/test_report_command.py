"""`kdrun report`: what it finds, what it compares, and each of its formats, on made-up records."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats as reference
from test_report import make

from kdrun.cli import run
from kdrun.errors import KdrunError
from kdrun.report import render
from kdrun.report.against import beside, compare, margin, published
from kdrun.report.caption import caption
from kdrun.report.collect import collect
from kdrun.report.pivot import tables
from kdrun.report.stats import (
    binomial_error,
    holm,
    least_sign_flip,
    mcnemar,
    p_value,
    seeds_needed,
    sign_flip,
    sign_flip_seeds,
)
from kdrun.report.text import gain, grid
from kdrun.runs import record as records


def write(root, *made):
    for number, record in enumerate(made):
        (root / f"run{number}").mkdir(parents=True)
        records.write(root / f"run{number}", record)
    return root


def sweep(**changed):
    """none, kd and rkd with three seeds: kd is better by about a point, rkd by nothing."""
    none, kd, rkd = (0.900, 0.905, 0.910), (0.911, 0.914, 0.921), (0.901, 0.903, 0.911)
    return [
        make(method, seed, score, **changed)
        for method, scores in (("kd", kd), ("none", none), ("rkd", rkd))
        for seed, score in enumerate(scores)
    ]


# Statistics --------------------------------------------------------------------------------------------------------------


def test_p_values_are_those_of_scipy():
    a, b = [0.91, 0.92, 0.935, 0.9], [0.9, 0.915, 0.92, 0.905]
    assert p_value(a, b) == pytest.approx(reference.ttest_rel(a, b).pvalue)
    assert p_value([0.9], [0.8]) is None
    assert p_value([0.9, 0.8], [0.9, 0.8]) == 1
    assert p_value([0.75, 0.5], [0.5, 0.25]) == 0
    assert mcnemar(10, 25) == pytest.approx(reference.binomtest(10, 35).pvalue)
    assert mcnemar(0, 0) == 1


def test_differences_that_agree_to_the_image_are_not_certain():
    """One image of 10,000 in each of two seeds is nothing; without a resolution it would have p = 0."""
    a, b = [0.9001, 0.9101], [0.9, 0.91]
    assert p_value(a, b) < 1e-3
    assert p_value(a, b, resolution=1e-4) > 0.1
    made = [make(m, s, x) for m, xs in (("none", b), ("kd", a)) for s, x in enumerate(xs)]
    (table,) = tables(made)
    cell = table.cells["kd"]["resnet14 -> resnet8"]
    assert cell.equal
    assert cell.low < 0 < cell.high


def test_few_seeds_claim_no_more_than_they_may():
    """Two seeds on 597 images, nothing to find: about 5 % are significant, as the level says."""
    draw = np.random.default_rng(0)
    scores = np.round(560 + 2.5 * draw.normal(size=(2000, 2, 2))) / 597
    significant = sum(p_value(list(a), list(b), 1 / 597) < 0.05 for a, b in scores)
    assert significant / 2000 < 0.06


def test_holm_multiplies_in_order_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("size", "seeds"), [(1.0, 10), (0.5, 34), (0.2, 199)])
def test_seeds_needed_are_those_of_the_power_tables(size, seeds):
    """Cohen's tables of the paired t test at 5 %, power 0.8; the sign and the unit do not matter."""
    assert seeds_needed(size, 1.0) == seeds
    assert seeds_needed(-0.01 * size, 0.01) == seeds
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-6, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 2
    for comparisons in range(1, 40):  # scipy's non-central t is nan at some of these
        assert 3 <= seeds_needed(0.0271, 0.0046, 1 - 0.05 / comparisons) <= 6
        assert 4 <= seeds_needed(0.0152, 0.0074, 1 - 0.05 / comparisons) <= 10


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 12])
def test_sign_flips_are_those_of_every_sign(n):
    """The share of all 2^n signs whose sum is as far from 0, by trying each; whole numbers make many ties."""
    draw = np.random.default_rng(n)
    for differences in (draw.normal(0.5, 1, n), draw.integers(-3, 5, n) / 597, draw.integers(0, 2, n) / 10_000):
        sums = [
            abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in product((1, -1), repeat=n)
        ]
        wanted = sum(total >= abs(math.fsum(differences)) - 1e-12 for total in sums) / 2**n
        assert sign_flip(list(differences)) == wanted


def test_sign_flips_of_known_differences():
    """Darwin's maize, as in Fisher's book: 863 + 863 of 32,768 signs; the same as scipy's exact permutation test."""
    darwin = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    assert sign_flip(darwin) == pytest.approx(1726 / 32768)
    permutations = reference.permutation_test((darwin[:9],), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(darwin[:9]) == pytest.approx(permutations.pvalue)
    assert [sign_flip([0.01] * n) for n in (1, 3, 6)] == [1, 0.25, 0.03125]
    assert sign_flip([0.1, 0.2, 0.3]) == sign_flip([-0.1, -0.2, -0.3]) == 0.25
    assert sign_flip([0.1 + 0.2, -0.3]) == 1.0  # 0 but for the last digit
    assert sign_flip([0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        sign_flip([])


def test_sign_flips_of_many_pairs_are_drawn():
    """Beyond 32 pairs random signs of one stream, near the exact share; the smallest p is not 0."""
    differences = list(np.random.default_rng(1).normal(0.2, 1, 32))
    assert sign_flip([*differences, 0.0]) == pytest.approx(sign_flip(differences), abs=0.01)
    assert sign_flip([*differences, 0.0]) == sign_flip([*differences, 0.0])
    assert 0 < sign_flip([0.1] * 40) < 1e-4


def test_seeds_that_a_sign_flip_test_needs():
    """One method six, ten methods nine; with fewer seeds not even all signs alike are enough."""
    assert [sign_flip_seeds(methods) for methods in (1, 2, 10, 21)] == [6, 7, 9, 10]
    for methods in range(1, 30):
        n = sign_flip_seeds(methods)
        assert holm([least_sign_flip(n)] * methods)[0] < 0.05 <= holm([least_sign_flip(n - 1)] * methods)[0]


def test_the_sign_flip_test_stands_beside_the_t_test():
    """Uncorrected and under Holm, in CSV and JSON; the caption says when the seeds are too few for it, and no longer when not."""
    shown = tables(sweep())
    kd = next(one for one in csv.DictReader(io.StringIO(render.as_csv(shown))) if one["row"] == "kd")
    assert (float(kd["p_sign_flip"]), float(kd["p_sign_flip_holm"])) == (0.25, 0.5)
    assert json.loads(render.as_json(shown))[0]["cells"][1]["p_sign_flip"] == 0.25
    (sentence,) = [one for one in caption(shown[0]) if "sign-flip" in one]
    assert sentence.endswith("with 3 seeds its p is at least 0.25; for 2 methods (Holm) it needs 7 seeds")
    made = [make(m, s, 0.8 + s / 100 + (m == "kd") / 50) for m in ("none", "kd") for s in range(6)]
    (table,) = tables(made)
    assert table.cells["kd"]["resnet14 -> resnet8"].p_sign_flip == 0.03125
    assert not any("sign-flip" in one for one in caption(table))


def test_seeds_that_would_do_are_those_of_the_strictest_comparison():
    """Nine methods beside the one need more seeds than it would alone; few seeds are too few for the sign flips of many methods."""

    def made(methods, seeds):
        draw = np.random.default_rng(3)
        scores = {"none": draw.normal(0.9, 0.002, seeds)}
        scores |= {f"m{i}": scores["none"] + draw.normal(0.002, 0.004, seeds) for i in range(methods)}
        return tables([make(m, s, x) for m, xs in scores.items() for s, x in enumerate(xs)])[0]

    column = "resnet14 -> resnet8"
    one, ten = (made(methods, 6) for methods in (1, 10))
    assert one.cells["m0"][column].gain == ten.cells["m0"][column].gain
    assert ten.cells["m0"][column].needed > one.cells["m0"][column].needed
    cell = ten.cells["m0"][column]
    assert cell.needed == seeds_needed(cell.gain, cell.spread, 1 - 0.05 / 10)
    assert not any("sign-flip" in sentence for sentence in caption(one))
    assert any("with 6 seeds" in one and "for 10 methods (Holm) it needs 9" in one for one in caption(ten))


# Collecting --------------------------------------------------------------------------------------------------------------


def test_foreign_and_truncated_records_are_named_and_counted(tmp_path, capsys):
    """What is no record of this schema is skipped by name, the rest is shown, and the caption counts."""
    write(tmp_path, *sweep())
    for name, text in (
        ("cut", '{"schema": 1,'),
        ("other", '{"a": 1}'),
        ("newer", '{"schema": 3}'),
        ("thin", '{"schema": 1}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    assert run(["report", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "4 files with the name record.json could not be read and are left out" in shown.out
    assert [line.split()[1].split("/")[-2] for line in shown.err.splitlines()] == ["cut", "newer", "other", "thin"]
    assert "schema 3; this kdrun reads schemas 1 and 2" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["nowhere"], "nowhere is not a folder", 1),
        (["."], "no record.json of a run below", 1),
        (["runs", "--rows", "recipe.lrr"], "no key 'recipe.lrr' in these runs. Did you mean recipe.lr?", 1),
        (["runs", "--against", "kdzo_cifar10"], "no published table 'kdzo_cifar10'. Did you mean kdzoo_cifar10", 1),
        (["runs", "--against", "kdzoo_cifar10"], "kdzoo_cifar10 is about cifar10 and these runs are about digits", 1),
        (["runs", "--copy", "runs/mine"], "--copy runs/mine must lie apart from runs", 1),
        (["runs", "--copy", "."], "--copy . must lie apart from runs", 1),
        (["runs", "--plots", "runs/run0/record.json"], "--plots runs/run0/record.json is a file; give a folder", 1),
        (["no.db"], "no.db is no study of a search; give the file that hydra.sweeper.study names", 1),
        (["runs", "no.db"], "a study of a search is reported alone", 1),
        (["runs", "--output", "no/such/folder.md"], "--output no/such/folder.md cannot be written (No such file", 1),
        (["runs", "--format", "pdf"], "argument --format: invalid choice: 'pdf'", 2),
        (
            ["runs", "--against", "kdzoo_cifar10", "--against", "crd_cifar100"],
            "--against is given twice (kdzoo_cifar10 and",
            2,
        ),
        *(
            (
                ["runs", option, value, f"{option}={value}"],
                f"{option} is given twice ({value} and {value}); give it once",
                2,
            )
            for option, value in (
                ("--rows", "pair"),
                ("--columns", "method"),
                ("--protocol", "last"),
                ("--format", "md"),
                ("--output", "a"),
                ("--plots", "a"),
                ("--copy", "a"),
            )
        ),
        (["--fromat", "md"], "unrecognized arguments: --fromat", 2),
    ],
)
def test_what_cannot_be_reported_is_one_line(arguments, message, status, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "runs", *sweep())
    monkeypatch.chdir(tmp_path / "empty" if arguments == ["."] else tmp_path)
    assert run(["report", *arguments]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("kdrun: ")
    assert message in lines[0]


def test_no_verb_takes_an_option_twice(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for verb, value in (("report", "md"), ("status", "5")):
        option = {"report": "--format", "status": "--watch"}[verb]
        assert run([verb, option, value, option, value]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"kdrun: {option} is given twice")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, capsys):
    """In every path that the command takes; nothing is called ~."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for made in sweep():
        folder = tmp_path / "home/runs/digits" / made["method"][0] / "pair/hash" / f"seed{made['seed']}"
        folder.mkdir(parents=True)
        records.write(folder, made)
    arguments = ["~/runs", "--output", "~/table.md", "--format", "md", "--copy", "~/copy", "--plots", "~/plots"]
    assert run(["report", *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"table    {tmp_path}/home/table.md")
    assert {"runs", "table.md", "copy", "plots"} <= {path.name for path in (tmp_path / "home").iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert run(["report", "~/none.db"]) == 1
    assert f"{tmp_path}/home/none.db is no study" in capsys.readouterr().err


def test_thousands_of_records_are_one_table(tmp_path):
    """2,000 records of one method, a seed each; how long 20,000 take is measured by benchmarks/report.py."""
    made = sweep()[0]
    for number in range(2000):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "record.json").write_text(json.dumps({**made, "seed": number}))
    (table,) = tables(collect([tmp_path]).records)
    assert table.cells["kd"]["resnet14 -> resnet8"].n == 2000


def test_records_are_copied_without_weights_and_report_the_same(tmp_path, capsys):
    """Only record.json and curves.jsonl, in the same folders; the copies tell the same table; another result is not overwritten."""
    for made in sweep():
        folder = tmp_path / "runs/digits" / made["method"][0] / "pair/hash" / f"seed{made['seed']}"
        folder.mkdir(parents=True)
        records.write(folder, made)
        (folder / "curves.jsonl").write_text("")
        (folder / "student.safetensors").write_text("many bytes")
    assert run(["report", str(tmp_path / "runs"), "--copy", str(tmp_path / "copy"), "--format", "csv"]) == 0
    table, note = capsys.readouterr()
    assert note == f"records  {len(sweep())} in {tmp_path}/copy\n"
    assert {path.name for path in tmp_path.glob("copy/**/*") if path.is_file()} == {"record.json", "curves.jsonl"}
    assert run(["report", str(tmp_path / "copy"), "--format", "csv"]) == 0
    assert capsys.readouterr().out == table
    other = {**made, "student": {**made["student"], "sha256": "0" * 64}}
    records.write(folder, other)
    assert run(["report", str(tmp_path / "runs"), "--copy", str(tmp_path / "copy")]) == 1
    assert "holds another result of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"engine": None}, "engine is null, not object"),
        ({"method": "kd"}, "method is str, not array"),
        ({"status": None}, "status is null, not str"),
        ({"teacher": {"name": "x"}}, "no key 'run_id' in teacher"),
        ({"last": None}, "it is done without a score"),
        ({"last": {"epoch": 1, "score": "0.9", "loss": 1.0, "metrics": {}}}, "last.score is str, not int or float"),
    ],
)
def test_a_record_of_another_shape_is_named_and_skipped(change, why, tmp_path, capsys):
    (tmp_path / "odd").mkdir()
    write(tmp_path / "good", *sweep())
    (tmp_path / "odd/record.json").write_text(json.dumps({**sweep()[0], **change}))
    assert run(["report", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert f"odd/record.json is not a record of a kdrun run ({why}" in err
    assert "1 file with the name record.json could not be read" in out


def test_a_foreign_record_hides_nothing_below_it(tmp_path):
    write(tmp_path, *sweep())
    (tmp_path / "record.json").write_text('{"name": "vinyl"}')
    collection = collect([tmp_path])
    assert (len(collection.records), len(collection.skipped)) == (len(sweep()), 1)


# Tables ------------------------------------------------------------------------------------------------------------------


def test_cells_compare_with_the_student_alone():
    """Mean, deviation, paired difference, Holm over two methods, and = with the seeds that would tell."""
    (table,) = tables(sweep())
    assert table.columns == ["resnet14 -> resnet8"]
    assert list(table.cells) == ["none", "kd", "rkd"]
    none, kd, rkd = (table.cells[name]["resnet14 -> resnet8"] for name in ("none", "kd", "rkd"))
    assert none.baseline
    assert none.gain is None
    assert kd.mean["last"] == pytest.approx(0.9153, abs=1e-4)
    assert kd.gain == pytest.approx(0.0103, abs=1e-4)
    raw = reference.ttest_rel((0.911, 0.914, 0.921), (0.900, 0.905, 0.910)).pvalue
    assert kd.p == pytest.approx(2 * raw)
    assert kd.equal is False
    assert rkd.equal is True
    assert rkd.needed is None  # no difference at all: no number of seeds would tell
    assert kd.agreement == pytest.approx(0.93)


def test_a_method_without_teacher_stands_in_every_column_of_its_student():
    second = [{**record, "teacher": {**record["teacher"], "name": "resnet20"}} for record in sweep(lr=0.1)[:3]]
    for record in second:
        record["group"] = record["id"] = f"other{record['seed']}"[:5]
        record["identity"] = {**record["identity"], "teacher": {"name": "resnet20"}}
    (table,) = tables([*sweep(), *second])
    assert table.columns == ["resnet14 -> resnet8", "resnet20 -> resnet8"]
    assert set(table.cells["none"]) == set(table.columns)
    head, rows = grid(table)
    assert head == ["", "resnet14 -> resnet8", "resnet20 -> resnet8"]
    assert "91.53 ± 0.51 (3)  +1.03 [" in rows[1][1]


def test_rows_and_columns_may_be_keys():
    """A sweep over a learning rate: methods by recipe.lr, each against the `none` of its own rate."""
    (table,) = tables([*sweep(lr=0.1), *sweep(lr=0.05)], columns="recipe.lr")
    assert table.columns == ["recipe.lr=0.05", "recipe.lr=0.1"]
    assert table.cells["kd"]["recipe.lr=0.05"].gain == pytest.approx(0.0103, abs=1e-4)


def test_different_results_of_one_run_are_shown_and_never_averaged():
    runs = sweep()
    again = make("kd", 0, 0.5)
    (table,) = tables([*runs, {**again, "student": {**again["student"], "sha256": "ff" * 32}}])
    cell = table.cells["kd"]["resnet14 -> resnet8"]
    assert cell.n == 2
    assert any("kd seed 0 has 2 different results: 9" in line and "50.00 (" in line for line in caption(table))


def test_one_seed_is_told_by_the_test_images(tmp_path):
    """McNemar's test on the two runs' logits; without them nothing is claimed."""
    made = [record for record in sweep() if record["seed"] == 0]
    write(tmp_path, *made)
    labels = np.zeros(597, dtype=np.int64)
    for number, right in enumerate((560, 530, 531)):  # kd, none, rkd
        logits = np.zeros((597, 2), dtype=np.float32)
        logits[np.arange(597), (np.arange(597) >= right).astype(int)] = 1
        save_file({"logits": logits, "labels": labels}, tmp_path / f"run{number}" / "test_logits.safetensors")
    (table,) = tables(collect([tmp_path]).records)
    kd, rkd = (table.cells[name]["resnet14 -> resnet8"] for name in ("kd", "rkd"))
    assert (kd.test, kd.equal, rkd.equal) == ("mcnemar", False, True)
    assert kd.p == pytest.approx(2 * mcnemar(30, 0))
    assert any(line.startswith("One seed has no interval") for line in caption(table))
    shutil.rmtree(tmp_path / "run1")
    write(tmp_path / "portable", made[1])
    (table,) = tables(collect([tmp_path]).records)
    assert table.cells["kd"]["resnet14 -> resnet8"].equal is None


def test_what_is_no_pair_is_told():
    """A seed that began from other weights, sources that differ, and how many pairs a difference is made of."""
    runs = sweep()
    kd = next(record for record in runs if record["method"] == ["kd"])
    kd["student"]["init_sha256"] = "aa" * 32
    kd["code"]["method"]["kd"] = "bb" * 32
    (table,) = tables(runs)
    sentences = " ".join(caption(table))
    assert (
        f"kd seed {kd['seed']} and none seed {kd['seed']} started from different weights, so they are not compared"
        in sentences
    )
    assert "have different sources of kd" in sentences
    assert "(2 pairs)" in gain(table.cells["kd"]["resnet14 -> resnet8"])


def test_a_row_that_is_set_differently_from_column_to_column_is_told():
    other = sweep()[:3]
    for record in other:
        record["student"]["name"] = record["identity"]["student"]["name"] = "resnet20"
        record["group"], record["id"] = "c0", f"c{record['seed']}"
        record["identity"]["method"] = {"kd": {"temperature": 2.0}}
    (table,) = tables([*sweep(), *other])
    assert any(line.startswith("kd has different settings in different columns: method.kd") for line in table.notes)


def test_mixed_devices_and_unfinished_runs_are_told():
    runs = sweep()
    runs[0]["engine"]["device"] = "cuda"
    lines = caption(tables([*runs, make("at", 1, 0.0, status="nan", error="loss became NaN")])[0])
    assert any("have different devices (cpu, cuda)" in line for line in lines)
    assert any(line == "not finished: at seed 1: nan" for line in lines)


# Formats -----------------------------------------------------------------------------------------------------------------


def test_csv_has_the_row_first_and_json_the_same_numbers():
    shown = tables(sweep())
    lines = list(csv.DictReader(io.StringIO(render.as_csv(shown))))
    assert next(iter(lines[0])) == "row"
    assert [line["row"] for line in lines] == ["none", "kd", "rkd"]
    assert float(lines[1]["gain"]) == pytest.approx(0.0103, abs=1e-4)
    assert lines[1]["seeds"] == "0 1 2"
    (part,) = json.loads(render.as_json(shown))
    assert part["cells"][1]["gain"] == float(lines[1]["gain"])


def test_markup_is_escaped():
    """A name with signs of Markdown or LaTeX is shown as it is."""
    runs = [{**record, "dataset": {**record["dataset"], "name": "a_b|<i>%$"}} for record in sweep()]
    shown = tables(runs)
    assert r"a\_b\|\<i\>%$" in render.markdown(shown)
    assert r"a\_b|$<$i>\%\$" in render.latex(shown)


def test_a_narrow_screen_leaves_out_what_says_least():
    text = render.terminal(tables(sweep()), width=90)
    assert max(map(len, text.splitlines())) <= 90
    assert "The screen is too narrow for parameters, time" in text
    assert "\nkd " in text
    assert "gain over none" in text


def test_a_very_narrow_screen_puts_cells_below_their_row():
    text = render.terminal(tables(sweep()), width=50)
    assert max(map(len, text.splitlines())) <= 80
    assert "\nkd\n" in text


def cifar() -> list[dict]:
    runs = []
    for method, score in (("kd", 0.9290), ("at", 0.9200), ("sp", 0.9450)):  # published: 92.82, 93.21, 93.30
        for seed in range(3):
            record = make(method, seed, score + 0.001 * seed, student="resnet20")
            record["dataset"] |= {"name": "cifar10", "test_n": 10_000}
            record["teacher"]["name"] = "resnet110"
            record["recipe"] |= {"name": "kdzoo", "epochs": 200}
            runs.append(record)
    return runs


def test_published_scores_stand_beside_ours():
    """Inside, above and below, by the errors of both; a test set of 10,000 has 0.26 points of error at 93 %."""
    assert 100 * binomial_error(0.93, 10_000) == pytest.approx(0.255, abs=1e-3)
    verdicts = {c.theirs.method: c.verdict for c in compare(tables(cifar()), "kdzoo_cifar10")}
    assert verdicts == {"kd": "inside", "at": "below", "sp": "above"}


def test_a_verdicts_margin_is_of_both_means():
    """Three seeds of deviation 0.001 beside one published score of 93 % on 10,000 images, by hand; their seeds count, too."""
    cell = next(c for c in compare(tables(cifar()), "kdzoo_cifar10") if c.theirs.method == "kd")
    assert cell.sd == pytest.approx(0.001)
    ours = 4.302653 * 0.001 / math.sqrt(3)  # t quantile of two degrees of freedom
    theirs = 1.96 * math.sqrt(cell.theirs.score * (1 - cell.theirs.score) / 10_000 / (cell.theirs.seeds or 1))
    assert cell.margin == pytest.approx(math.hypot(ours, theirs), rel=1e-5)
    five = replace(cell.theirs, seeds=5)
    assert margin(five, 0.93, 0.001, 3, 10_000) == pytest.approx(
        math.hypot(ours, 1.96 * binomial_error(five.score, 10_000) / math.sqrt(5)), rel=1e-5
    )
    one = margin(replace(five, seeds=None), 0.93, None, 1, 10_000)
    assert one == pytest.approx(math.hypot(1.96 * 0.0025515, 1.96 * binomial_error(five.score, 10_000)), rel=1e-4)


def test_published_scores_are_matched_by_what_models_are_not_by_their_labels():
    """A label of one's own hides no published score; another model under the name of a published one is not compared."""
    named, foreign = cifar(), cifar()
    for record in named:
        record["student"]["label"], record["teacher"]["label"] = "mine", "big"
    comparisons = compare(tables(named), "kdzoo_cifar10")
    assert {c.theirs.method for c in comparisons} == {"kd", "at", "sp"}
    assert {c.column for c in comparisons} == {"big -> mine"}
    for record in foreign:
        record["student"] |= {"name": "import", "label": "resnet20"}
        record["identity"]["student"] = {"name": "import", "path": "lab:resnet20"}
    assert compare(tables(foreign), "kdzoo_cifar10") == []


def test_a_published_score_is_of_one_teacher():
    """The same student under another teacher is another cell."""
    made = cifar()
    for record in made:
        record["teacher"]["name"] = "resnet56"
    assert compare(tables(made), "kdzoo_cifar10") == []


def test_best_is_compared_with_best_and_last_with_last():
    """mdistiller's and CRD's kd of one pair: one reports the best epoch, the other the last."""
    run = make("dkd", 0, 0.74, student="resnet8x4")
    run["dataset"] |= {"name": "cifar100", "test_n": 10_000}
    run["teacher"]["name"] = "resnet32x4"
    run["recipe"] |= {"name": "crd240", "epochs": 240}
    run["last"]["score"], run["best"]["score"] = 0.74, 0.76
    shown = tables([run])
    (best,) = [c for c in compare(shown, "mdistiller_cifar100") if c.theirs.protocol == "best"]
    assert (best.protocol, best.ours) == ("best", 0.76)
    run["method"] = ["crd"]
    run["identity"]["method"] = {"crd": {}}
    (last,) = compare(tables([run]), "crd_cifar100")
    assert (last.protocol, last.ours) == ("last", 0.74)


def test_other_epochs_and_a_holdout_are_not_judged():
    short, held = cifar(), cifar()
    for record in short:
        record["recipe"]["epochs"] = 12
    for record in held:
        record["dataset"] |= {"train_n": 45_000, "holdout_n": 5_000}
    for made, why in ((short, "not judged: 12 of 200 epochs"), (held, "not judged: 5,000 images held out")):
        assert {c.verdict for c in compare(tables(made), "kdzoo_cifar10")} == {why}
    both = list(
        csv.DictReader(
            io.StringIO(render.as_csv(tables([*cifar(), *held]), [beside(tables([*cifar(), *held]), "kdzoo_cifar10")]))
        )
    )
    assert {(line["train_n"], line["verdict"][:3]) for line in both if line["row"] == "kd"} == {
        ("1200", "ins"),
        ("45000", "not"),
    }


@pytest.mark.parametrize("form", ["terminal", "md", "latex", "csv", "json", "html"])
def test_every_format_puts_published_scores_beside_ours(form, tmp_path, capsys):
    write(tmp_path / "runs", *cifar())
    arguments = ["report", str(tmp_path / "runs"), "--against", "kdzoo_cifar10", "--format", form]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "inside" in text
    assert "below" in text
    if form == "csv":
        lines = {line["row"]: line for line in csv.DictReader(io.StringIO(text))}
        assert (lines["at"]["published"], lines["at"]["verdict"]) == ("0.9321", "below")
    if form == "json":
        rows = {row["row"]: row for row in json.loads(text)[-1]["rows"]}
        assert rows["sp"]["verdict"] == "above"
        assert rows["sp"]["compared"] == pytest.approx(0.946)


@pytest.mark.parametrize(
    "name", ["kdzoo_cifar10", "kdzoo_cifar100", "crd_cifar100", "mdistiller_cifar100", "logitstd_cifar100"]
)
def test_published_tables_name_models_that_exist(name):
    from kdrun.config.registry import METHODS, MODELS

    for cell in published(name):
        MODELS.entry(cell.teacher)
        MODELS.entry(cell.student)
        assert cell.method.removesuffix("_ls") in {*METHODS.entries(), "ls"}
        assert 0.5 < cell.score < 1
        assert cell.source


def test_a_published_table_of_other_images_is_refused():
    with pytest.raises(KdrunError, match="scores on different data cannot be compared"):
        compare(tables(sweep()), "crd_cifar100")
