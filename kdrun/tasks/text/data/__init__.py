"""Datasets of texts by name. Checksums, sizes and the vocabulary do not need torch; only `load` imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdrun.tasks.text.data.samples import SOURCES, read, summary
from kdrun.tasks.text.data.tokenizer import identity as tokenizer_identity
from kdrun.tasks.text.data.tokenizer import vocabulary_size
from kdrun.tasks.text.settings import check

if TYPE_CHECKING:
    from kdrun.tasks.text.data.base import TextDataset

__all__ = ["SOURCES", "checksum", "has_holdout", "load", "sizes", "tokenizer_identity", "vocabulary_size"]


def checksum(cfg: Any, outputs: str) -> str:
    """sha256 over texts, labels and class names of the files that are used. KdrunError for files or settings that are wrong."""
    check(cfg)
    digest: str = summary(cfg, outputs)["checksum"]
    return digest


def sizes(cfg: Any, outputs: str) -> tuple[int, int]:
    """Rows of the training file (the holdout is not taken out) and of the file that reports."""
    check(cfg)
    kept = summary(cfg, outputs)
    return kept["train"], kept["test"]


def has_holdout(cfg: Any, outputs: str) -> bool:
    """Whether there are texts to choose an epoch on: a validation file that does not report, or rows taken out of train."""
    check(cfg)
    return bool(cfg.holdout or summary(cfg, outputs)["validation"])


def load(cfg: Any, outputs: str) -> TextDataset:
    """The dataset that `cfg` describes, tokenised; tokens and a trained tokenizer are kept below <outputs>/cache/text.

    Raises KdrunError where a file is missing, broken, or does not suit the settings.
    """
    from kdrun.tasks.text.data.assemble import assemble

    check(cfg)
    return assemble(cfg, outputs, read(cfg, outputs))
