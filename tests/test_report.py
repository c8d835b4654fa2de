"""The sweep summary and its statistics, on made-up records."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import warnings

import pytest

from kdrun.errors import KdrunError
from kdrun.report import curves, learning, rows
from kdrun.report.display import Display
from kdrun.report.labels import natural
from kdrun.report.stats import mean_sd, paired
from kdrun.report.summary import text as summary
from kdrun.runs.record import validate
from kdrun.tasks.metric import ACCURACY


def sha(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def make(method="kd", seed=0, score=0.9, *, status="done", lr=0.1, student="resnet8", error=None, **changed) -> dict:
    """A valid record of a digits run; `changed` replaces top-level keys."""
    names = method.split("+")
    taught = names != ["none"]
    identity = {
        "schema": 1,
        "dataset": {"name": "digits", "checksum": "ab12", "holdout": 0},
        "student": {"name": student},
        "method": {name: {} for name in names},
        "recipe": {"name": "quick", "epochs": 30, "lr": lr},
        "precision": "auto",
        "cache": "auto",
        "teacher": {"name": "resnet14", "seed": 0, "weights": "last"} if taught else None,
    }
    group = sha(identity)[:12]
    done = status == "done"
    chosen = {"epoch": 30, "score": score, "loss": 0.3, "metrics": {"accuracy": score}} if done else None
    record = {
        "schema": 2,
        "id": sha(group, seed)[:12],
        "group": group,
        "seed": seed,
        "command": f"kdrun method={method} seed={seed}",
        "identity": identity | {"seed": seed},
        "status": status,
        "error": error and {"type": "DivergedError", "message": error, "stage": "distil", "step": 7, "term": "kd.kl"},
        "task": "image",
        "dataset": {
            "name": "digits", "checksum": "ab12", "train_n": 1200, "holdout_n": 0, "test_n": 597,
            "classes": list("0123456789"), "preprocessing": {"size": 8, "mean": [0.3], "std": [0.4]},
        },
        "teacher": {"name": "resnet14", "run_id": "77aa", "sha256": sha("t"), "params": 172_000, "score": 0.9581}
        if taught
        else None,
        "student": {
            "name": student, "init_sha256": sha(student, seed),
            "sha256": sha(method, seed, lr, score) if done else None, "params": 78_042,
        },
        "method": names,
        "weights": {"task": 1.0},
        "recipe": {"name": "quick", "epochs": 30, "lr": lr},
        "protocol": "last",
        "metrics": [ACCURACY.as_dict()],
        "unit": "images",
        "details": None,
        "score": score if done else None,
        "last": chosen,
        "best": chosen and {**chosen, "epoch": 27, "score": score + 0.004, "loss": 0.31},
        "holdout": None,
        "agreement": 0.93 if taught and done else None,
        "time": {
            "start": "2025-01-01T10:00:00+00:00", "end": "2025-01-01T10:00:09+00:00" if done else None, "train_s": 8.5,
            "samples_per_s": 4200.0, "data_wait": 0.01, "peak_memory": 310_000_000,
        },
        "engine": {"device": "cpu", "precision": "fp32", "compile": False, "cache": True, "deterministic": True},
        "code": {"method": {name: sha(name) for name in names}, "student": sha(student)},
        "versions": {"python": "3.11.7", "torch": "2.6.0"},
        "git": {"commit": "0123abcd", "dirty": False},
        "host": "lab1",
        "resumed": 0,
    }  # fmt: skip
    return copy.deepcopy(record | changed)


NONE, KD = (0.8910, 0.8844, 0.8995), (0.9112, 0.9011, 0.9062)


@pytest.fixture
def records():
    return [make("none", s, x) for s, x in enumerate(NONE)] + [make("kd", s, x) for s, x in enumerate(KD)]


def line(text: str, start: str) -> str:
    (match,) = [line for line in text.splitlines() if line.startswith(start)]
    return " ".join(match.split())


def test_mean_sd():
    assert mean_sd([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(math.sqrt(7 / 3)))
    assert mean_sd([2.0]) == (2.0, None)
    with pytest.raises(ValueError, match="at least one"):
        mean_sd([])


@pytest.mark.parametrize("n", [2, 3, 10])
def test_paired_is_scipys(n):
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(n)
    a, b = [draw.gauss(0.9, 0.01) for _ in range(n)], [draw.gauss(0.89, 0.01) for _ in range(n)]
    wanted = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert paired(a, b) == pytest.approx((sum(a) / n - sum(b) / n, wanted.low, wanted.high))


def test_paired_edges():
    assert paired([0.9], [0.8]) == (pytest.approx(0.1), None, None)
    assert paired([3.0, 2.0], [2.0, 1.0]) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="3 and 2"):
        paired([1, 2, 3], [1, 2])


def test_a_group_is_a_row_with_its_paired_difference(records):
    output = summary(records)
    gain, low, high = (100 * x for x in paired(KD, NONE))
    assert line(output, "none ") == "none 3 89.16 ± 0.76 89.56 ± 0.76"
    assert line(output, "kd ") == f"kd 3 90.62 ± 0.51 91.02 ± 0.51 {gain:+.2f} [{low:+.2f}, {high:+.2f}]"
    assert line(output, "teacher ") == "teacher resnet14 1 95.81"
    for word in (
        "digits 1,200/597 train/test",
        "resnet14 -> resnet8 (78.0k)",
        "last epoch",
        "gain over none: mean difference per seed [95 % interval]",
        "| quick, 30 epochs",
    ):
        assert word in output
    assert "note" not in output


def test_pairs_are_made_by_seed_not_by_position(records):
    assert summary(records) == summary(records[:3] + records[:2:-1])
    assert "(2 pairs)" in line(summary(records[1:]), "kd ")
    assert line(summary(records[:4]), "kd ").endswith("+2.02 one seed")
    assert line(summary(records[3:]), "kd ").endswith("91.02 ± 0.51")
    assert line(summary([records[0], records[4]]), "kd ").endswith("no seed in common")


def test_other_initial_weights_are_no_pair(records):
    records[3]["student"]["init_sha256"] = sha("elsewhere")
    output = summary(records)
    assert "(2 pairs)" in line(output, "kd ")
    assert "kd seed 0 and none seed 0 started from different weights" in output


def test_groups_of_one_method_are_told_apart_and_meet_their_own_baseline(records):
    other = [make("none", 0, 0.80, lr=0.2), make("kd", 0, 0.83, lr=0.2), make("kd", 0, 0.7, lr=0.3)]
    output = summary(records + other)
    assert line(output, "kd (recipe.lr=0.1)").endswith("]")
    assert line(output, "kd (recipe.lr=0.2)").endswith("+3.00 one seed")
    assert line(output, "kd (recipe.lr=0.3)").endswith("no baseline with the same recipe")
    assert "note: rows differ in recipe.lr: compare only rows with the same value" in output


def label_list(*changes: dict, method="kd") -> list[str]:
    """The labels of runs of one column whose identities are changed so."""
    records = [make(method, lr=i) for i in range(len(changes))]
    for record, change in zip(records, changes, strict=True):
        record["identity"] |= {"recipe": {"lr": 0.1, "epochs": 30}} | change
    return list(rows.labels(records).values())


def test_labels_name_every_key_in_which_the_rows_of_a_method_differ():
    paper = {"method": {"fitnet": {"stages": {"hints": {"epochs": 0.2}}, "variant": "paper", "weights": {"hint": 1.0}}}}
    joint = {"method": {"fitnet": {"stages": {}, "variant": "joint", "weights": {"hint": 10.0}}}}
    assert label_list(paper, joint, method="fitnet") == [
        "fitnet (variant=paper, stages.hints.epochs=0.2, weights.hint=1)", "fitnet (variant=joint, stages={}, weights.hint=10)",
    ]  # fmt: skip
    kds = [{"method": {"kd": {"weights": {"soft": w}, "temperature": t}}} for t, w in ((2, 1.0), (4, 1.0), (4, 0.5))]
    wanted = [
        "kd (temperature=2, weights.soft=1)",
        "kd (temperature=4, weights.soft=1)",
        "kd (temperature=4, weights.soft=0.5)",
    ]
    assert label_list(*kds) == wanted
    cube = [
        {"recipe": {"epochs": epochs, "lr": lr}, "task_weight": weight}
        for lr in (0.1, 0.2) for epochs in (10, 20) for weight in (None, 1.0)
    ]  # fmt: skip
    assert label_list(*cube)[1] == "kd (loss.task=1, recipe.epochs=10, recipe.lr=0.1)"
    assert label_list({"task_weight": 1}) == ["kd"]
    long = [{"method": {"at": {"taps": ["stage1", "stage2", f"stage{n}"]}}} for n in (3, 4)]
    assert label_list(*long, method="at")[1] == "at (taps=[stage1,stage2,stage4])"  # never cut: rows would look alike
    assert label_list({"precision": "fp32"}, {"precision": "bf16"}) == [
        f"kd (engine.precision={p})" for p in ("fp32", "bf16")
    ]


def test_a_key_that_one_row_does_not_have_is_named_in_it_too():
    """A bare name beside one with keys says nothing; a knob that is younger than a run has the value that it had then."""
    weights = [{"method": {"kd": {"weights": weights}}} for weights in ({"soft": 1}, {"soft": 1, "hard": 2})]
    assert label_list(*weights) == ["kd (weights.hard=-)", "kd (weights.hard=2)"]
    standard = [{"method": {"kd": values}} for values in ({"temperature": 4}, {"temperature": 4, "standardize": True})]
    assert label_list(*standard) == ["kd (standardize=False)", "kd (standardize=True)"]


def test_settings_that_all_rows_share_are_named_in_all_of_them():
    """Where one row has another recipe, every row says which it has; what one method alone has, only its rows say."""
    made = [make("none"), make("kd"), make("at"), make("kd", lr=0.2)]
    assert list(rows.labels(made).values()) == [
        "none (recipe.lr=0.1)", "kd (recipe.lr=0.1)", "at (recipe.lr=0.1)", "kd (recipe.lr=0.2)",
    ]  # fmt: skip
    for number, record in enumerate(made := [make("none"), make("kd"), make("kd", lr=0.2)]):
        record["identity"]["recipe"] = {"lr": 0.1}
        record["identity"]["method"] = {"kd": {"temperature": number}} if number else {"none": {}}
    assert list(rows.labels(made).values()) == ["none", "kd (temperature=1)", "kd (temperature=2)"]


def test_rows_of_one_method_are_sorted_by_their_values_as_numbers():
    made = [make("kd", lr=lr) for lr in (10.0, 2.0, 1e-05, 0.5)] + [make("at", lr=2.0)]
    shown = [row.split("  ")[0] for row in summary(made).splitlines() if row.startswith(("kd (", "at ("))]
    assert shown == [f"kd (recipe.lr={lr})" for lr in ("1e-05", "0.5", "2", "10")] + ["at (recipe.lr=2)"]
    assert sorted(["stage10", "stage2", "-", "16", "2"], key=natural) == ["-", "2", "16", "stage2", "stage10"]


def test_groups_that_look_alike_are_told_apart_by_a_key_never_by_a_hash_alone():
    made = [make("kd", score=0.9), make("kd", score=0.8)]
    made[1]["group"] = "0123456789ab"
    assert list(rows.labels(made).values()) == [f"kd (group={made[0]['group'][:8]})", "kd (group=01234567)"]


@pytest.mark.parametrize("width", [80, 140])
def test_no_cell_is_wrapped(records, width):
    for record in records:
        record["holdout"] = record["last"] | {"test_score": 0.9}
    records += [
        make("a_method_with_a_long_name+kd", s, x - s / 10, lr=lr) for s, x in enumerate(KD[:2]) for lr in (0.5, 0.7)
    ]
    output = summary(records, width=width)
    assert max(map(len, output.splitlines())) <= width
    names = [row for row in output.splitlines() if row.startswith("a_method_with_a_long_name+kd (recipe.lr=0.5)")]
    assert len(names) == 1
    assert ("±" in names[0]) == (width == 140)


def test_a_failure_is_one_line_however_long(records):
    bad = make("sp", 2, status="failed", error="x" * 200)
    assert summary([*records, bad], width=80).splitlines()[-1] == f"failed      sp resnet8 seed 2: {'x' * 200}"


def test_copies_count_once_and_different_results_are_not_averaged(records):
    assert summary([*records, copy.deepcopy(records[3])]) == summary(records)
    output = summary([*records, make("kd", 0, 0.95, host="lab2")])
    assert " ".join(line(summary(records[:3] + records[4:]), "kd ").split()) in " ".join(output.split())
    assert "91.12" in line(output, "kd seed 0, result 1 of 2")
    assert "95.00" in line(output, "kd seed 0, result 2 of 2")
    assert "different results: 91.12 (lab1" in output


def test_mixed_sources_are_said(records):
    records[4]["code"]["method"]["kd"] = sha("edited")
    records[5]["teacher"]["sha256"] = sha("trained again")
    assert "have different sources of kd, weights of teacher resnet14" in summary(records)


def test_protocol_picks_the_difference(records):
    for record in records:
        record["protocol"] = "holdout"
        record["holdout"] = {
            "epoch": 3,
            "score": 0.9,
            "loss": 0.1,
            "test_score": record["score"] - 0.1 * len(record["method"][0]),
        }
    output = summary(records)
    assert "+21.45 [" in line(output, "kd ")
    assert "epoch chosen on the holdout" in output
    assert "+1.45 [" in summary(records, "last")


def test_unfinished_runs_are_listed_with_their_reason(records):
    bad = make("sp", 2, status="nan", error="loss became NaN at step 4,113 (term sp.similarity)\nTraceback")
    output = summary([*records, bad, make("kd", 9, status="interrupted")])
    assert line(output, "nan") == "nan sp resnet8 seed 2: loss became NaN at step 4,113 (term sp.similarity)"
    assert line(output, "interrupted") == "interrupted kd resnet8 seed 9"
    assert "Traceback" not in output
    assert summary([]) == "no runs\n"


def test_a_run_that_only_taught_is_a_teacher_row(records):
    teacher = make("none", 0, 0.9581, student="resnet14", id="77aa")
    assert summary([teacher, *records]) == summary(records)
    assert "-> resnet14" in summary([teacher])


def test_curves(tmp_path, records):
    runs = [(record, tmp_path / record["id"]) for record in records]
    for record, folder in runs:
        folder.mkdir()
        points = [{"stage": "hints", "epoch": 1, "test": None}, {"stage": "distil", "epoch": 1, "test": None}]
        points += [{"stage": "distil", "epoch": e, "test": {"score": record["score"] * (1 - 1 / e)}} for e in (2, 3, 4)]
        (folder / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    assert learning.read_curve(runs[0][1], Display(ACCURACY)) == {
        e: pytest.approx(NONE[0] * (1 - 1 / e)) for e in (2, 3, 4)
    }
    png = curves.curves(runs, tmp_path / "new" / "curves.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    (runs[0][1] / "curves.jsonl").write_text('{"stage": "dis')
    assert curves.curves(runs, png) == png  # without that run; test_plots.py has the note about it
    with pytest.raises(KdrunError, match="no run is done"):
        curves.curves([], png)


def test_many_methods_draw_without_a_warning(tmp_path):
    names = ["none", "kd", "attention_transfer_of_three_stages", *(f"method{i}" for i in range(9))]
    runs = [(make(name, s, 0.8 + 0.01 * s), tmp_path) for name in names for s in (0, 1)]
    runs += [(make(name, 0, 0.8, student="resnet20"), tmp_path) for name in names]
    (tmp_path / "curves.jsonl").write_text(json.dumps({"stage": "distil", "epoch": 1, "test": {"score": 0.8}}) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves.curves(runs, tmp_path / "curves.png")


def test_made_up_records_are_valid(records):
    bad = make("sp", 2, status="nan", error="loss became NaN")
    for record in [*records, bad, make("kd", status="interrupted")]:
        validate(record)
