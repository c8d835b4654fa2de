"""Texts: reading files, GLUE's layouts, class names, holdouts, tokenizers and the cache of tokens."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("tokenizers")

from kdrun.errors import KdrunError
from kdrun.tasks.text import data
from kdrun.tasks.text.data import assemble, files, glue, samples
from kdrun.tasks.text.data import tokenizer as tokenizers
from kdrun.tasks.text.settings import GLUE_METRICS, Data, metrics_of

TRAIN = [
    ("a good film", "good"), ("a bad film", "bad"), ("so good , so warm", "good"), ("what a bad , bad script", "bad"),
    ("good", "good"), ("not good", "bad"),
]  # fmt: skip
TEST = [("a warm film", "good"), ("a bad script", "bad")]
DEV = [("good script", "good"), ("so bad", "bad"), ("warm", "good")]


def write(path: Path, rows: list, header=("sentence", "label")) -> Path:
    """A TSV, CSV or JSONL file as a spreadsheet program or a script of the user's writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def config(root: Path | None = None, **changes: Any) -> Data:
    settings = {"name": "text_files", "text": "sentence", "target": "label", "tokenizer": "trained", "vocabulary": 128}
    return Data(**{**settings, "root": None if root is None else str(root), "max_length": 16, **changes})


def glue_config(root: Path | None, task: str | None, **changes: Any) -> Data:
    return config(root, **{"name": "glue", "task": task, "text": None, "target": None, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("train.tsv", TRAIN), ("dev.tsv", DEV), ("test.tsv", TEST)):
        write(tmp_path / "texts" / name, rows)
    return tmp_path / "texts"


@pytest.fixture
def outputs(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def decoded(dataset: Any, split: Any) -> list[str]:
    return [
        dataset.tokenizer.decode(split.ids[first:last].tolist(), skip_special_tokens=False)
        for first, last in zip(split.starts[:-1].tolist(), split.starts[1:].tolist(), strict=True)
    ]


# Reading ---------------------------------------------------------------------------------------------------------------------------


def test_a_folder_gives_texts_labels_and_tokens(folder, outputs) -> None:
    dataset = data.load(config(folder, max_length=64), outputs)
    assert dataset.classes == ["bad", "good"]
    assert dataset.train.texts == [(text,) for text, _ in TRAIN]
    assert dataset.train.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert (dataset.train.labels.dtype, dataset.train.ids.dtype, dataset.train.starts.dtype) == (
        torch.int64, torch.int32, torch.int64,
    )  # fmt: skip
    assert dataset.train.index.tolist() == list(range(6))
    assert [text for (text,) in dataset.holdout.texts] == [text for text, _ in DEV]  # the validation file
    assert [text for (text,) in dataset.test.texts] == [text for text, _ in TEST]
    assert decoded(dataset, dataset.train)[5] == "[CLS] not good [SEP]"
    assert dataset.train.segments is None
    assert (dataset.pad_id, dataset.mask_id, dataset.special_ids, dataset.vocabulary) == (0, 4, [0, 1, 2, 3, 4], 128)
    assert dataset.notes == []


def test_the_format_of_the_files_changes_nothing(folder, outputs, tmp_path) -> None:
    for suffix in (".csv", ".jsonl"):
        other = tmp_path / suffix[1:]
        for name, rows in (("train", TRAIN), ("validation", DEV), ("test", TEST)):
            write(other / (name + suffix), rows)
        assert data.checksum(config(other), outputs) == data.checksum(config(folder), outputs)
        assert data.sizes(config(other), outputs) == (6, 2)


def test_a_checksum_changes_with_texts_labels_classes_and_columns(folder, outputs, tmp_path) -> None:
    first = data.checksum(config(folder), outputs)
    seen = {first, data.checksum(config(folder, test="validation"), outputs)}
    seen.add(data.checksum(config(folder, classes=["good", "bad"]), outputs))
    rows = [(text, label, text.upper()) for text, label in TRAIN]
    write(folder / "train.tsv", rows, ("sentence", "label", "loud"))
    for name in ("dev", "test"):
        write(folder / f"{name}.tsv", [(*row, "X") for row in TEST], ("sentence", "label", "loud"))
    seen |= {data.checksum(config(folder, text="loud"), outputs), data.checksum(config(folder), outputs)}
    seen.add(data.checksum(config(folder, second="loud"), outputs))
    write(folder / "dev.tsv", [(*row, "X") for row in DEV], ("sentence", "label", "loud"))
    assert len(seen) == 6
    assert (
        data.checksum(config(folder), outputs) == first
    )  # the texts and labels of before; a column more is none of them


def test_a_summary_is_kept_until_a_file_changes(folder, outputs, monkeypatch) -> None:
    before = data.checksum(config(folder), outputs)
    with monkeypatch.context() as patch:
        patch.setattr(samples, "read", lambda *_: pytest.fail("the files were read again"))
        assert data.checksum(config(folder), outputs) == before
        assert data.sizes(config(folder), outputs) == (6, 2)
        assert data.has_holdout(config(folder), outputs)
    write(folder / "train.tsv", [*TRAIN, ("warm , warm", "good")])
    assert data.checksum(config(folder), outputs) != before


CELLS = ['say "no"', '"all of it"', "tab\there", "two\nlines", "comma, and ünïcode", '"', "a \\ b", "x\u2028y"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_cells_come_back_as_they_were_written(tmp_path, suffix) -> None:
    rows = [(cell, str(number)) for number, cell in enumerate(CELLS)]
    table = files.read(write(tmp_path / f"x{suffix}", rows))
    assert table.column("sentence", "text") == CELLS
    assert table.lines[-1] == len(CELLS) + {".jsonl": 0}.get(
        suffix, 2
    )  # below the header, and below a text of two lines


def test_quotes_of_a_plain_tsv_are_signs_of_the_text(tmp_path) -> None:
    lines = ['"a" b\t0', 'say "no\t1', '"open\t0', 'and close"\t1', '"open\t0', 'and close"\t1', '"x\t1']
    path = tmp_path / "x.tsv"
    for count in (1, 2, 4, 6, 7):  # some of these are CSV, too, if two rows are taken for one
        path.write_text("\n".join(["sentence\tlabel", *lines[:count]]) + "\n")
        assert files.read(path).rows == [line.split("\t") for line in lines[:count]]
    path.write_text("\n".join(["sentence\tlabel", *lines[2:4]]) + "\n")
    assert files.read(path).rows == [line.split("\t") for line in lines[2:4]]
    path.write_text('sentence\tlabel\n"whole"\t1\n')
    assert files.read(path).rows == [["whole", "1"]]
    assert files.read(path, quoted=False).rows == [['"whole"', "1"]]


def test_marks_line_ends_and_empty_lines_are_no_content(tmp_path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("\ufeffsentence, label\r\na,1\r\n\r\nb,2\r\n".encode())
    table = files.read(path)
    assert (table.columns, table.rows, table.lines) == (["sentence", "label"], [["a", "1"], ["b", "2"]], [2, 4])


def test_very_long_texts_are_read(tmp_path) -> None:
    limit = csv.field_size_limit()
    assert len(files.read(write(tmp_path / "x.csv", [("word " * 60_000, "1")])).rows[0][0]) == 300_000
    assert csv.field_size_limit() == limit  # of the user's own code


def test_pairs_and_numbers(tmp_path, outputs) -> None:
    rows = [("a man sings", "a man sleeps", "1.5"), ("a cat", "the cat", "4"), ("a", "b", "-2e-1")]
    for name in ("train", "test"):
        write(tmp_path / "pairs" / f"{name}.csv", rows, ("one", "two", "score"))
    cfg = config(tmp_path / "pairs", text="one", second="two", target="score", numbers=True)
    dataset = data.load(cfg, outputs)
    assert dataset.classes == []
    assert dataset.train.texts[1] == ("a cat", "the cat")
    assert dataset.train.labels.dtype == torch.float32
    assert torch.equal(dataset.train.labels, torch.tensor([[1.5], [4.0], [-0.2]]))
    assert decoded(dataset, dataset.train)[1] == "[CLS] a cat [SEP] the cat [SEP]"
    first = slice(*dataset.train.starts[1:3].tolist())
    assert dataset.train.segments is not None
    assert dataset.train.segments[first].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert metrics_of(cfg) == ("pearson", "spearman")
    held = data.load(dataclasses.replace(cfg, holdout=1), outputs)
    assert (len(held.train), len(held.holdout)) == (2, 1)
    assert sorted([*held.train.index.tolist(), *held.holdout.index.tolist()]) == [0, 1, 2]


# Classes ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "given", "classes", "numbers"),
    [
        (["10", "9", "-1"], None, ["-1", "9", "10"], [2, 1, 0]),
        (["b", "10", "9"], None, ["10", "9", "b"], [2, 0, 1]),
        (["no", "yes", "no"], ["yes", "no"], ["yes", "no"], [1, 0, 1]),
        (["0", "1", "0"], ["bad", "good"], ["bad", "good"], [0, 1, 0]),
        (["1", "0", "1"], ["1", "0"], ["1", "0"], [0, 1, 0]),
    ],
)
def test_the_order_of_classes(tmp_path, outputs, labels, given, classes, numbers) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", [(f"text {label}", label) for label in labels])
    dataset = samples.read(config(tmp_path, classes=given), outputs)
    assert (dataset.classes, dataset.train.labels) == (classes, numbers)


def test_labels_of_json_lines_may_be_numbers_or_truths(tmp_path, outputs) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", [("a", True), ("b", False)])
    assert samples.read(config(tmp_path), outputs).classes == ["false", "true"]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", [("a", 2), ("b", 10)])
    assert samples.read(config(tmp_path), outputs).classes == ["2", "10"]


# Which file does what --------------------------------------------------------------------------------------------------------------


def test_the_validation_file_reports_where_the_test_has_no_labels(folder, outputs) -> None:
    for rows, header in (
        ([(text, "-1") for text, _ in TEST], ("sentence", "label")),
        ([(str(row), text) for row, (text, _) in enumerate(TEST)], ("index", "sentence")),
    ):
        write(folder / "test.tsv", rows, header)
        dataset = data.load(config(folder), outputs)
        assert [text for (text,) in dataset.test.texts] == [text for text, _ in DEV]
        assert dataset.holdout is None
        assert not data.has_holdout(config(folder), outputs)
        (note,) = dataset.notes
        assert "test.tsv has no" in note
        assert "so dev.tsv reports" in note
    (folder / "test.tsv").unlink()
    (note,) = data.load(config(folder), outputs).notes
    assert re.search(r"has no test file, so dev.tsv reports", note)


def test_the_validation_file_reports_where_the_user_says_so(folder, outputs) -> None:
    dataset = data.load(config(folder, test="validation"), outputs)
    assert ([text for (text,) in dataset.test.texts], dataset.holdout) == ([text for text, _ in DEV], None)
    assert dataset.notes == []


def test_a_holdout_is_stratified_and_replaces_the_validation_file(folder, outputs) -> None:
    dataset, again = (data.load(config(folder, holdout=2), outputs) for _ in range(2))
    assert dataset.holdout is not None
    assert sorted(dataset.holdout.labels.tolist()) == [0, 1]
    assert sorted([*dataset.holdout.index.tolist(), *dataset.train.index.tolist()]) == list(range(6))
    assert torch.equal(dataset.holdout.index, again.holdout.index)
    for split in (dataset.train, dataset.holdout):  # every row kept its own tokens
        assert split.texts == [(TRAIN[row][0],) for row in split.index.tolist()]
        whole = data.load(config(folder), outputs).train.rows(split.index)
        assert torch.equal(split.ids, whole.ids)
        assert torch.equal(split.starts, whole.starts)
    assert dataset.notes == ["dev.tsv is not used: dataset.holdout=2 takes that many rows out of the training file"]
    assert data.checksum(config(folder, holdout=2), outputs) == data.checksum(config(folder), outputs)
    with pytest.raises(KdrunError, match=r"dataset.holdout=6 must lie between 0 and 5"):
        data.load(config(folder, holdout=6), outputs)
    with pytest.raises(KdrunError, match=r"leaves no training texts of class (bad|good)"):
        data.load(config(folder, holdout=5), outputs)


def test_rows_of_a_split_of_pairs_keep_tokens_and_segments_together(tmp_path, outputs) -> None:
    rows = [("a " * n, "b " * (5 - n), str(n % 2)) for n in range(1, 5)]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", rows, ("one", "two", "label"))
    whole = data.load(config(tmp_path, text="one", second="two"), outputs).train
    part = whole.rows(torch.tensor([3, 0]))
    for place, row in enumerate((3, 0)):
        ours, theirs = slice(*part.starts[place : place + 2].tolist()), slice(*whole.starts[row : row + 2].tolist())
        assert torch.equal(part.ids[ours], whole.ids[theirs])
        assert torch.equal(part.segments[ours], whole.segments[theirs])
    assert part.lengths.tolist() == whole.lengths[torch.tensor([3, 0])].tolist()
    assert len(whole.rows(torch.tensor([], dtype=torch.int64))) == 0


# Bad input -------------------------------------------------------------------------------------------------------------------------

HEADER = "sentence,label\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sentense,label\na,1\nb,0\n", r"train.csv has no column 'sentence'. Did you mean sentense\? Choices: label, .*\(dataset.text"),
        ("sentence,lable\na,1\nb,0\n", r"train.csv has no column 'label'. Did you mean lable\?.*\(dataset.target=COLUMN"),
        ("sentence,sentence,label\na,b,1\n", "train.csv has two columns 'sentence'"),
        ("sentence,label,label\na,b,1\n", "train.csv has two columns 'label'"),
        (HEADER + "a,1\n  ,0\n", r"train.csv:3 has an empty text \(column 'sentence'\)"),
        (HEADER + "a,1\nb,\n", "train.csv:3 has no label"),
        ("sentence;label\na;1\n", "train.csv has ';' between its columns: save it with commas"),
        ("sentence\tlabel\na\t1\n", "train.csv has tabs between its columns: .* as train.tsv"),
        (HEADER + "a,1\nb,c,0\n", r"train.csv:3 has 3 cells, the header has 2 .*: a text with commas must stand in quotes"),
        (HEADER + "a,1\n\nb\n", "train.csv:4 has 1 cell, the header has 2"),
        (HEADER + 'a,1\n"b,0\nc,1\n', "train.csv:3 is not CSV .a quote is never closed"),
        (HEADER + 'a,1\n"b"c,0\n', "train.csv:3 is not CSV"),
        (HEADER + "a,1\nb,1\n", r"train.csv has one class only \(1\)"),
        (HEADER.encode() + b"a,1\nna\xefve,0\n", r"train.csv:3 is not UTF-8 \(byte 0xef\)"),
        (HEADER.encode() + b"a,1\nb\0,0\n", "train.csv:3 has a zero byte"),
        ((HEADER + "a,1\n").encode("utf-16"), "train.csv:1 is not UTF-8"),
        ("", "train.csv is empty"),
        (HEADER, "train.csv has no rows below its header"),
    ],
)  # fmt: skip
def test_a_broken_table_is_one_line_with_its_place(tmp_path, outputs, content, message) -> None:
    (tmp_path / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    write(tmp_path / "test.csv", [("a", "1")])
    with pytest.raises(KdrunError, match=message) as caught:
        data.checksum(config(tmp_path), outputs)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(outputs)  # nothing half-written


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"sentence": "a", "label": 1}', '{"sentence": "b"'], "train.jsonl:2 is not JSON"),
        (['{"sentence": "a", "label": 1}', "", '["b", 0]'], "train.jsonl:3 is no JSON object"),
        (["[", '{"sentence": "a", "label": 1}', "]"], "train.jsonl is one JSON list: each line must hold one object"),
        (['{"sentence": "a", "label": 1}', '{"sentence": "b", "label": 0, "sentence": "c"}'], "train.jsonl:2 has two values of 'sentence'"),
        (['{"sentence": "a", "label": 1}', '{"label": 0}'], "train.jsonl:2 has an empty text"),
        (['{"sentence": "a", "label": 1}', '{"sentence": "b", "label": null}'], "train.jsonl:2 has no label"),
        (['{"text": "a", "label": 1}'], "train.jsonl has no column 'sentence'. .*Choices: label, text"),
        ([], "train.jsonl has no rows"),
    ],
)  # fmt: skip
def test_broken_json_lines_are_one_line_with_their_place(tmp_path, outputs, lines, message) -> None:
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    write(tmp_path / "test.jsonl", [("a", 1)])
    with pytest.raises(KdrunError, match=message):
        data.load(config(tmp_path), outputs)


def test_a_label_that_training_never_saw(folder, outputs) -> None:
    write(folder / "test.tsv", [*TEST, ("so so", "god")])
    with pytest.raises(KdrunError, match=r"test.tsv:4 has label 'god', which no training row has. Did you mean good\?"):
        data.checksum(config(folder), outputs)


@pytest.mark.parametrize("number", ["nan", "inf", "four", "1e999"])
def test_a_number_that_is_none(tmp_path, outputs, number) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", [("a", "1"), ("b", number)])
    with pytest.raises(KdrunError, match=f"train.csv:3 has label '{number}', which is no finite number"):
        data.checksum(config(tmp_path, numbers=True), outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": None}, "dataset.root is not set: it must be a folder with train"),
        ({"root": "/no/such/folder"}, "dataset.root=/no/such/folder is not a folder"),
        ({"classes": ["good", "bad", "odd"]}, "dataset.classes has 'odd', which .*train.tsv has not"),
        ({"classes": ["good", "odd"]}, "train.tsv:3 has label 'bad', which dataset.classes has not"),
        ({"classes": ["good"]}, "must have two names or more"),
        ({"classes": ["good", "bad", "good"]}, "has good twice"),
        ({"classes": ["good", "bad"], "numbers": True}, "has no effect, because dataset.numbers=true"),
        ({"metric": "pearson"}, "dataset.metric=pearson does not suit labels that are classes. .*accuracy, f1, matthews"),
        ({"metric": "f1", "numbers": True}, "dataset.metric=f1 does not suit labels that are numbers"),
        ({"text": None}, "dataset.text has no value"),
        ({"task": "rte"}, "dataset.task=rte has no effect on dataset=text_files; use dataset=glue dataset.task=rte"),
        ({"second": "two"}, "train.tsv has no column 'two'.*dataset.second=COLUMN"),
        ({"name": "glue", "text": None, "target": None}, "dataset.task has no value.*Choices: cola, mnli"),
        ({"name": "sst2"}, "dataset.text=sentence has no effect: sst2 knows its columns"),
        ({"name": "sst2", "text": None, "target": None, "numbers": True}, "dataset.numbers=true has no effect"),
        ({"name": "reviews", "text": None, "target": None}, "dataset.root=.* has no effect: the reviews are generated"),
    ],
)  # fmt: skip
def test_settings_that_do_not_suit(folder, outputs, change, message) -> None:
    with pytest.raises(KdrunError, match=message):
        data.checksum(dataclasses.replace(config(folder), **change), outputs)


def test_files_that_are_missing_or_there_twice(folder, outputs) -> None:
    write(folder / "validation.csv", DEV)
    with pytest.raises(KdrunError, match=r"has validation.csv and dev.tsv: keep one file for validation"):
        data.checksum(config(folder), outputs)
    (folder / "validation.csv").unlink()
    (folder / "dev.tsv").unlink()
    with pytest.raises(KdrunError, match=r"dataset.test=validation: .* has no validation file. .*Choices: test"):
        data.checksum(config(folder, test="validation"), outputs)
    write(folder / "test.tsv", [(text, "-1") for text, _ in TEST])
    with pytest.raises(KdrunError, match=r"dataset.test=test: .*test.tsv has no labels"):
        data.checksum(config(folder, test="test"), outputs)
    with pytest.raises(KdrunError, match=r"test.tsv has no labels: a file with labels must report"):
        data.checksum(config(folder), outputs)
    (folder / "test.tsv").unlink()
    with pytest.raises(KdrunError, match="neither a test nor a validation file"):
        data.checksum(config(folder), outputs)
    (folder / "train.tsv").unlink()
    with pytest.raises(KdrunError, match="has no train file; it must hold train"):
        data.checksum(config(folder), outputs)


# GLUE ------------------------------------------------------------------------------------------------------------------------------

# task -> lines of train.tsv as GLUE has them, the texts and the label of the first, and its class names
OWN = {
    "cola": (["gj04\t1\t\tHe sings.", "gj04\t0\t*\tSings he he."], ("He sings.",), 1, ["unacceptable", "acceptable"]),
    "sst2": (["sentence\tlabel", "so good \t1", "bad \t0"], ("so good ",), 1, ["negative", "positive"]),
    "mrpc": (
        ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\tHe said "no\tHe said no', "0\t7\t9\tA\tB"],
        ('He said "no', "He said no"), 1, ["not_equivalent", "equivalent"],
    ),
    "qqp": (
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tWhy?\tWhy not?\t0", "1\t2\tbroken", "4\t5\t6\tWho?\t\t1"],
        ("Why?", "Why not?"), 0, ["not_duplicate", "duplicate"],
    ),
    "stsb": (
        ["index\tgenre\tsentence1\tsentence2\tscore", "0\tx\tA plane\tAn air plane\t5.000", "1\tx\tA\tB\t0.25"],
        ("A plane", "An air plane"), 5.0, [],
    ),
    "mnli": (
        ["index\tpairID\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label",
         "0\t1e\t( a )\ta\tb\tneutral\tcontradiction", "1\t2e\t( a )\tc\td\tneutral\tentailment"],
        ("a", "b"), 2, ["entailment", "neutral", "contradiction"],
    ),
    "qnli": (
        ["index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tnot_entailment", "1\tWho?\tShe.\tentailment"],
        ("Who?", "He."), 1, ["entailment", "not_entailment"],
    ),
    "rte": (
        ["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tentailment", "1\tC.\tD.\tnot_entailment"],
        ("A.", "B."), 0, ["entailment", "not_entailment"],
    ),
    "wnli": (["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", "1\tC.\tD.\t0"], ("A.", "B."), 1, ["not_entailment", "entailment"]),
}  # fmt: skip


def test_every_task_of_glue_is_tested() -> None:
    assert set(OWN) == set(GLUE_METRICS) == set(glue.TASKS)


@pytest.mark.parametrize("task", OWN)
def test_the_own_files_of_glue(tmp_path, outputs, task) -> None:
    lines, texts, label, classes = OWN[task]
    matched = "_matched" if task == "mnli" else ""
    for name in ("train", f"dev{matched}"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = glue.TASKS[task].texts if task != "mnli" else ("sentence1", "sentence2")
    if task == "mrpc":
        columns = ("#1 String", "#2 String")
    unlabelled = ["\t".join(("index", *columns)), "\t".join(("0", *(["x"] * len(columns))))]
    (tmp_path / f"test{matched}.tsv").write_text("\n".join(unlabelled) + "\n")
    if task == "mnli":
        (tmp_path / "dev_mismatched.tsv").write_text("is not read")
    loaded = data.load(glue_config(tmp_path, task), outputs)
    assert loaded.classes == classes
    assert loaded.train.texts[0] == texts
    assert loaded.train.labels[0].item() == label
    assert len(loaded.train) == len(loaded.test) == 2
    assert loaded.holdout is None
    assert any("so dev" in note for note in loaded.notes)
    assert any("left out (first: line 3)" in note for note in loaded.notes) == (task == "qqp")


@pytest.mark.parametrize("task", OWN)
def test_the_columns_of_the_hub(tmp_path, outputs, task, monkeypatch) -> None:
    """root null: the package datasets gives the rows, which are written once."""
    layout = glue.TASKS[task]
    labels = [1, 0] if layout.classes else [2.5, 0.0]
    asked = []

    def load_dataset(name: str, of: str, split: str) -> list[dict[str, Any]]:
        asked.append((name, of, split))
        gold = [-1, -1] if split.startswith("test") else labels
        return [
            {**{c: f"{c} é {row}" for c in layout.texts}, "label": label, "idx": row} for row, label in enumerate(gold)
        ]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    cfg = glue_config(None, task) if task != "sst2" else glue_config(None, None, name="sst2")
    loaded = data.load(cfg, outputs)
    assert loaded.train.texts[1] == tuple(f"{column} é 1" for column in layout.texts)
    assert loaded.train.labels.flatten().tolist() == labels
    assert loaded.classes == list(layout.classes)
    assert any("test.jsonl has no labels, so validation.jsonl reports" in note for note in loaded.notes)
    matched = "_matched" if task == "mnli" else ""
    assert asked == [("nyu-mll/glue", task, part) for part in (f"validation{matched}", f"test{matched}", "train")]
    data.checksum(cfg, outputs)
    assert len(asked) == 3


def test_a_hub_that_does_not_answer(outputs, monkeypatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        KdrunError, match=r"GLUE's rte is not in .* \(Couldn't reach the hub\): give a folder with train"
    ):
        data.checksum(glue_config(None, "rte"), outputs)
    assert not os.path.exists(outputs)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(KdrunError, match=r"pip install datasets, or give a folder .*dataset.root=FOLDER"):
        data.checksum(glue_config(None, "rte"), outputs)


def test_a_column_of_glue_is_missing(tmp_path, outputs) -> None:
    for name in ("train", "dev"):
        write(tmp_path / f"{name}.tsv", [("a", "b", "entailment")], ("sentence1", "sentence", "label"))
    with pytest.raises(KdrunError, match=r"has no column 'sentence2'. Did you mean sentence\?[^(]*$"):
        data.checksum(glue_config(tmp_path, "rte"), outputs)


def test_metrics() -> None:
    assert metrics_of(glue_config(None, "cola")) == ("matthews", "accuracy")
    assert metrics_of(glue_config(None, "mrpc", metric="accuracy")) == ("accuracy", "f1")
    assert metrics_of(glue_config(None, "stsb", metric="spearman")) == ("spearman", "pearson")
    assert metrics_of(config(name="sst2")) == ("accuracy",)
    assert metrics_of(config(metric="matthews")) == ("matthews", "accuracy", "f1")


# Reviews ---------------------------------------------------------------------------------------------------------------------------


def test_the_reviews() -> None:
    from kdrun.tasks.text.data import reviews

    cfg = config(name="reviews", text=None, target=None)
    made = reviews.samples(cfg, "")
    # Results of earlier runs are of these sentences: who changes them gives other data.
    assert made.checksum() == "1b8b76072ce3158c82c6fcc579263956d6920a3cfd5141ca0052684f05edfb53"
    assert (len(made.train.texts), len(made.test.texts)) == (3_000, 1_000)
    words = [len(text.split()) for part in (made.train, made.test) for (text,) in part.texts]
    assert (min(words), max(words)) == (5, 25)
    assert len(set(made.train.texts) | set(made.test.texts)) == 4_000
    assert sum(made.test.labels) == 500
    rows = [row % 2 for row in range(3_000)]
    wrong = sum(label != right for label, right in zip(made.train.labels, rows, strict=True))
    assert 0.04 < wrong / 3_000 < 0.06


def test_a_contrast_means_its_main_clause() -> None:
    from kdrun.tasks.text.data import reviews

    def says(clause: str) -> int:
        bad = any(word in clause.split() for words in (reviews.ADJECTIVES[0], reviews.VERBS[0]) for word in words)
        negated = any(f" {word} " in clause for word in ("not", "never", "hardly", "far from", "rarely"))
        return int(bad == negated)

    made = reviews.samples(config(name="reviews"), "").test
    for (text,), label in zip(made.texts, made.labels, strict=True):
        body = text.removesuffix(" .")
        for lead in reviews.LEADS:
            body = body.removeprefix(f"{lead} , ") if lead else body
        if body.startswith("although "):
            other, main = body.removeprefix("although ").split(" , ")
        elif " , but " in body:
            other, main = body.split(" , but ")
        elif " , although " in body:
            main, other = body.split(" , although ")
        else:
            assert {says(clause) for clause in body.split(" and ")} == {label}
            continue
        assert (says(main), says(other)) == (label, 1 - label)


# Tokenizers and the cache ----------------------------------------------------------------------------------------------------------


def test_a_trained_tokenizer_is_the_same_in_every_process(folder, outputs) -> None:
    """The library's own trainer numbers the signs within words in the order of a hash table with a random key."""
    code = (
        "import sys\nfrom kdrun.tasks.text.data.tokenizer import train\n"
        "print(train([line for line in open(sys.argv[1], encoding='utf-8')], 200).to_str())"
    )
    text = str(Path(__file__).with_name("test_data.py"))
    made = {
        subprocess.run([sys.executable, "-c", code, text], capture_output=True, check=True).stdout for _ in range(2)
    }
    with open(text, encoding="utf-8") as lines:
        made.add(tokenizers.train(list(lines), 200).to_str().encode() + b"\n")
    assert len(made) == 1
    assert len(json.loads(made.pop())["model"]["vocab"]) == 200


def test_a_trained_tokenizer_is_small_enough_and_gives_unknown_signs(folder, outputs) -> None:
    made = tokenizers.train([chr(0x4E00 + n) * (n + 1) for n in range(300)], 64)
    assert made.get_vocab_size() <= 64
    assert made.encode(chr(0x4E00)).tokens == ["[CLS]", "[UNK]", "[SEP]"]  # rare
    assert made.encode(chr(0x4E00 + 299)).tokens[1] == chr(0x4E00 + 299)
    assert made.encode("x [MASK]").tokens == ["[CLS]", "[UNK]", "[MASK]", "[SEP]"]
    assert data.tokenizer_identity(config(folder)) == {"trained": 128}
    assert data.vocabulary_size(config(folder)) == 128


def test_texts_above_max_length_are_cut_and_counted(tmp_path, outputs) -> None:
    rows = [("a " * 30, "b", "0"), ("a", "b", "1"), ("a " * 6, "b " * 7, "0")]
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", rows, ("one", "two", "label"))
    dataset = data.load(config(tmp_path, text="one", second="two", max_length=8), outputs)
    assert dataset.train.lengths.tolist() == [8, 5, 8]
    assert dataset.notes == [
        f"2 of 3 texts of {name}.csv have more than 8 tokens and are cut (dataset.max_length)"
        for name in ("train", "test")
    ]
    assert decoded(dataset, dataset.train)[0] == "[CLS] a a a a [SEP] b [SEP]"  # the longer text of a pair is cut first
    assert dataset.notes == data.load(config(tmp_path, text="one", second="two", max_length=8), outputs).notes  # kept


def test_tokens_are_kept_and_a_broken_file_is_made_anew(folder, outputs, monkeypatch) -> None:
    first = data.load(config(folder), outputs)
    kept = sorted(Path(outputs, "cache", "text").glob("*.safetensors"))
    assert len(kept) == 3
    with monkeypatch.context() as patch:
        patch.setattr(assemble, "encode", lambda *_: pytest.fail("tokenised again"))
        patch.setattr(tokenizers, "train", lambda *_: pytest.fail("trained again"))
        second = data.load(config(folder), outputs)
        held = data.load(config(folder, holdout=2), outputs)  # the same file, whatever is taken out of it
    assert torch.equal(first.train.ids, second.train.ids)
    assert first.tokenizer_sha256 == second.tokenizer_sha256 == held.tokenizer_sha256
    whole = kept[0].read_bytes()
    for broken in (b"", b"x" * 50, whole[: len(whole) - 3]):
        for path in kept:
            path.write_bytes(broken)
        assert torch.equal(data.load(config(folder), outputs).train.ids, first.train.ids)
    assert kept[0].read_bytes() == whole
    (tokenizer,) = Path(outputs, "cache", "text").glob("tokenizer-*.json")
    tokenizer.write_text("{")
    assert data.load(config(folder), outputs).tokenizer_sha256 == first.tokenizer_sha256
    assert sorted(Path(outputs, "cache", "text").glob("*.safetensors")) == kept
    assert not list(Path(outputs).rglob("*.tmp"))


def test_tokens_are_made_anew_for_another_tokenizer_length_or_text(folder, outputs) -> None:
    counts = []
    for changes in ({}, {"max_length": 8}, {"vocabulary": 70}):
        data.load(config(folder, **changes), outputs)
        counts.append(len(list(Path(outputs).rglob("*.safetensors"))))
    write(folder / "test.tsv", DEV[:2])
    data.load(config(folder, tokenizer="trained"), outputs)
    assert [*counts, len(list(Path(outputs).rglob("*.safetensors")))] == [3, 6, 9, 10]


def test_a_folder_of_a_model_gives_its_tokenizer(folder, outputs, tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    made = tokenizers.train([text for text, _ in TRAIN], 64)
    made.add_tokens(["<new>"])
    made.enable_truncation(4)
    made.enable_padding(length=4)
    made.save(str(model / "tokenizer.json"))
    cfg = config(folder, tokenizer=str(model), max_length=9)
    dataset = data.load(cfg, outputs)
    assert data.vocabulary_size(cfg) == dataset.vocabulary == made.get_vocab_size()
    assert data.tokenizer_identity(cfg) == {"sha256": dataset.tokenizer_sha256}
    assert decoded(dataset, dataset.train)[2].startswith("[CLS] so good, so")
    assert int(dataset.train.lengths.max()) > 4  # its own length and padding are not used
    made.no_truncation()
    made.no_padding()
    made.save(str(model / "tokenizer.json"))
    assert data.tokenizer_identity(cfg) == {"sha256": dataset.tokenizer_sha256}  # and not part of its content
    made.add_tokens(["<newer>"])
    made.save(str(model / "tokenizer.json"))
    assert data.tokenizer_identity(cfg) != {"sha256": dataset.tokenizer_sha256}


def test_a_folder_with_a_vocabulary_alone(folder, outputs, tmp_path) -> None:
    pytest.importorskip("transformers")
    model = tmp_path / "model"
    model.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "so", "not"]
    (model / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (model / "config.json").write_text('{"model_type": "bert"}')
    cfg = config(folder, tokenizer=str(model))
    dataset = data.load(cfg, outputs)
    assert decoded(dataset, dataset.train)[:2] == ["[CLS] a good film [SEP]", "[CLS] a bad film [SEP]"]
    assert (data.vocabulary_size(cfg), dataset.vocabulary, dataset.pad_id, dataset.mask_id) == (11, 11, 0, 4)
    before = data.tokenizer_identity(cfg)
    (model / "vocab.txt").write_text("\n".join([*vocabulary, "script"]) + "\n")
    assert data.tokenizer_identity(cfg) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no tokenizer.json and no vocab.txt"),
        ({"tokenizer.json": "{"}, "tokenizer.json cannot be read as JSON"),
        ({"tokenizer.json": "[]"}, "tokenizer.json is no JSON object"),
        ({"tokenizer.json": "{}"}, "tokenizer.json (has no vocabulary|is no tokenizer)"),
    ],
)
def test_a_folder_without_a_tokenizer(folder, outputs, tmp_path, content, message) -> None:
    (tmp_path / "model").mkdir()
    for name, text in content.items():
        (tmp_path / "model" / name).write_text(text)
    for call in (lambda cfg: data.load(cfg, outputs), lambda cfg: data.vocabulary_size(cfg)):
        with pytest.raises(KdrunError, match=message):
            call(config(folder, tokenizer=str(tmp_path / "model")))


def test_a_tokenizer_must_be_named_and_must_pad(folder, outputs, tmp_path) -> None:
    with pytest.raises(KdrunError, match=r"dataset.tokenizer is null, and no pretrained model gives one"):
        data.load(config(folder, tokenizer=None), outputs)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"a": 0, "<unk>": 1}, "<unk>")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(KdrunError, match="has no padding token"):
        data.load(config(folder, tokenizer=str(tmp_path)), outputs)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "a"}}')
    assert data.load(config(folder, tokenizer=str(tmp_path)), outputs).pad_id == 0


def test_plans_need_no_torch(folder, outputs) -> None:
    code = (
        "import sys\nfrom kdrun.tasks.text import data\nfrom kdrun.tasks.text.settings import Data\n"
        "cfg = Data(name='text_files', root=sys.argv[1], text='sentence', target='label', tokenizer='trained')\n"
        "print(data.checksum(cfg, sys.argv[2])[:4], data.sizes(cfg, sys.argv[2]))\n"
        "print(data.vocabulary_size(cfg), data.tokenizer_identity(cfg))\n"
        "print({'torch', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), outputs], capture_output=True, text=True, check=True
    )
    first, *others = done.stdout.splitlines()
    assert first.endswith("(6, 2)")
    assert others == ["4096 {'trained': 4096}", "set()"]
