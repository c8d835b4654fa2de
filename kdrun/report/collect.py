"""Find the records of runs below folders. Reads record.json alone; what is no record of this schema is named and skipped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdrun.errors import KdrunError
from kdrun.runs import record as records


@dataclass
class Collection:
    """Records, each with its folder under the key "folder", and with the record of its teacher's run under "taught_by" where that
    is known; and why the others were skipped."""

    records: list[dict] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def collect(folders: Iterable[str | Path]) -> Collection:
    """Every record below the folders, in the order of their paths. A folder that is not there, or nothing found, is an error."""
    found, places = Collection(), [Path(folder).expanduser() for folder in folders]
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
    found.records = with_teachers(found.records)
    return found


def with_teachers(runs: list[dict]) -> list[dict]:
    """The records, each with that of its teacher's run under "taught_by": from among them, or from where their runs lie.

    Every record has its folder under "folder". A teacher that is nowhere leaves its students as they are.
    """
    known = {record["id"]: record for record in runs}
    wanted = {record["teacher"]["run_id"] for record in runs if record["teacher"]} - known.keys() - {None}
    above = [Path(record["folder"]).resolve().parents for record in runs if wanted]
    places = sorted({folders[4] for folders in above if len(folders) > 4})  # runs/dataset/method/pair/hash/seed
    for path in (path for place in places for path in place.glob(f"*/none/none-*/*/seed*/{records.NAME}")):
        with suppress(KdrunError):  # one that cannot be read is no teacher of anyone
            record = records.read(path.parent)
            if record is not None and record["id"] in wanted:
                known.setdefault(record["id"], record)
    return [
        {**record, "taught_by": known[record["teacher"]["run_id"]]}
        if record["teacher"] and record["teacher"]["run_id"] in known
        else record
        for record in runs
    ]
