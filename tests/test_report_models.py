"""Reports of unlike models, data and recipes: each has columns, baselines and names of its own, and is never averaged with another."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys

import pytest
from test_report import make, sha
from test_report_command import write

from kdrun.cli import run
from kdrun.report import render, rows
from kdrun.report.caption import caption
from kdrun.report.collect import collect
from kdrun.report.pivot import tables, tables_by_student, teachers_of
from kdrun.report.summary import text as summary
from kdrun.report.text import gain


def remade(record: dict, **identity) -> dict:
    """A made-up record of another identity: group and id are its hashes, as in a real one."""
    record["identity"] |= identity
    shared = {key: value for key, value in record["identity"].items() if key != "seed"}
    record["group"], record["id"] = sha(shared)[:16], sha(record["identity"])[:16]
    record["student"]["init_sha256"] = sha(record["identity"]["student"], record["seed"])
    record["student"]["sha256"] = sha(record["id"], record["score"])
    return record


def imported(path: str, method="kd", seed=0, score=0.9, label=None, source=None, **arguments) -> dict:
    """A record of student=import."""
    record = make(method, seed, score, student="import")
    node = {
        "name": "import",
        "path": path,
        "arguments": arguments,
        "taps": {},
        **({"source": source} if source else {}),
    }
    record["student"] |= {"label": label} if label else {}
    return remade(record, student=node)


def taught_by(node: dict, method="kd", seed=0, score=0.9, **changed) -> dict:
    """A record whose teacher stands in its identity so."""
    record = make(method, seed, score)
    record["teacher"] |= {"name": node["name"], "run_id": node.get("run"), **changed}
    return remade(record, teacher=node)


def teacher(name="resnet14", seed=0, epochs=30, run_id="", params=172_000, **student) -> dict:
    """The run of a teacher, and its id as its students' identities have it."""
    record = make("none", seed, 0.95, student=name)
    record["student"] |= {"params": params}
    record = remade(record, student={"name": name, **student}, recipe={"epochs": epochs, "lr": 0.1}, seed=seed)
    return record | {"id": run_id or record["id"]}


def of_run(run: dict, **changed) -> dict:
    """The teacher of an identity that is a run."""
    return {"run": run["id"], "weights": "last", "name": run["student"]["name"]} | changed


# Models ------------------------------------------------------------------------------------------------------------------


def test_two_imported_models_have_a_column_and_a_baseline_each():
    made = [
        imported(path, method, seed, score + seed / 100)
        for path, none, kd in (("one:small", 0.26, 0.30), ("two:large", 0.80, 0.85))
        for method, score in (("none", none), ("kd", kd))
        for seed in range(2)
    ]
    (shown,) = tables(made)
    assert shown.columns == ["resnet14 -> small", "resnet14 -> large"]
    for column, none, more in (("resnet14 -> small", 0.265, 0.04), ("resnet14 -> large", 0.805, 0.05)):
        assert round(shown.cells["none"][column].mean["last"], 6) == none
        assert round(shown.cells["kd"][column].gain, 6) == more
    output = summary(made)
    assert output.count("-> small") == output.count("-> large") == 1  # a table each
    assert output.count("\nkd ") == 2


def test_models_of_one_label_are_told_apart_by_the_keys_that_differ():
    made = [imported("lab:net", m, 0, 0.8, width=w) for w in (32, 16, 8) for m in ("none", "kd")]
    (shown,) = tables(made)
    assert shown.columns == [f"resnet14 -> net (arguments.width={w})" for w in (8, 16, 32)]
    (shown,) = tables([imported(f"{module}:net", "kd", 0, 0.8, source=sha(module)) for module in ("a", "b")])
    assert shown.columns == ["resnet14 -> net (path=a:net)", "resnet14 -> net (path=b:net)"]


def test_an_edited_source_is_another_model_and_a_note_says_so():
    made = [imported("lab:net", m, 0, 0.8, source=sha(version)) for version in (1, 2) for m in ("none", "kd")]
    (shown,) = tables(made)
    assert shown.columns == [f"resnet14 -> net (source={sha(version)[:8]})" for version in (1, 2)]
    assert "net stands for 2 different models: source= is the hash of their code" in shown.notes
    assert any("source= is the hash of their code" in note for block in tables_by_student(made) for note in block.notes)


def test_labels_name_models_and_data_and_are_no_part_of_what_they_are():
    """A label in every table; one model with two labels is one column."""
    made = [
        imported("lab:net", m, s, 0.8, label=name) for m, name in (("none", "tiny"), ("kd", "small")) for s in (0, 1)
    ]
    for record in made:
        record["dataset"]["label"] = "my leaves"
    (shown,) = tables(made)
    assert shown.columns == ["resnet14 -> tiny"]
    assert "tiny and small are the same model" in shown.notes
    assert caption(shown)[0].startswith("my leaves: 1,200 training")
    lines = list(csv.DictReader(io.StringIO(render.as_csv([shown]))))
    assert {(one["dataset"], one["column"]) for one in lines} == {("my leaves", "resnet14 -> tiny")}
    assert "my leaves 1,200/597 train/test" in summary(made)
    assert "resnet14 -> tiny" in summary(made)


def test_data_of_one_name_are_told_apart():
    other = [make(m, 0, 0.8) for m in ("none", "kd")]
    for record in other:
        record["dataset"]["checksum"] = "cd" * 32
    held = make("kd")
    held["dataset"] |= {"train_n": 1000, "holdout_n": 200}
    shown = tables([make("none"), make("kd"), *other, held])
    assert [one.dataset["label"] for one in shown] == [
        "digits (train_n=1200, holdout_n=0, checksum=ab12)", "digits (train_n=1200, holdout_n=0, checksum=cdcdcdcd)",
        "digits (train_n=1000, holdout_n=200)",
    ]  # fmt: skip
    assert "1,000 training (200 more held out) and 597 test images" in caption(shown[2])[0]


def test_a_student_alone_stands_beside_every_teacher_of_its_own_model_only():
    made = [imported("lab:net", "none", width=8), imported("lab:net", "none", width=16), imported("lab:net", width=8)]
    made.append(remade(imported("lab:net", width=8), teacher={"name": "resnet20", "checkpoint": sha("file")}))
    made[-1]["teacher"]["name"] = "resnet20"
    (shown,) = tables(made)
    narrow = ["resnet14 -> net (arguments.width=8)", "resnet20 -> net (arguments.width=8)"]
    assert shown.columns == [*narrow, "net (arguments.width=16)"]
    assert [c for c in shown.cells["none"] if shown.cells["none"][c].row.first is made[0]] == narrow


def test_a_peer_is_a_teacher_of_its_architecture():
    """Mutual learning beside the teachers of the peer's kind, and of no other."""
    peers = make("dml")
    peers["teacher"] = None
    made = [make("kd"), remade(peers, teacher={"fresh": {"name": "resnet20"}})]
    (shown,) = tables(made)
    assert shown.columns == ["resnet14 -> resnet8", "resnet20 -> resnet8"]
    assert list(shown.cells["dml"]) == ["resnet20 -> resnet8"]


# Teachers ----------------------------------------------------------------------------------------------------------------


def test_teachers_of_one_model_are_rows_named_by_their_seed_and_recipe():
    runs = [teacher(seed=0), teacher(seed=1), teacher(seed=1, epochs=60)]
    made = [taught_by(of_run(one), score=0.8 + i / 100) for i, one in enumerate(runs)]
    (shown,) = tables([*runs, *made])
    assert shown.columns == ["resnet14 -> resnet8"]
    rows = [f"kd (teacher.seed={s}, teacher.recipe.epochs={e})" for s, e in ((0, 30), (1, 30), (1, 60))]
    assert list(shown.cells) == rows
    assert "rows differ in teacher.seed, teacher.recipe.epochs: compare only rows with the same values" in shown.notes


def test_teachers_whose_record_is_not_there_are_named_by_their_run():
    runs = [teacher(seed=seed) for seed in (0, 1)]
    made = [taught_by(of_run(one)) for one in runs]
    wanted = [f"kd (teacher.run={one['id'][:8]})" for one in runs]
    assert sorted(rows.labels(made).values()) == sorted(wanted)
    (shown,) = tables([runs[0], *made])
    assert sorted(shown.cells) == sorted(wanted)  # one known seed beside an unknown one would compare nothing


def test_teachers_are_columns_by_their_architecture():
    runs = [teacher("wide", width=w, params=p) for w, p in ((32, 320), (64, 640))]
    made = [taught_by(of_run(one), params=one["student"]["params"], sha256=sha(one["id"])) for one in runs]
    (shown,) = tables([*runs, *made])
    assert shown.columns == ["wide (width=32) -> resnet8", "wide (width=64) -> resnet8"]
    (shown,) = tables(made)  # without their records their sizes tell them apart
    assert shown.columns == ["wide (params=320) -> resnet8", "wide (params=640) -> resnet8"]
    (shown,) = tables([runs[0], *made])
    assert shown.columns == ["wide (params=640) -> resnet8", "wide (width=32) -> resnet8"]


def test_a_teacher_from_a_file_and_a_trained_one_are_rows_of_one_column():
    run_, file = teacher(), {"name": "resnet14", "checkpoint": sha("weights")}
    made = [taught_by(of_run(run_)), taught_by(file, sha256=sha("w"), run_id=None)]
    (shown,) = tables([run_, *made])
    assert shown.columns == ["resnet14 -> resnet8"]
    names = {f"kd (teacher.checkpoint={c})" for c in ("null", sha("weights")[:8])}
    assert set(shown.cells) == names
    cells = [line["resnet14 -> resnet8"] for line in shown.cells.values()]
    assert len({one.name for one in teachers_of(cells)}) == 2


def test_the_record_of_a_teacher_is_read_from_beside_its_students(tmp_path):
    """A part of outputs/runs is reported: the teachers' records lie in another part."""
    runs = [teacher(seed=seed) for seed in (0, 1)]
    for one, place in [(r, "none/none-resnet14") for r in runs] + [(taught_by(of_run(r)), "kd/p") for r in runs]:
        write(tmp_path / "runs/digits" / place / one["group"][:8] / f"seed{one['seed']}", one)
    for record in (tmp_path / "runs").rglob("run0/record.json"):
        record.rename(record.parents[1] / "record.json")
    known = collect([tmp_path / "runs/digits/kd"]).records
    assert len(known) == 2
    assert sorted(rows.labels(known).values()) == ["kd (teacher.seed=0)", "kd (teacher.seed=1)"]


# Recipes -----------------------------------------------------------------------------------------------------------------


def recipes() -> list[dict]:
    """none and two methods by two recipes, three seeds; at has no baseline of a third one."""
    scores = {"none": (0.900, 0.905, 0.910), "kd": (0.911, 0.914, 0.921), "rkd": (0.901, 0.903, 0.911)}
    made = [make(m, s, x, lr=lr) for lr in (0.1, 0.2) for m, xs in scores.items() for s, x in enumerate(xs)]
    return [*made, make("at", 0, 0.9, lr=0.3)]


def test_rows_of_other_recipes_are_compared_within_their_recipe():
    """Holm counts the methods of one recipe; a row without a baseline says why; the caption and a note say so."""
    (shown,) = tables(recipes())
    (alone,) = tables([one for one in recipes() if one["recipe"]["lr"] == 0.1])
    column = "resnet14 -> resnet8"
    assert shown.cells["kd (recipe.lr=0.2)"][column].p == alone.cells["kd"][column].p
    assert shown.cells["kd (recipe.lr=0.2)"][column].family == 2
    assert gain(shown.cells["at (recipe.lr=0.3)"][column]) == "no baseline with the same recipe"
    sentences = caption(shown)
    assert "note: rows differ in recipe.lr: compare only rows with the same value" in sentences
    assert any("Holm over the rows of one recipe in a column" in one for one in sentences)
    assert not any("one recipe" in one for one in caption(alone))


def test_a_student_alone_of_another_recipe_stands_in_its_students_columns():
    """Not in a column of its own: the row names the recipe."""
    (shown,) = tables([*recipes()[:-1], make("none", 0, 0.9, lr=0.7)])
    assert shown.columns == ["resnet14 -> resnet8"]
    assert "none (recipe.lr=0.7)" in shown.cells


def test_the_names_of_tensors_part_no_row_from_its_baseline():
    """student.taps only names what a method reads; of two students alone the one with more seeds in common is the baseline."""
    tapped, plain = imported("lab:net", "at", 0, 0.9), imported("lab:net", "none", 0, 0.8)
    tapped["identity"]["student"]["taps"] = {"stage1": "layer1"}
    tapped = remade(tapped)
    tapped["student"]["init_sha256"] = plain["student"]["init_sha256"]
    (shown,) = tables([plain, tapped])
    assert round(shown.cells["at"]["resnet14 -> net"].gain, 6) == 0.1
    few = [make("none", 7, 0.5), *(make("kd", s, 0.9) for s in (0, 1))]
    more = [remade(make("none", s, 0.8), deterministic=False) for s in (0, 1)]
    for record in more:
        record["student"]["init_sha256"] = sha("resnet8", record["seed"])
    (shown,) = tables([*few, *more])
    (kd,) = (line for label, line in shown.cells.items() if label.startswith("kd"))
    assert round(kd["resnet14 -> resnet8"].gain, 6) == 0.1


def test_a_recipe_that_differs_from_column_to_column_is_told_once():
    other = [remade(make(m, s, 0.8, student="resnet20", lr=0.01)) for m in ("none", "kd", "at") for s in (0, 1)]
    (shown,) = tables([*(make(m, s) for m in ("none", "kd", "at") for s in (0, 1)), *other])
    assert list(shown.cells) == ["none", "kd", "at"]
    assert [note for note in shown.notes if "differ" in note] == [
        "columns differ in recipe.lr: compare only cells of one column"
    ]


def test_keys_of_rows_and_columns_are_no_difference():
    made = [
        remade(make(m, 0, 0.8, lr=lr), method={m: {"temperature": t} if m == "kd" else {}})
        for m, t in (("none", 0), ("kd", 10), ("kd", 2)) for lr in (0.1, 0.2)
    ]  # fmt: skip
    for row_key, columns in (("method", "method.kd.temperature"), ("recipe.lr", "method.kd.temperature")):
        (shown,) = tables(made, rows=row_key, columns=columns)
        assert shown.columns == ["method.kd.temperature=2", "method.kd.temperature=10"]
        assert not any("differently" in note or "columns differ" in note for note in shown.notes)
    assert not any("differ" in note for note in shown.notes)
    assert set(shown.cells) == {f"recipe.lr={lr}, {m}" for lr in (0.1, 0.2) for m in ("none", "kd")}
    assert set(shown.cells["recipe.lr=0.1, none"]) == set(shown.columns)  # the student alone, beside every temperature
    (shown,) = tables(made, columns="recipe.lr")
    assert "kd (temperature=2)" in shown.cells
    assert not any("recipe.lr" in note for note in shown.notes)


def test_columns_of_a_key_mix_no_models():
    made = [make(m, 0, 0.8, student=student) for student in ("resnet8", "resnet20") for m in ("none", "kd")]
    (shown,) = tables(made, columns="recipe.lr")
    assert set(shown.cells) == {f"{m} (student={s})" for m in ("none", "kd") for s in ("resnet8", "resnet20")}
    (shown,) = tables(made, rows="method", columns="student")
    assert shown.columns == ["resnet8", "resnet20"]
    assert list(shown.cells) == ["none", "kd"]


def test_keys_are_those_of_the_command_line(tmp_path, capsys):
    runs = [teacher(seed=0), teacher(seed=1)]
    write(tmp_path, *runs, *(taught_by(of_run(one)) for one in runs))
    assert run(["report", str(tmp_path), "--columns", "teacher.seed", "--rows", "engine.precision"]) == 0
    assert "teacher.seed=0" in capsys.readouterr().out
    assert run(["report", str(tmp_path), "--columns", "precision"]) == 0


NETS = """
from torch import nn

def net(classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.{}(), nn.Linear(width, classes))
"""
SWEEP = (
    "student=import student.path=a:net,b:net teacher=import teacher.path=a:net teacher.seed=0,1 method=none,kd seed=0,1 "
    "dataset=digits recipe=quick recipe.epochs=1 teacher.recipe.epochs=1 engine.threads=1"
)


@pytest.mark.slow
def test_a_sweep_of_imported_models_is_reported_model_by_model(tmp_path, capsys):
    """Real runs: two builders of one name, each with its column and baseline; teachers by their seeds, at the sweep's end too."""
    for name, layer in (("a", "ReLU"), ("b", "Tanh")):
        (tmp_path / f"{name}.py").write_text(NETS.format(layer))
    done = subprocess.run(
        [sys.executable, "-m", "kdrun", "-m", *SWEEP.split(), "+teacher.arguments={width: 32}"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nkd (teacher.seed=0)") == done.stdout.count("\nkd (teacher.seed=1)") == 2
    (shown,) = tables(collect([tmp_path / "outputs/runs"]).records)
    assert len(shown.columns) == 2
    for module, column in zip("ab", shown.columns, strict=True):
        assert "arguments.width=32" in column.partition(" -> ")[0]
        assert f"path={module}:net" in column.partition(" -> ")[2]
        cells = {label: line[column] for label, line in shown.cells.items()}
        assert list(cells) == ["none", "kd (teacher.seed=0)", "kd (teacher.seed=1)"]
        for cell in cells.values():
            paths = {one["identity"]["student"]["path"] for one in cell.row.runs.values()}
            bases = {one["identity"]["student"]["path"] for one in (cell.base or cell.row).runs.values()}
            assert paths == bases == {f"{module}:net"}
            assert cell.baseline or cell.pairs == 2
    assert run(["report", str(tmp_path / "outputs/runs"), "--columns", "teacher.seed"]) == 0
    assert "student.path=b:net" in capsys.readouterr().out
