"""The keys of the config that belong to texts: where they come from, and how they are cut into tokens. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdrun.config import schema
from kdrun.errors import KdrunError, choices

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")
OF_NUMBERS = ("pearson", "spearman")
# What GLUE reports for each of its tasks (https://arxiv.org/abs/1804.07461, table 1); the first selects.
GLUE_METRICS = {
    "cola": ("matthews", "accuracy"),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("pearson", "spearman"),
    "mnli": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
}
COLUMNS = ("text", "second", "classes")  # keys that only text_files uses


@dataclass
class Data(schema.Data):
    """Which columns are read, which file reports, and the tokenizer."""

    task: str | None = field(default=None, metadata={"choices": tuple(GLUE_METRICS)})  # of GLUE
    text: str | None = None  # column of the text; null: the dataset knows its columns
    second: str | None = None  # column of a second text
    target: str | None = None  # column of the label; `label` is what tables call the dataset
    numbers: bool = False  # labels are numbers to be predicted (regression)
    classes: list[str] | None = None  # null: sorted as they come in train, numbers in numeric order
    metric: str | None = field(default=None, metadata={"choices": METRICS})  # selects; null: the dataset's own
    test: str = field(default="auto", metadata={"choices": ("auto", "test", "validation")})  # the file that reports
    tokenizer: str | None = None  # folder or hub id | trained | null: that of the pretrained model
    vocabulary: int = field(default=4096, metadata={"least": 64})  # tokens of a trained tokenizer
    max_length: int = field(default=128, metadata={"least": 8})  # tokens, special ones included; longer texts are cut
    revision: str | None = None  # of a tokenizer from the hub
    local_files_only: bool = False  # true: never ask the hub for a tokenizer


def glue_task(cfg: Any) -> str | None:
    """The GLUE task that a dataset is; None where it is none."""
    return {"sst2": "sst2", "glue": cfg.task}.get(cfg.name)


def is_regression(cfg: Any) -> bool:
    """Whether the labels are numbers to be predicted: dataset.numbers=true, and GLUE's STS-B."""
    return bool(cfg.numbers) or glue_task(cfg) == "stsb"


def metrics_of(cfg: Any) -> tuple[str, ...]:
    """The names of a dataset's metrics. The first selects: dataset.metric where it is set, else the dataset's own."""
    task = glue_task(cfg)
    own = GLUE_METRICS[task] if task else OF_NUMBERS if is_regression(cfg) else ("accuracy", "f1")
    if cfg.metric is None:
        return own
    return (cfg.metric, *(name for name in own if name != cfg.metric))


def check(cfg: Any) -> None:
    """Raise KdrunError for a setting that is wrong, or that has no effect on this dataset."""
    if cfg.name == "glue" and cfg.task is None:
        raise KdrunError(
            f"dataset.task has no value; say which task of GLUE: dataset.task=rte. {choices('', GLUE_METRICS)}"
        )
    if cfg.name != "glue" and cfg.task not in (None, glue_task(cfg)):
        raise KdrunError(
            f"dataset.task={cfg.task} has no effect on dataset={cfg.name}; use dataset=glue dataset.task={cfg.task}"
        )
    if cfg.name == "reviews" and (cfg.root is not None or cfg.test == "validation"):
        key, value = ("root", cfg.root) if cfg.root is not None else ("test", cfg.test)
        raise KdrunError(
            f"dataset.{key}={value} has no effect: the reviews are generated, with a test file; leave it out"
        )
    if cfg.name != "text_files":
        _refuse_columns(cfg)
    elif cfg.text is None or cfg.target is None:
        key = "text" if cfg.text is None else "target"
        raise KdrunError(f"dataset.{key} has no value; say which column: dataset.{key}=COLUMN")
    regression = is_regression(cfg)
    if cfg.metric is not None and (cfg.metric in OF_NUMBERS) != regression:
        what = "numbers" if regression else "classes"
        fitting = OF_NUMBERS if regression else [name for name in METRICS if name not in OF_NUMBERS]
        raise KdrunError(
            f"dataset.metric={cfg.metric} does not suit labels that are {what}. {choices(cfg.metric, fitting)}"
        )
    if cfg.classes is not None:
        _check_classes(list(cfg.classes), regression)


def _refuse_columns(cfg: Any) -> None:
    for key in (*COLUMNS, "target"):
        if getattr(cfg, key) is not None:
            raise KdrunError(
                f"dataset.{key}={getattr(cfg, key)} has no effect: {cfg.name} knows its columns and classes; "
                f"use dataset=text_files for files of your own"
            )
    if cfg.numbers:
        raise KdrunError(
            f"dataset.numbers=true has no effect: {cfg.name} knows what its labels are; use dataset=text_files"
        )


def _check_classes(names: list[str], regression: bool) -> None:
    listed = ",".join(names)
    if regression:
        raise KdrunError(
            f"dataset.classes=[{listed}] has no effect, because dataset.numbers=true: numbers have no classes"
        )
    if len(names) < 2:
        raise KdrunError(
            f"dataset.classes=[{listed}] must have two names or more; null takes them from the training file"
        )
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise KdrunError(f"dataset.classes=[{listed}] has {doubled} twice")
