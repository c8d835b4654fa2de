"""Find the records of runs below folders. Reads record.json alone; what is no record of this schema is named and skipped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdrun.engine import record as records
from kdrun.errors import KdrunError


@dataclass
class Collection:
    """Records, each with its folder under the key "folder"; and why the others were skipped."""

    records: list[dict] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def collect(folders: Iterable[str | Path]) -> Collection:
    """Every record below the folders, in the order of their paths. A folder that is not there, or nothing found, is an error."""
    found, places = Collection(), [Path(folder) for folder in folders]
    for folder in places:
        if not folder.is_dir():
            raise KdrunError(f"{folder} is no folder; give one that holds runs, as outputs/runs")
        for path in sorted(_with_record(folder)):
            try:
                record = records.read(path)
                if record is not None:
                    _check(record, path)
                    found.records.append({**record, "folder": str(path)})
            except KdrunError as error:
                found.skipped.append(str(error))
    if not found.records:
        where = ", ".join(map(str, places))
        more = f" ({len(found.skipped)} skipped: {found.skipped[0]})" if found.skipped else ""
        raise KdrunError(f"no record.json of a run below {where}{more}; runs lie in OUTPUTS/runs")
    return found


def _with_record(folder: Path) -> Iterator[Path]:
    """Folders that hold a record.json; below one nothing else is looked for."""
    for root, folders, files in os.walk(folder):
        if records.NAME in files:
            folders.clear()
            yield Path(root)


def _check(record: dict, path: Path) -> None:
    """The keys that a table reads are there: another program's record.json may have a key `schema`, too."""
    wanted = (
        "id",
        "group",
        "seed",
        "status",
        "identity",
        "dataset",
        "student",
        "method",
        "recipe",
        "last",
        "best",
        "code",
    )
    missing = [key for key in wanted if key not in record]
    if missing:
        raise KdrunError(f"{path / records.NAME} is not a record of a kdrun run (no key '{missing[0]}')")
