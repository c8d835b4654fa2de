"""What a report reads from records beside their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score_of(record: dict, protocol: str) -> float | None:
    """The test score of the epoch that a protocol chooses; None where there is no such epoch."""
    epoch = record[protocol]
    return epoch and epoch["test_score" if protocol == "holdout" else "score"]


def protocol_of(records: Sequence[dict]) -> str:
    """The protocol that all records agree on, else last."""
    protocols = {record["protocol"] for record in records}
    return protocols.pop() if len(protocols) == 1 else "last"


def reports(dataset: Mapping[str, Any]) -> str | None:
    """The split that stands in for a test set, such as "val", where a dataset has none; None where test reports.

    `dataset`: the facts of a record (dataset_facts).
    """
    split = dataset.get("reports")
    return str(split) if split not in (None, "test") else None


def details_of(record: dict, key: str) -> Any:
    """A result of the last epoch beside its metrics, such as the calibration; None where the record does not have it."""
    return (record["details"] or {}).get(key)


def dataset_facts(record: dict) -> dict[str, Any]:
    """The facts about the data of a record, with those of the preprocessing beside them."""
    facts = {key: value for key, value in record["dataset"].items() if key != "preprocessing"}
    return facts | record["dataset"]["preprocessing"]


def right_answers(predictions: Mapping[str, Any]) -> Any:
    """For each sample whether the prediction is right: what the task says, or in older files the class with the highest logit.

    KeyError where the file holds neither.
    """
    if "right" in predictions:
        return predictions["right"]
    return predictions["logits"].argmax(1) == predictions["labels"]
