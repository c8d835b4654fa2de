"""Datasets of texts by name. Checksums, sizes and the vocabulary do not need torch; only `load` imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdrun.tasks.text.data import samples, tokenizer
from kdrun.tasks.text.settings import check

if TYPE_CHECKING:
    from kdrun.tasks.text.data.base import TextDataset

SOURCES = samples.SOURCES


def checksum(cfg: Any, outputs: str) -> str:
    """sha256 over texts, labels and class names of the files that are used. KdrunError for files or settings that are wrong."""
    check(cfg)
    digest: str = samples.summary(cfg, outputs)["checksum"]
    return digest


def sizes(cfg: Any, outputs: str) -> tuple[int, int]:
    """Rows of the training file (the holdout is not taken out) and of the file that reports."""
    check(cfg)
    kept = samples.summary(cfg, outputs)
    return kept["train"], kept["test"]


def tokenizer_identity(cfg: Any) -> dict[str, Any]:
    """What of the tokenizer makes another run: {"trained": vocabulary}, or {"sha256": that of its content}. Light."""
    return tokenizer.identity(cfg)


def vocabulary_size(cfg: Any) -> int:
    """Rows that the embeddings of a model need for this tokenizer: its highest id and 1. Light: nothing is trained."""
    return tokenizer.vocabulary_size(cfg)


def load(cfg: Any, outputs: str) -> TextDataset:
    """The dataset that `cfg` describes, tokenised; tokens and a trained tokenizer are kept below <outputs>/cache/text.

    Raises KdrunError where a file is missing, broken, or does not suit the settings.
    """
    from kdrun.tasks.text.data import assemble

    check(cfg)
    return assemble.assemble(cfg, outputs, samples.read(cfg, outputs))
