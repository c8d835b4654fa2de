"""`kdrun status [FOLDER]`: the state of every run below a folder, also during a sweep. It only reads files."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kdrun.config.project import outputs_here
from kdrun.errors import KdrunError
from kdrun.report.collect import Collection, collect
from kdrun.report.command import Parser
from kdrun.runs import record as records
from kdrun.runs.folder import CURVES, HOLDER
from kdrun.runs.labels import label_of, run_name, safe
from kdrun.screen import clock
from kdrun.sweep.folder import MANIFEST, NO_STATE, states_of

LONG = 60  # a longer name (all overrides of a job without a record) does not make the column of names wider


@dataclass
class State:
    """One run: its status, how far it is, and the time that it needs."""

    name: str
    status: str  # done, running, interrupted, failed, nan, oom, skipped, not started
    detail: str = ""  # epoch and time left, or the error
    left_s: float | None = None  # seconds of training, estimated from its last epoch
    whole_s: float | None = None  # seconds of training for all of its epochs
    kind: tuple[str, str] | None = None  # dataset and student: runs of one kind take about the same time
    in_sweep: bool = False  # whether it belongs to the newest sweep

    @property
    def to_do(self) -> bool:
        """Whether it is running, or the newest sweep will still start it."""
        return self.status in ("running", "not started") or (self.status == "interrupted" and self.in_sweep)


def status(arguments: Sequence[str]) -> int:
    """Run the verb; returns the exit status."""
    parser = Parser(
        "kdrun status",
        description="State, progress, time left and last error of every run. Finished runs are only counted.",
    )
    parser.add_argument("folder", nargs="?", default=outputs_here(), metavar="FOLDER", help="default: outputs")
    parser.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="repeat every few seconds")
    options = parser.parse_args(arguments)
    while True:
        print("\n".join(lines(*states(Path(options.folder).expanduser()))), flush=True)
        if options.watch is None:
            return 0
        time.sleep(max(options.watch, 0.5))
        print()


def states(folder: Path) -> tuple[list[State], list[str]]:
    """The runs with a record, then the jobs of the newest sweep without a record; and the reasons why records were skipped."""
    all_jobs = _newest_jobs(folder)
    try:
        collection = collect([folder])
    except KdrunError as error:
        if not all_jobs:
            raise
        # If no file was skipped, the error only means that there is no record yet.
        collection = Collection(skipped=[str(error)] if " skipped: " in str(error) else [])
    known = {str(Path(record["folder"]).resolve()): record for record in collection.records}
    jobs = {job["folder"]: job for job in all_jobs if job["folder"]}
    for outside in jobs.keys() - known.keys():  # runs outside the folder
        record = _read(outside)
        if record is not None:
            known[outside] = {**record, "folder": outside}
    recorded = [_state(record, jobs.get(place)) for place, record in known.items()]
    unrecorded = {job["folder"] or i: job for i, job in enumerate(all_jobs) if job["folder"] not in known}
    return recorded + [_unrecorded(job) for job in unrecorded.values()], collection.skipped


def lines(runs: list[State], skipped: Sequence[str] = ()) -> list[str]:
    """A line for each run that is not done; then the number of runs in each state, and the time left if it is known."""
    counts = Counter(state.status for state in runs)
    shown = [state for state in runs if state.status not in ("done", "not started")]
    width = max((len(state.name) for state in shown if len(state.name) <= LONG), default=0)
    text = [f"{state.status:<12}{state.name:<{width}}  {state.detail}".rstrip() for state in shown]
    if skipped:
        text.append(f"{'skipped':<12}{len(skipped)} record{'s' * (len(skipped) != 1)}, first: {skipped[0]}")
    total = f"{len(runs)} run{'s' * (len(runs) != 1)}   " + "   ".join(
        f"{number} {status}" for status, number in counts.most_common()
    )
    left = [state.left_s for state in runs if state.status == "running" and state.left_s is not None]
    running = f"   running runs end in {clock(max(left))}" if left else ""
    return [*text, total + running + _estimate(runs)]


def _estimate(runs: list[State]) -> str:
    """The time left for all runs, if as many run at once as now. The time of waiting runs is estimated from similar runs."""
    at_once = sum(state.status == "running" for state in runs)
    to_do = [state for state in runs if state.to_do]
    left = [_left(state, runs) for state in to_do]
    waiting = [seconds for state, seconds in zip(to_do, left, strict=True) if state.status != "running"]
    if not at_once or all(seconds is None for seconds in waiting):
        return ""
    known = [seconds for seconds in left if seconds is not None]
    unknown = len(left) - len(known)
    without = (
        f" (not counted: {unknown} run{'s' * (unknown != 1)} without a similar run to estimate from)" if unknown else ""
    )
    return f"   all runs end in {clock(max(sum(known) / at_once, *known))}{without}"


def _left(state: State, runs: list[State]) -> float | None:
    """Seconds that a run still needs: from its own epochs, else the median of similar runs, first those of the newest sweep."""
    if state.left_s is not None:
        return state.left_s
    similar = [one for one in runs if one.whole_s and one.kind == state.kind]
    times = [one.whole_s for one in similar if one.in_sweep] or [one.whole_s for one in similar]
    return median(seconds for seconds in times if seconds) if times else None


def _state(record: dict, job: dict[str, Any] | None) -> State:
    """The state of a run with a record. Its job in the newest sweep may have an error that the record does not have."""
    folder, is_done = Path(record["folder"]), record["status"] == "done"
    kind = (safe(label_of(record, "dataset")), _student(safe(label_of(record, "student"))))
    state = State((job or {}).get("name") or run_name(record), record["status"], kind=kind, in_sweep=job is not None)
    if record["status"] not in ("running", "interrupted"):
        state.detail = (record["error"] or {}).get("message") or ""
        state.whole_s = record["time"]["train_s"] if is_done else None
        return state
    state.detail, state.left_s, state.whole_s = _progress(record, folder)
    if record["status"] != "running" or not _alive(folder):
        state.status = "interrupted"
        if job is not None and job["error"] and job["error"] != NO_STATE:
            state.status, state.detail = job["status"], job["error"]
    return state


def _unrecorded(job: dict[str, Any]) -> State:
    """The state of a job whose run has no record: it failed before the run began, or it is not started."""
    name, place = job.get("name") or " ".join(job["overrides"]), Path(job["folder"] or "").parts
    kind = (place[-5], _student(place[-3])) if len(place) > 4 else None  # dataset/method/pair/hash/seed
    if job["status"] == "done" or job["error"] == NO_STATE:  # done, but the folder of its run was removed
        return State(name, "not started", kind=kind, in_sweep=True)
    return State(name, job["status"], job["error"], kind=kind, in_sweep=True)


def _student(pair: str) -> str:
    """The last word of the name of a pair's folder: the student."""
    return pair.rpartition("-")[2]


def _alive(folder: Path) -> bool:
    """Whether the process that holds the folder is alive. A process on another host counts as alive."""
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        if holder["host"] != socket.gethostname():
            return True
        os.kill(holder["pid"], 0)
        return True
    except PermissionError:
        return True  # it is alive and belongs to another user
    except (OSError, ValueError, KeyError):
        return False


def _progress(record: dict, folder: Path) -> tuple[str, float | None, float | None]:
    """Progress of the running stage as text, seconds left, and seconds of all its epochs."""
    try:
        done = json.loads((folder / CURVES).read_text(encoding="utf-8").splitlines()[-1])
        epoch, stage = done["epoch"], done["stage"]
    except (OSError, ValueError, LookupError, TypeError):
        return "before its first epoch", None, None
    # Older curves have no `epochs`. Then the number is not known for a stage that belongs to a method.
    epochs = done.get("epochs") or (record["recipe"].get("epochs") if stage == "distil" else None)
    progress = f"epoch {epoch}" + (f"/{epochs}" if epochs else "") + (f" of {stage}" if stage != "distil" else "")
    if "seconds" not in done or not epochs:
        return progress, None, None
    left, whole = done["seconds"] * max(epochs - epoch, 0), done["seconds"] * epochs
    return f"{progress}  eta {clock(left)}", left, whole


def _newest_jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs of the newest sweep at the folder, each with its state now; empty if there was no sweep."""
    sweeps = [path for place in (folder, folder / "sweeps") for path in place.glob(f"*/{MANIFEST}")]
    if not sweeps:
        return []
    newest = max(sweeps, key=lambda path: path.stat().st_mtime)
    try:
        return states_of(newest.parent)
    except (LookupError, TypeError, AttributeError) as error:
        raise KdrunError(f"{newest}, or a record that it names, does not have the expected keys ({error!r})") from error


def _read(folder: str) -> dict | None:
    try:
        return records.read(folder)
    except KdrunError:
        return None  # states_of gives the error
