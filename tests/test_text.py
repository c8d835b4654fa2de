"""Distillation of texts through the real command: what a run leaves behind, and what a user makes of it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_texts import FULL, TEST, command, only, rows, texts, train
from test_resume import KILLER

import kdrun
from kdrun.runs import record as records

pytest.importorskip("transformers")

METHODS = ("none", "kd", "pkt")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods and two seeds, with one teacher."""
    root = texts(tmp_path_factory.mktemp("swept"))
    done = train(root, "-m", f"method={','.join(METHODS)}", "seed=0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "summary.txt").write_text(done.stdout)
    return root


def kd(root: Path, seed: int = 0) -> Path:
    return only(root, f"kd/*/*/seed{seed}")


def same_tensors(one: Path, other: Path) -> bool:
    mine, theirs = load_file(one), load_file(other)
    return mine.keys() == theirs.keys() and all(mine[key].equal(theirs[key]) for key in theirs)


# What a run leaves ------------------------------------------------------------------------------------------------------------


def test_records_match_their_schema(swept: Path) -> None:
    folders = [path.parent for path in (swept / "outputs/runs").rglob("record.json")]
    assert len(folders) == 7
    made = [records.read(folder) for folder in folders]
    for record in made:
        records.validate(record)
        assert (record["task"], record["unit"], record["status"]) == ("text", "sentences", "done")
        assert (record["dataset"]["train_n"], record["dataset"]["test_n"]) == (FULL, TEST)
        assert record["dataset"]["classes"] == ["no", "yes"]
        assert [metric["name"] for metric in record["metrics"]] == ["accuracy", "f1"]
        assert {*record["last"]["metrics"]} == {"accuracy", "f1"}
        assert record["details"]["calibration"]
    taught = [record for record in made if record["teacher"]]
    assert len(taught) == 4
    assert len({record["teacher"]["run_id"] for record in taught}) == 1
    assert any(record["id"] == taught[0]["teacher"]["run_id"] for record in made)
    assert max(record["last"]["score"] for record in made) > 0.9  # it is easy to learn


def test_logits_are_kept_where_they_are_all_that_a_method_needs(swept: Path) -> None:
    """One file serves both seeds of kd; a run with taps, and one without a teacher, keep none."""
    assert len(list((swept / "outputs/cache/logits").iterdir())) == 1
    runs = [(method, seed) for method in ("kd", "pkt") for seed in (0, 1)]
    cached = {run: records.read(only(swept, f"{run[0]}/*/*/seed{run[1]}"))["engine"]["cache"] for run in runs}
    assert cached == {("kd", 0): True, ("kd", 1): True, ("pkt", 0): False, ("pkt", 1): False}
    logits = load_file(next((swept / "outputs/cache/logits").iterdir()))["logits"]
    assert logits.shape == (FULL, 2)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    "file", ["read", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fresh", "broken"))]
)
def test_a_run_has_the_same_bits_whether_its_logits_were_kept_or_not(swept: Path, tmp_path: Path, file: str) -> None:
    """And it does not run the teacher in training where the file is there."""
    shutil.copytree(swept / "texts", tmp_path / "texts")
    shutil.copytree(swept / "outputs/runs/texts/none", tmp_path / "outputs/runs/texts/none")
    shutil.copytree(swept / "outputs/cache", tmp_path / "outputs/cache")
    (kept,) = (tmp_path / "outputs/cache/logits").iterdir()
    before = kept.read_bytes()
    if file == "fresh":
        kept.unlink()
    if file == "broken":
        kept.write_bytes(before[:100])
    done = train(tmp_path, "method=kd")
    assert done.returncode == 0, done.stderr
    assert ("read from" if file == "read" else "computed and kept in") in done.stdout
    for name in ("student.safetensors", "student-best.safetensors", "test_logits.safetensors"):
        assert same_tensors(kd(tmp_path) / name, kd(swept) / name), name
    assert kept.read_bytes() == before


@pytest.mark.slow
def test_kept_logits_are_what_the_student_learns_from(swept: Path, tmp_path: Path) -> None:
    """Others in the file, another student."""
    shutil.copytree(swept / "texts", tmp_path / "texts")
    shutil.copytree(swept / "outputs/runs/texts/none", tmp_path / "outputs/runs/texts/none")
    shutil.copytree(swept / "outputs/cache", tmp_path / "outputs/cache")
    (kept,) = (tmp_path / "outputs/cache/logits").iterdir()
    save_file({"logits": -load_file(kept)["logits"]}, kept)
    assert train(tmp_path, "method=kd").returncode == 0
    assert not same_tensors(kd(tmp_path) / "student.safetensors", kd(swept) / "student.safetensors")


def test_kept_logits_are_the_teacher_s(swept: Path) -> None:
    teacher = kdrun.load(only(swept, "none/none-bert-L4-H32/*/seed0"))
    logits = load_file(next((swept / "outputs/cache/logits").iterdir()))["logits"]
    with torch.no_grad():
        assert torch.allclose(teacher.student([text for text, *_ in rows(FULL, 0)]), logits, atol=1e-5)


def test_tensorboard_tags(swept: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(kd(swept) / "tb"))
    board.Reload()
    expected = {f"distil/{kind}/{term}" for kind in ("loss", "weight") for term in ("task", "kd.soft")}
    expected |= {"distil/loss/total", "distil/lr", "distil/train/accuracy", "teacher/test/accuracy"}
    expected |= {
        "eval/test/accuracy",
        "eval/test/f1",
        "eval/test/loss",
        "eval/test/agreement",
        "speed/sentences_per_s",
        "speed/data_wait",
    }
    tags = {*board.Tags()["scalars"]}
    assert expected <= tags, sorted(expected - tags)
    assert [event.step for event in board.Scalars("eval/test/accuracy")] == [6, 12]
    (words,) = (event.tensor_proto.string_val[0].decode() for event in board.Tensors("train/sentences/text_summary"))
    assert "the" in words.split()
    assert "[PAD]" not in words


# What a user makes of it --------------------------------------------------------------------------------------------------------


def test_a_finished_run_reads_strings(swept: Path) -> None:
    run = kdrun.load(kd(swept))
    test = [text for text, *_ in rows(TEST, 1)]
    logits, labels = run.logits()
    with torch.no_grad():
        assert torch.allclose(run.student(test), logits, atol=1e-5)
        one = run.student(test[3])
    assert one.shape == (1, 2)
    assert torch.allclose(one[0], logits[3], atol=1e-5)
    assert labels.tolist() == [("no", "yes").index(label) for _, label, _ in rows(TEST, 1)]
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(run.record["last"]["score"])
    names = run.student.predict(test)
    assert [name for name, _ in names] == [("no", "yes")[k] for k in logits.argmax(1).tolist()]
    with torch.no_grad():
        assert run.student("very " * 100).shape == (1, 2)  # cut as in training
    with pytest.raises(ValueError, match="no texts"):
        run.student([])


def test_verify_finds_nothing_wrong_and_a_change(swept: Path, tmp_path: Path) -> None:
    done = command(swept, "verify", "outputs/runs")
    assert done.returncode == 0, done.stdout
    assert "7 runs   7 ok" in done.stdout
    shutil.copytree(swept / "outputs/runs", tmp_path / "outputs/runs")
    run = kd(tmp_path)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("max_length: 16", "max_length: 32"))
    done = command(tmp_path, "verify", str(run))
    assert done.returncode == 1
    assert "dataset.max_length is 32, and the identity says 16" in done.stdout


@pytest.mark.parametrize("form", ["terminal", "md", "csv", "latex", "json", "html"])
def test_reports(swept: Path, form: str) -> None:
    done = command(swept, "report", "--format", form)
    assert done.returncode == 0, done.stderr
    assert (
        "image" not in done.stdout.lower().replace("image/png", "").replace("data:image", "").replace("<img", "")
        or form == "html"
    )
    if form == "csv":
        listed = list(csv.DictReader(io.StringIO(done.stdout)))
        assert {row["method"] if "method" in row else row["row"] for row in listed} >= {*METHODS}
        return
    for word in ("kd", "pkt", "bert-L2-H16"):
        assert word in done.stdout, word
    if form != "json":
        assert "sentences" in done.stdout


def test_the_record_and_the_page_have_the_surest_mistakes(swept: Path) -> None:
    record = json.loads((kd(swept) / "record.json").read_text())
    logits, labels = kdrun.load(kd(swept)).logits()
    wrong = [row for row in range(len(labels)) if logits[row].argmax() != labels[row]]
    surest = sorted(wrong, key=lambda row: -float(logits[row].softmax(0).max()))[:10]
    texts = [text for text, *_ in rows(TEST, 1)]
    mistakes = record["details"]["mistakes"]
    assert [one["texts"] for one in mistakes] == [[texts[row]] for row in surest]
    assert {(one["label"], one["predicted"]) for one in mistakes} <= {("no", "yes"), ("yes", "no")}
    done = command(swept, "report", "--format", "html")
    assert "Surest mistakes" in done.stdout
    assert texts[surest[0]] in done.stdout


def test_status(swept: Path) -> None:
    done = command(swept, "status")
    assert done.returncode == 0, done.stderr
    assert "7 runs   7 done" in done.stdout


def test_a_plan_knows_what_is_there_and_trains_nothing(swept: Path, tmp_path: Path) -> None:
    from small_texts import COMMON

    shutil.copytree(swept, tmp_path / "copy")
    root = tmp_path / "copy"
    before = sorted((root / "outputs/runs").rglob("*"))
    done = command(root, "plan", *COMMON, "-m", "method=none,rkd", "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already done") == 2
    assert done.stdout.count("to do   about") == 2
    assert sorted((root / "outputs/runs").rglob("*")) == before


def test_a_sweep_is_summed_up_in_its_own_words(swept: Path) -> None:
    text = (swept / "summary.txt").read_text()
    assert text.count("done in") == 6
    assert "covers seeds, not test sentences" in text
    assert "image" not in text


# Slow: other runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(swept: Path, tmp_path: Path) -> None:
    """The second epoch is killed in its middle; an epoch has 6 steps. The logits are kept from before the kill."""
    (tmp_path / "killer.py").write_text(KILLER)
    shutil.copytree(swept / "texts", tmp_path / "texts")
    shutil.copytree(swept / "outputs/runs/texts/none", tmp_path / "outputs/runs/texts/none")
    path = os.pathsep.join([str(tmp_path), str(kdrun.PACKAGE.parent)])
    killed = train(tmp_path, "method=kd", "plugins=[killer]", KILL_AT="9", PYTHONPATH=path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = train(tmp_path, "method=kd")
    assert done.returncode == 0, done.stderr
    mine, theirs = kd(tmp_path), kd(swept)
    assert records.read(mine)["resumed"] == 1
    for name in ("student.safetensors", "student-best.safetensors", "test_logits.safetensors"):
        assert same_tensors(mine / name, theirs / name), name
    times = ("samples_per_s", "data_wait", "seconds")
    curves = [[json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()] for run in (mine, theirs)]
    mine_, theirs_ = ([{k: v for k, v in line.items() if k not in times} for line in lines] for lines in curves)
    assert mine_ == theirs_
