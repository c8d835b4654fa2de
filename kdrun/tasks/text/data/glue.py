"""GLUE (https://gluebenchmark.com) and its SST-2: a local folder with GLUE's own files or with the hub's columns, or the hub itself."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.tasks import cache
from kdrun.tasks.text.data import files
from kdrun.tasks.text.data.samples import Columns, Samples, from_tables
from kdrun.tasks.text.settings import glue_task

HUB = "nyu-mll/glue"
PARTS = ("train", "validation", "test")
COLA = ("source", "label", "mark", "sentence")  # its files have no header


@dataclass(frozen=True)
class Layout:
    """The columns of a task on the hub, the other names that GLUE's own files have for them, and its class names in order."""

    texts: tuple[str, ...]
    classes: tuple[str, ...] = ()  # empty: numbers
    target: str = "label"
    own: tuple[tuple[str, str], ...] = ()  # (name in GLUE's files, name on the hub)


TASKS = {
    "cola": Layout(("sentence",), ("unacceptable", "acceptable")),
    "sst2": Layout(("sentence",), ("negative", "positive")),
    "mrpc": Layout(
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        own=(("#1 String", "sentence1"), ("#2 String", "sentence2"), ("Quality", "label")),
    ),
    "qqp": Layout(("question1", "question2"), ("not_duplicate", "duplicate"), own=(("is_duplicate", "label"),)),
    "stsb": Layout(("sentence1", "sentence2"), own=(("score", "label"),)),
    "mnli": Layout(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
                   own=(("sentence1", "premise"), ("sentence2", "hypothesis"), ("gold_label", "label"))),
    "qnli": Layout(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": Layout(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": Layout(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}  # fmt: skip
# MNLI has two validation files: the one from the training files' genres (matched) is what papers report first.
MATCHED = {
    **files.STEMS,
    "validation": ("validation_matched", "dev_matched", *files.STEMS["validation"]),
    "test": ("test_matched", "test"),
}


def samples(cfg: Any, outputs: str) -> Samples:
    """The samples of dataset.root, or of the hub where it is null. KdrunError that names file and line where one is broken."""
    task = str(glue_task(cfg))
    layout = TASKS[task]
    tables = {part: _table(path, task, layout) for part, path in _files(cfg, outputs).items()}
    columns = Columns(
        layout.texts, layout.target, not layout.classes, layout.classes or None, own=False, empty=len(layout.texts) == 2
    )
    return from_tables(tables, columns, cfg.test)


def listing(cfg: Any, outputs: str) -> list[Any]:
    """Name, size and time of each file. What the hub has not given yet is downloaded."""
    return files.listing(_files(cfg, outputs))


def _files(cfg: Any, outputs: str) -> dict[str, Path]:
    task = str(glue_task(cfg))
    root = cfg.root
    if root is None:
        root = os.path.join(outputs, "data", "glue", task)
        if not os.path.isfile(os.path.join(root, "train.jsonl")):
            _download(task, Path(root))
    return files.find(root, MATCHED if task == "mnli" else files.STEMS)


def _table(path: Path, task: str, layout: Layout) -> files.Table:
    """The table in a file, with the hub's names of the columns."""
    headless = task == "cola" and path.suffix == ".tsv" and _has_no_header(path)
    # GLUE's own files have no CSV quotes. Three rows of QQP have too few cells; all readers of GLUE leave them out.
    table = files.read(path, COLA if headless else None, quoted=False, lenient=task == "qqp")
    names = dict(layout.own)
    if not set(layout.texts) <= set(table.columns):
        table.columns = [names.get(name, name) for name in table.columns]
    elif layout.target not in table.columns:  # the texts of QQP and STS-B have one name in both
        table.columns = [layout.target if names.get(name) == layout.target else name for name in table.columns]
    return table


def _has_no_header(path: Path) -> bool:
    """Whether the first line of a file is a row of CoLA (source, 0 or 1, mark, sentence) already."""
    with open(path, "rb") as file:
        cells = file.readline().split(b"\t")
    return len(cells) == len(COLA) and cells[1] in (b"0", b"1")


def _download(task: str, folder: Path) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl of a task from the hub; train last, which says that all are there."""
    for part in ("validation", "test", "train"):
        name = f"{part}_matched" if task == "mnli" and part != "train" else part
        rows = _from_hub(task, name, folder)
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        cache.write(folder / f"{part}.jsonl", content.encode())


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Only errors of a library are shown: without a network, this one prints two lines for each of its tries."""
    before = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(before)


def _from_hub(task: str, part: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of one part, their labels as numbers."""
    way = f"give a folder with {files.LAYOUT}: dataset.root=FOLDER"
    try:
        import datasets
    except ImportError as error:
        raise KdrunError(
            f"dataset.root is null, and the hub needs the package datasets: pip install datasets, or {way}"
        ) from error
    try:
        with _quiet("huggingface_hub"):
            rows = datasets.load_dataset(HUB, task, split=part)
    except Exception as error:  # of datasets, of the hub's client, or of the network
        reason = " ".join(str(error).split())[:160]
        raise KdrunError(
            f"GLUE's {task} is not in {folder} and could not be downloaded from the hub ({reason}): {way}"
        ) from error
    return ({key: value for key, value in row.items() if key != "idx"} for row in rows)
