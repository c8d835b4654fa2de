"""`kdrun status [FOLDER]`: the state of every run below a folder, usable while a sweep trains. Reads files alone."""

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

from kdrun.errors import KdrunError
from kdrun.report.collect import Collection, collect
from kdrun.report.command import Parser
from kdrun.report.groups import name
from kdrun.runs import record as records
from kdrun.runs.identity import label_of, safe
from kdrun.screen import clock
from kdrun.sweep.folder import MANIFEST, NO_STATE, states_of

LONG = 60  # a name beyond this, all overrides of a job without a record, moves no column


@dataclass
class State:
    """One run: what it is doing, how far it is, and what it needs."""

    name: str
    status: str  # done, running, interrupted, failed, nan, oom, skipped, not started
    told: str = ""  # epoch and eta, or the error
    left_s: float | None = None  # of training, by its last epoch
    whole_s: float | None = None  # the same for all of its epochs
    like: tuple[str, str] | None = None  # dataset and student: runs that take alike long
    asked: bool = False  # by the newest sweep

    @property
    def to_do(self) -> bool:
        """Whether it runs, or the newest sweep will still come to it."""
        return self.status in ("running", "not started") or (self.status == "interrupted" and self.asked)


def status(arguments: Sequence[str]) -> int:
    """The verb; returns the exit status."""
    found = Parser(
        "kdrun status", description="Every run's state, progress, ETA and last error; runs that are done are counted."
    )
    found.add_argument("folder", nargs="?", default="outputs", metavar="FOLDER", help="default: outputs")
    found.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="again every few seconds")
    asked = found.parse_args(arguments)
    while True:
        print("\n".join(lines(*states(Path(asked.folder).expanduser()))), flush=True)
        if asked.watch is None:
            return 0
        time.sleep(max(asked.watch, 0.5))
        print()


def states(folder: Path) -> tuple[list[State], list[str]]:
    """Every run with a record, then those without one that the newest sweep asked for; and which records were skipped, and why."""
    asked = _asked(folder)
    try:
        found = collect([folder])
    except KdrunError as error:
        if not asked:
            raise
        found = Collection(skipped=[str(error)] if " skipped: " in str(error) else [])  # else there is none yet
    known = {str(Path(record["folder"]).resolve()): record for record in found.records}
    jobs = {job["folder"]: job for job in asked if job["folder"]}
    for elsewhere in jobs.keys() - known.keys():
        record = _read(elsewhere)
        if record is not None:
            known[elsewhere] = {**record, "folder": elsewhere}
    seen = [_state(record, jobs.get(place)) for place, record in known.items()]
    unrecorded = {job["folder"] or i: job for i, job in enumerate(asked) if job["folder"] not in known}
    return seen + [_unrecorded(job) for job in unrecorded.values()], found.skipped


def lines(found: list[State], skipped: Sequence[str] = ()) -> list[str]:
    """What is not done, a line each; the counts last, with the time that is left where it is known."""
    counts = Counter(state.status for state in found)
    shown = [state for state in found if state.status not in ("done", "not started")]
    width = max((len(state.name) for state in shown if len(state.name) <= LONG), default=0)
    told = [f"{state.status:<12}{state.name:<{width}}  {state.told}".rstrip() for state in shown]
    if skipped:
        told.append(f"{'skipped':<12}{len(skipped)} record{'s' * (len(skipped) != 1)}, first: {skipped[0]}")
    total = f"{len(found)} run{'s' * (len(found) != 1)}   " + "   ".join(
        f"{n} {what}" for what, n in counts.most_common()
    )
    left = [state.left_s for state in found if state.status == "running" and state.left_s is not None]
    running = f"   eta of what is running {clock(max(left))}" if left else ""
    return [*told, total + running + _estimate(found)]


def _estimate(found: list[State]) -> str:
    """The time left of the whole: what runs and what waits, by the speed of runs alike, shared among those that run now."""
    at_once = sum(state.status == "running" for state in found)
    to_do = [state for state in found if state.to_do]
    left = [_left(state, found) for state in to_do]
    waiting = [seconds for state, seconds in zip(to_do, left, strict=True) if state.status != "running"]
    if not at_once or all(seconds is None for seconds in waiting):
        return ""
    known = [seconds for seconds in left if seconds is not None]
    blind = len(left) - len(known)
    without = f" without {blind} run{'s' * (blind != 1)} of which nothing alike has run" if blind else ""
    return f"   estimate for all {clock(max(sum(known) / at_once, *known))}{without}"


def _left(state: State, found: list[State]) -> float | None:
    """Seconds that a run still needs: by its own epochs, else as long as the median of those alike, the sweep's own first."""
    if state.left_s is not None:
        return state.left_s
    alike = [one for one in found if one.whole_s and one.like == state.like]
    times = [one.whole_s for one in alike if one.asked] or [one.whole_s for one in alike]
    return median(seconds for seconds in times if seconds) if times else None


def _state(record: dict, job: dict[str, Any] | None) -> State:
    """The state of a run with a record; what its job in the newest sweep says counts where the record does not know it."""
    folder, is_done = Path(record["folder"]), record["status"] == "done"
    like = (safe(label_of(record, "dataset")), _last_word(safe(label_of(record, "student"))))
    found = State((job or {}).get("name") or name(record), record["status"], like=like, asked=job is not None)
    if record["status"] not in ("running", "interrupted"):
        found.told = (record["error"] or {}).get("message") or ""
        found.whole_s = record["time"]["train_s"] if is_done else None
        return found
    found.told, found.left_s, found.whole_s = _progress(record, folder)
    if record["status"] != "running" or not _alive(folder):
        found.status = "interrupted"
        if job is not None and job["error"] and job["error"] != NO_STATE:
            found.status, found.told = job["status"], job["error"]
    return found


def _unrecorded(job: dict[str, Any]) -> State:
    """The state of a run that the sweep asked for and that has no record: it failed before, or is not started."""
    what, place = job.get("name") or " ".join(job["overrides"]), Path(job["folder"] or "").parts
    like = (place[-5], _last_word(place[-3])) if len(place) > 4 else None  # dataset/method/pair/hash/seed
    if job["status"] == "done" or job["error"] == NO_STATE:  # done: the run was removed since
        return State(what, "not started", like=like, asked=True)
    return State(what, job["status"], job["error"], like=like, asked=True)


def _last_word(pair: str) -> str:
    return pair.rpartition("-")[2]


def _alive(folder: Path) -> bool:
    """Whether the process that holds the folder lives; one of another host is taken at its word."""
    try:
        holder = json.loads((folder / ".holder.json").read_text(encoding="utf-8"))
        if holder["host"] != socket.gethostname():
            return True
        os.kill(holder["pid"], 0)
        return True
    except PermissionError:
        return True  # it lives and is someone else's
    except (OSError, ValueError, KeyError):
        return False


def _progress(record: dict, folder: Path) -> tuple[str, float | None, float | None]:
    """How far a run is, the seconds left and those of all epochs of its last stage; stages before it are shown by name."""
    try:
        done = json.loads((folder / "curves.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        epoch, stage = done["epoch"], done["stage"]
    except (OSError, ValueError, LookupError, TypeError):
        return "before its first epoch", None, None
    # Curves from before `epochs` stood in them: those of a stage of a method's own are not known.
    epochs = done.get("epochs") or (record["recipe"].get("epochs") if stage == "distil" else None)
    told = f"epoch {epoch}" + (f"/{epochs}" if epochs else "") + (f" of {stage}" if stage != "distil" else "")
    if "seconds" not in done or not epochs:
        return told, None, None
    left, whole = done["seconds"] * max(epochs - epoch, 0), done["seconds"] * epochs
    return f"{told}  eta {clock(left)}", left, whole


def _asked(folder: Path) -> list[dict[str, Any]]:
    """What the newest sweep at the folder asked for, each with its state now; empty where there was no sweep."""
    sweeps = [path for place in (folder, folder / "sweeps") for path in place.glob(f"*/{MANIFEST}")]
    if not sweeps:
        return []
    newest = max(sweeps, key=lambda path: path.stat().st_mtime)
    try:
        return states_of(newest.parent)
    except (LookupError, TypeError, AttributeError) as error:
        raise KdrunError(f"{newest}, or a record that it names, is of another shape ({error!r})") from error


def _read(folder: str) -> dict | None:
    try:
        return records.read(folder)
    except KdrunError:
        return None  # states_of says what is wrong with it
