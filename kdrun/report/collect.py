"""Collect the records of the runs below folders. Only record.json is read; files that are no records are skipped and named."""

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
    """Records, and why other files were skipped.

    Each record has its folder under the key "folder", and the record of its teacher's run, where that is known, under "taught_by".
    """

    records: list[dict] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def collect(folders: Iterable[str | Path]) -> Collection:
    """Every record below the folders, in the order of their paths. KdrunError for a missing folder, or where there is no record."""
    collection, places = Collection(), [Path(folder).expanduser() for folder in folders]
    for folder in places:
        if not folder.is_dir():
            raise KdrunError(f"{folder} is not a folder; give a folder of runs, such as outputs/runs")
        for root, folders, files in os.walk(folder):
            folders.sort()
            if records.NAME not in files:
                continue
            try:
                record = records.read(root)
            except KdrunError as error:
                collection.skipped.append(str(error))
                continue
            folders.clear()  # below a run there is no other
            if record is not None:
                collection.records.append({**record, "folder": root})
    if not collection.records:
        where, skipped = ", ".join(map(str, places)), collection.skipped
        more = f" ({len(skipped)} skipped: {skipped[0]})" if skipped else ""
        raise KdrunError(f"no record.json of a run below {where}{more}; runs lie in OUTPUTS/runs")
    collection.records = with_teachers(collection.records)
    return collection


def with_teachers(runs: list[dict]) -> list[dict]:
    """The records, each with the record of its teacher's run under "taught_by", where that is among them or beside their folders.

    Every record has its folder under "folder".
    """
    known = {record["id"]: record for record in runs}
    wanted = {record["teacher"]["run_id"] for record in runs if record["teacher"]} - known.keys() - {None}
    above = [Path(record["folder"]).resolve().parents for record in runs if wanted]
    places = sorted({folders[4] for folders in above if len(folders) > 4})  # runs/dataset/method/pair/hash/seed
    for path in (path for place in places for path in place.glob(f"*/none/none-*/*/seed*/{records.NAME}")):
        with suppress(KdrunError):  # a record that cannot be read is left out
            record = records.read(path.parent)
            if record is not None and record["id"] in wanted:
                known.setdefault(record["id"], record)
    return [
        {**record, "taught_by": known[record["teacher"]["run_id"]]}
        if record["teacher"] and record["teacher"]["run_id"] in known
        else record
        for record in runs
    ]
