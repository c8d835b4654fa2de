"""A folder with train.*, test.* and validation.* (or dev.*): TSV, CSV or JSON lines with the columns that the settings name."""

from __future__ import annotations

from typing import Any

from kdrun.tasks.text.data import files
from kdrun.tasks.text.data.samples import Columns, Samples, from_tables


def samples(cfg: Any, outputs: str) -> Samples:
    """The samples of dataset.root. KdrunError that names file and line where one is broken."""
    texts = (cfg.text,) if cfg.second is None else (cfg.text, cfg.second)
    tables = {part: files.read(path) for part, path in files.find(cfg.root).items()}
    return from_tables(tables, Columns(texts, cfg.target, cfg.numbers, cfg.classes), cfg.test)


def listing(cfg: Any, outputs: str) -> list[Any]:
    """Name, size and time of each file."""
    return files.listing(files.find(cfg.root))
