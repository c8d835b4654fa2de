"""The record of a run as types. This is the only list of its keys; docs/records.md explains each of them.

record.json is checked against these types when it is read. docs/record.schema.json is made from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Optional, Union

import msgspec
from msgspec import Meta
from typing_extensions import NotRequired, TypedDict

SCHEMA = 2

Number = Union[int, float]  # noqa: UP007 - evaluated by msgspec, also on Python 3.10
Hex = Annotated[str, Meta(pattern="^[0-9a-f]+$")]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Share = Union[Annotated[int, Meta(ge=0, le=1)], Annotated[float, Meta(ge=0, le=1)]]  # noqa: UP007 - in [0, 1]
Utc = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|\+00:00)$")]


class Error(TypedDict):
    type: str
    message: str
    stage: Optional[str]
    step: Optional[Count]
    term: Optional[str]


class Metric(TypedDict):
    name: str
    label: str
    unit: str
    higher_is_better: bool
    counts: bool


class Dataset(TypedDict):
    name: str
    label: NotRequired[str]
    checksum: str
    train_n: Count
    holdout_n: Count
    test_n: Count
    classes: list[str]
    preprocessing: dict[str, Any]


class Teacher(TypedDict):
    name: str
    label: NotRequired[str]
    run_id: Optional[Hex]
    sha256: Sha256
    params: Count
    score: Optional[Number]


class Student(TypedDict):
    name: str
    label: NotRequired[str]
    init_sha256: Sha256
    sha256: Optional[Sha256]
    params: Count
    multiply_adds: NotRequired[Count]


class AutoWeight(TypedDict):
    share: Number
    weight: Optional[Number]


class Epoch(TypedDict):
    epoch: Positive
    score: Number
    loss: Optional[Number]
    metrics: dict[str, Optional[Number]]


class Holdout(TypedDict):
    epoch: Positive
    score: Number
    loss: Optional[Number]
    metrics: dict[str, Optional[Number]]
    test_score: Number
    test_metrics: dict[str, Optional[Number]]


class Time(TypedDict):
    start: Utc
    end: Optional[Utc]
    train_s: Number
    samples_per_s: Optional[Number]
    data_wait: Optional[Share]
    peak_memory: Optional[Count]


class Engine(TypedDict):
    device: str
    precision: str
    compile: Union[bool, str]  # noqa: UP007
    cache: Union[bool, str]  # noqa: UP007
    deterministic: bool


class Code(TypedDict):
    method: dict[str, str]
    student: Optional[str]
    teacher: NotRequired[Optional[str]]
    task: NotRequired[Optional[str]]


class Git(TypedDict):
    commit: Hex
    dirty: bool


class Record(TypedDict):
    schema: Literal[2]
    id: Hex
    group: Hex
    seed: int
    command: str
    identity: dict[str, Any]
    status: Literal["running", "done", "failed", "nan", "oom", "interrupted"]
    error: Optional[Error]
    task: str
    dataset: Dataset
    teacher: Optional[Teacher]
    student: Student
    method: Annotated[list[str], Meta(min_length=1)]
    weights: dict[str, Number]
    weights_auto: NotRequired[dict[str, AutoWeight]]
    recipe: dict[str, Any]
    protocol: Literal["last", "best", "holdout"]
    metrics: Annotated[list[Metric], Meta(min_length=1)]
    unit: str
    score: Optional[Number]
    last: Optional[Epoch]
    best: Optional[Epoch]
    holdout: Optional[Holdout]
    agreement: Optional[Number]
    details: Optional[dict[str, Any]]
    time: Time
    engine: Engine
    code: Code
    versions: dict[str, str]
    git: Optional[Git]
    host: str
    resumed: Count


# Rules that the types cannot express: which keys must not be null, depending on the status.
RULES = [
    {
        "if": {"properties": {"status": {"const": "done"}}},
        "then": {
            "properties": {
                "error": {"type": "null"}, "score": {"type": "number"}, "last": {"type": "object"}, "best": {"type": "object"},
                "student": {"properties": {"sha256": {"type": "string"}}}, "time": {"properties": {"end": {"type": "string"}}},
            }
        },
    },
    {
        "if": {"properties": {"status": {"enum": ["failed", "nan", "oom"]}}},
        "then": {"properties": {"error": {"type": "object"}}},
    },
    {
        "if": {"properties": {"status": {"const": "done"}, "protocol": {"const": "holdout"}}},
        "then": {"properties": {"holdout": {"type": "object"}}},
    },
]  # fmt: skip


def json_schema() -> dict[str, Any]:
    """The JSON schema of record.json (draft 2020-12), made from the types. It allows no other keys."""
    (reference,), parts = msgspec.json.schema_components([Record], ref_template="#/$defs/{name}")
    for part in parts.values():
        if "properties" in part:
            part["additionalProperties"] = False
    whole = parts.pop(reference["$ref"].rpartition("/")[2])
    title = f"record.json of a kdrun run, schema {SCHEMA}"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "title": title}
    return {**head, "allOf": RULES, "$defs": parts}


def check(record: dict[str, Any]) -> None:
    """Raise msgspec.ValidationError, which names the key, for a record that does not fit the types."""
    msgspec.convert(record, Record)


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """A record of schema 1 (images and accuracy only) as a record of schema 2. KeyError or TypeError if it is not of schema 1."""
    metric = record["metric"]
    name = str(metric["name"])
    dataset, time = dict(record["dataset"]), dict(record["time"])
    preprocessing = {key: dataset.pop(key) for key in ("size", "mean", "std")}
    time["samples_per_s"] = time.pop("images_per_s")
    details = {key: record.get(key) for key in ("calibration", "class_scores")}
    new = {key: value for key, value in record.items() if key not in ("metric", "calibration", "class_scores")}
    new |= {
        "schema": SCHEMA, "dataset": {**dataset, "preprocessing": preprocessing}, "time": time, "unit": "images",
        "metrics": [
            {"name": name, "label": name, "unit": "%", "higher_is_better": metric["higher_is_better"], "counts": True}
        ],
        "details": details if any(value is not None for value in details.values()) else None,
    }  # fmt: skip
    for key in ("last", "best", "holdout"):
        new[key] = with_metrics(record[key], name)
    return new


def with_metrics(epoch: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    """An epoch of schema 1 with its score also as the value of the metric `name`."""
    if epoch is None or "metrics" in epoch:
        return epoch
    more = {"metrics": {name: epoch["score"]}}
    return {**epoch, **more, **({"test_metrics": {name: epoch["test_score"]}} if "test_score" in epoch else {})}
