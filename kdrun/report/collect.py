"""Find the records of runs below folders. Reads record.json alone; what is no record of this schema is named and skipped."""

from __future__ import annotations

import os
from collections.abc import Iterable
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
        for root, folders, files in os.walk(folder):
            folders.sort()
            if records.NAME not in files:
                continue
            try:
                record = records.read(root)
            except KdrunError as error:
                found.skipped.append(str(error))
                continue
            folders.clear()  # below a run there is no other
            if record is not None:
                found.records.append({**record, "folder": root})
    if not found.records:
        where = ", ".join(map(str, places))
        more = f" ({len(found.skipped)} skipped: {found.skipped[0]})" if found.skipped else ""
        raise KdrunError(f"no record.json of a run below {where}{more}; runs lie in OUTPUTS/runs")
    return found
